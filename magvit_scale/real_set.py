"""The real clips of a protocol, out of clip shards: which they are, their pixels, and their feature statistics, which
are computed once and kept.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magvit_scale.config import EvaluateConfig
from magvit_scale.data.real_clips import RealVideos, read_cuts
from magvit_scale.measuring import Networks
from magvit_scale.metrics.frechet import FeatureStatistics
from magvit_scale.metrics.preparation import fit, prepare
from magvit_scale.metrics.protocol import Protocol, RealClips
from magvit_scale.metrics.selection import RealClip, select_clips, split_over_ranks
from magvit_scale.metrics.statistics_file import Provenance, load_statistics, save_statistics
from magvit_scale.metrics.tally import SumOverRanks, Tally
from magvit_scale.progress import progress_bar
from magvit_scale.training.ranks import Ranks


@dataclass
class RealSet:
    """All real clips that a task is held against."""

    protocol: Protocol
    """By which they were chosen."""
    rule: RealClips
    """Of their choice."""
    seed: int
    """Of their choice."""
    videos: RealVideos
    """Of the split."""
    clips: Sequence[RealClip]
    """One fold after the other."""
    statistics: list[FeatureStatistics] = field(default_factory=list)
    """Of the features of each fold; filled by `measure`."""

    @staticmethod
    def open(config: EvaluateConfig, protocol: Protocol, task: str, seed: int) -> "RealSet":
        """Chooses the clips of a task.

        Raises:
            Refusal: the shards lack the split, or have other videos or fewer clips than the protocol wants.
        """
        rule = protocol.real_clips(task)
        videos = RealVideos(config.shards, rule.split.split("+"))
        return RealSet(protocol, rule, seed, videos, select_clips(protocol, videos.lengths(), seed, task))

    def facts(self) -> dict[str, Any]:
        """What a result says about the data."""
        dataset = self.videos.dataset
        return {"shards": dataset.hash, "encoding": dataset.encoding, "size_px": dataset.size_px}

    def source_of(self, place: int) -> int:
        """The place in `clips` of the real clip that generated clip `place` continues or repeats."""
        fold, number = divmod(place, self.protocol.num_generated)
        return fold * self.rule.num_clips + number % self.rule.num_clips

    def read(
        self, places: Sequence[int], config: EvaluateConfig, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the clips at `places` as the model's size, 'b 3 t h w' in [0, 1], and their labels, 'b' int64.

        Raises:
            Refusal: a video does not decode, or its frames do not suit the protocol.
        """
        chosen = [self.clips[place] for place in places]
        batches = read_cuts(
            self.videos,
            [(clip.video, clip.first_frame) for clip in chosen],
            num_frames=self.protocol.num_frames,
            frame_stride=self.protocol.frame_stride,
            batch_size=config.batch_size,
            num_workers=config.num_workers,
        )
        for number, batch in enumerate(batches):
            part = chosen[number * config.batch_size :][: len(batch)]
            pixels = [fit(frames, self.protocol, clip.place) for frames, clip in zip(batch, part, strict=True)]
            labels = torch.from_numpy(self.videos.labels([clip.video for clip in part]))
            yield torch.stack(pixels).to(device), labels.to(device)

    def measure(
        self, config: EvaluateConfig, folder: Path, networks: Networks, ranks: Ranks, sum_over_ranks: SumOverRanks
    ) -> None:
        """Fills `statistics`: reads them from their folder, or computes and keeps them there. Collective.

        Raises:
            Refusal: see `read`; a kept file is damaged or of something else.
        """
        folder = Path(config.statistics) if config.statistics else folder
        made_of = [self._provenance(fold, networks) for fold in range(self.protocol.num_folds)]
        files = [folder / _file_name(self.protocol, provenance) for provenance in made_of]
        # The sum makes all ranks agree, also where one does not see the files.
        if not sum_over_ranks(torch.tensor([float(not file.exists()) for file in files])).any():
            self.statistics = [load_statistics(*pair) for pair in zip(files, made_of, strict=True)]
            return
        self.statistics = self._computed(config, networks, ranks, sum_over_ranks)
        if ranks.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            for file, fold, provenance in zip(files, self.statistics, made_of, strict=True):
                save_statistics(file, fold, provenance)

    @torch.no_grad()
    def _computed(
        self, config: EvaluateConfig, networks: Networks, ranks: Ranks, sum_over_ranks: SumOverRanks
    ) -> list[FeatureStatistics]:
        tally = Tally(self.protocol.num_folds, self.rule.num_clips, networks.num_features)
        places = list(split_over_ranks(len(self.clips), ranks.rank, ranks.world_size))
        with progress_bar("real clips", len(places), unit="clip", is_shown=ranks.is_main) as bar:
            start = 0
            for clips, _ in self.read(places, config, ranks.device):
                part = torch.tensor(places[start : start + len(clips)])
                tally.add_features(part, networks.features(prepare(clips, self.protocol)))
                start += len(clips)
                bar.update(len(clips))
        tally.join(sum_over_ranks)
        return tally.statistics

    def _provenance(self, fold: int, networks: Networks) -> Provenance:
        clips = f"{self.videos.dataset.hash}, {self.rule}, seed {self.seed}, fold {fold}"
        return Provenance(protocol=self.protocol.hash, weights=networks.weights["feature_network"], clips=clips)


def _file_name(protocol: Protocol, provenance: Provenance) -> str:
    digest = hashlib.sha256(json.dumps(asdict(provenance), sort_keys=True).encode()).hexdigest()
    return f"{protocol.name}_{digest[:16]}.npz"
