"""Clips out of clip shards: augmented ones for training, fixed ones for evaluation, views for the token writer.

What a clip shows follows from (config, seed, position) and nothing else: not from the worker that cut it, the
number of ranks or what was read before. Frames stay uint8 until `to_unit_range` on the device.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from magvit_scale.config import ClipsConfig, Refusal
from magvit_scale.data.cutting import centre, cut_clip, cut_unflipped, window
from magvit_scale.data.frames import Sample
from magvit_scale.data.loading import Broken, collate, load, tell
from magvit_scale.data.mixture import Mixture
from magvit_scale.data.order import keyed_generator
from magvit_scale.data.sources import is_stream, open_clips, open_sources, refuse_impossible, weights_of
from magvit_scale.data.streaming import stream_batches, stream_centres
from magvit_scale.video import VideoError

MAX_REPLACEMENTS = 1000


def to_unit_range(clip: Tensor) -> Tensor:
    """uint8 in [0, 255] of any shape and layout in memory -> contiguous float32 in [0, 1]."""
    return clip.to(torch.float32, memory_format=torch.contiguous_format) / 255


def to_frames(clip: Tensor) -> NDArray[np.uint8]:
    """'n 3 t h w' in [0, 1] -> uint8 'n t h w 3' on the CPU: what videos and pictures are written from."""
    return rearrange(clip.clamp(0, 1).mul(255).round().byte(), "n c t h w -> n t h w c").cpu().numpy()


def training_batches(
    config: ClipsConfig, *, seed: int, global_batch_size: int, rank: int, world_size: int, start_step: int, steps: int
) -> Iterator[dict[str, Tensor]]:
    """Yields this rank's part of the global batches `start_step` to `start_step + steps - 1`.

    Global batch s holds positions [s * B, (s + 1) * B) of the order; a rank's part is contiguous in it.

    Yields:
        `clip`: uint8 'b c t h w'; `label`: int64 'b'; b = B / world_size.

    Raises:
        Refusal: unusable shards, B is not a multiple of world_size, or too many videos do not decode.
    """
    if global_batch_size % world_size:
        raise Refusal(
            f"global_batch_size={global_batch_size}: not a multiple of the {world_size} ranks; change one of them"
        )
    size = global_batch_size // world_size
    if is_stream(config.shards):
        refuse_impossible(config)
        return stream_batches(config, seed, size, rank, start_step, steps)
    cuts = _TrainingClips(config, seed)
    if rank == 0 and cuts.num_videos < global_batch_size:
        tell(f"{cuts.num_videos} videos, fewer than a batch of {global_batch_size}: batches hold videos several times")
    positions = (
        range(step * global_batch_size + rank * size, step * global_batch_size + (rank + 1) * size)
        for step in range(start_step, start_step + steps)
    )
    return ({"clip": batch["clip"], "label": batch["label"]} for batch in load(cuts, config, positions))


def held_out_clips(config: ClipsConfig, num_clips: int, batch_size: int) -> Iterator[dict[str, Any]]:
    """Yields the same clips at every call: the centre window of each video, then further evenly spread ones, no flips.

    Videos that do not decode are reported and left out.

    Yields:
        `clip`: uint8 'b c t h w'; `label`: int64 'b'; `key`: list of b names. The last batch may be smaller.

    Raises:
        Refusal: unusable shards, or too many videos do not decode.
    """
    if is_stream(config.shards):
        refuse_impossible(config)
        return stream_centres(config, num_clips, batch_size)
    cuts = _HeldOutClips(config)
    positions = (range(start, min(start + batch_size, num_clips)) for start in range(0, num_clips, batch_size))
    return (batch for batch in load(cuts, config, positions) if batch["key"])


def views(
    config: ClipsConfig, *, views: int, seed: int, shard: int, only: Collection[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Yields `views` clips of every video of one clip shard, or of those named in `only`, for the token writer.

    In split `test` view 0 is the centre window, unflipped; every other view is random, keyed by (seed, view, key).
    Videos that do not decode are reported and left out.

    Yields:
        `clip`: uint8 'v c t h w'; `label`: int; `key`: str.

    Raises:
        Refusal: unusable shards, or too many videos of the shard do not decode.
    """
    dataset = open_clips(config)
    samples = dataset.shard_samples(dataset.shards(config.split)[shard])
    broken = Broken(config, len(samples))
    for sample in samples:
        if only is not None and sample.key not in only:
            continue
        try:
            clips = [cut_clip(dataset, sample, config, _view_rng(config, seed, view, sample)) for view in range(views)]
        except VideoError as error:
            broken.add(sample.key, str(error))
            continue
        frames = rearrange(np.stack(clips), "v t h w c -> v c t h w")
        yield {"clip": torch.from_numpy(np.ascontiguousarray(frames)), "label": sample.class_id, "key": sample.key}


def _view_rng(config: ClipsConfig, seed: int, view: int, sample: Sample) -> np.random.Generator | None:
    is_fixed = config.split == "test" and view == 0
    return None if is_fixed else keyed_generator("view", seed, view, sample.key)


class _Clips(TorchDataset[dict[str, Any]], ABC):
    """Position -> clip. What a worker refuses travels as words, because an exception would arrive as a traceback."""

    def __init__(self, config: ClipsConfig, seed: int = 0) -> None:
        self.config, self.seed = config, seed
        self.sources = open_sources(config, seed)
        self.num_videos = sum(len(source.table) for source in self.sources)

    def __getitems__(self, positions: list[int]) -> dict[str, Any]:
        # Drawn all at once, as clips are flipped: see `collate`.
        generators = [keyed_generator("clip", self.seed, position) for position in positions]
        return collate(map(self._item, positions, generators), len(positions))

    def _item(self, position: int, rng: np.random.Generator) -> dict[str, Any]:
        failed: dict[str, str] = {}
        try:
            return {**self.cut(position, rng, failed), "failed": failed}
        except Refusal as refusal:
            return {"failed": failed, "refusal": str(refusal)}

    @abstractmethod
    def cut(self, position: int, rng: np.random.Generator, failed: dict[str, str]) -> dict[str, Any]:
        """The clip at a position with its label and key; videos that do not decode are added to `failed`."""


class _TrainingClips(_Clips):
    """Augmented clips; a video that does not decode is replaced by the next one of its source's order."""

    def __init__(self, config: ClipsConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.mixture = Mixture(list(weights_of(config).values()))

    def cut(self, position: int, rng: np.random.Generator, failed: dict[str, str]) -> dict[str, Any]:
        number, place = self.mixture.at(position)
        source = self.sources[number]
        source.fetch_ahead(place)
        for offset in range(min(len(source.table), MAX_REPLACEMENTS)):
            sample = source.sample(place + offset)
            try:
                clip, is_flipped = cut_unflipped(source.dataset, sample, self.config, rng)
            except VideoError as error:
                failed[sample.key] = str(error)
                rng = keyed_generator("clip", self.seed, position)  # as if nothing had been drawn
                continue
            label = source.class_ids.get(sample.class_id, sample.class_id)
            return {"clip": clip, "is_flipped": is_flipped, "label": label, "key": sample.key}
        raise Refusal(f"{len(failed)} videos in a row do not decode; write the shards again")


class _HeldOutClips(_Clips):
    """Centre crops: round by round over the videos of a split, each round at another place."""

    def cut(self, position: int, rng: np.random.Generator, failed: dict[str, str]) -> dict[str, Any]:
        round_number, number = divmod(position, self.num_videos)
        for source in self.sources:
            if number < len(source.table):
                break
            number -= len(source.table)
        sample = source.table[number]
        try:
            clip = centre(window(source.dataset, sample, self.config, _bisect(round_number + 1)), self.config.size_px)
        except VideoError as error:
            failed[sample.key] = str(error)
            return {}
        return {"clip": clip, "label": source.class_ids.get(sample.class_id, sample.class_id), "key": sample.key}


def _bisect(number: int) -> float:
    """1/2, 1/4, 3/4, 1/8, ...: each new place halves the widest gap (van der Corput)."""
    digits = f"{number:b}"
    return int(digits[::-1], 2) / 2 ** len(digits)
