"""What `magvit generate` leaves behind: a sample's videos and pictures, and arrays of all samples over all ranks."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from magvit_scale.data.clips import to_frames
from magvit_scale.files import written_aside
from magvit_scale.page.pictures import animated_webp
from magvit_scale.pictures import decoding_steps, enlarged, png_bytes, time_grid
from magvit_scale.pipeline import Generated, MagvitPipeline
from magvit_scale.training import distributed
from magvit_scale.training.ranks import Ranks
from magvit_scale.video import Frames, encode_mp4

KINDS = ("condition", "generated", "real")
NUM_SHOWN = 16
"""Samples per task in samples.npz, at most."""


def write_samples(
    folder: Path, numbers: Sequence[int], clips: Mapping[str, Frames], formats: Sequence[str], fps: float
) -> None:
    """Writes a batch of clips by kind ('b t h w c'), enlarged where they are small: NNNN_<kind>.mp4 and .webp of every
    clip, and NNNN.png of all kinds; each file aside first, then renamed.
    """
    for place, number in enumerate(numbers):
        large = {kind: enlarged(batch[place]) for kind, batch in clips.items()}
        for kind, clip in large.items():
            if "mp4" in formats:
                encode_mp4(clip, folder / f"{number:04d}_{kind}.mp4", fps=fps)
            if "webp" in formats:
                _write(folder / f"{number:04d}_{kind}.webp", animated_webp(clip, fps))
        if "png" in formats:
            _write(folder / f"{number:04d}.png", png_bytes(time_grid(list(large.values()))))


def write_steps(folder: Path, trajectory: Mapping[str, NDArray[Any]]) -> None:
    """Writes 0000_steps.png, see `decoding_steps`."""
    _write(folder / "0000_steps.png", png_bytes(decoding_steps(trajectory["clips"], trajectory["fixed"])))


def _write(path: Path, data: bytes) -> None:
    with written_aside(path) as file:
        file.write(data)


def trajectory(pipeline: MagvitPipeline, made: Generated) -> dict[str, NDArray[Any]]:
    """Of a batch's first clip and its first window, see `MagvitPipeline.trajectory`: `clips`, uint8 'k t h w c', and
    `fixed`, bool 'k t h w'.
    """
    clips, fixed = pipeline.trajectory(made.decoded)
    return {"clips": to_frames(clips), "fixed": fixed.cpu().numpy()}


def token_grids(pipeline: MagvitPipeline, made: Generated) -> Tensor:
    """'b t h w' int64 of a batch; of longer videos window after window along t."""
    t, h, w = pipeline.transformer.latent_shape
    windows = torch.stack([window.tokens for window in made.windows])
    return rearrange(windows, "window b (t h w) -> b (window t) h w", t=t, h=h, w=w).cpu()


@dataclass
class TaskSamples:
    """What this rank has made of one task, in the order of its samples."""

    tokens: list[Tensor] = field(default_factory=list)
    """'t h w' int64 each."""
    labels: list[Tensor] = field(default_factory=list)
    """'' int64 each."""
    frames: dict[str, list[Tensor]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    """By kind, 't h w c' uint8 each; of samples below NUM_SHOWN."""
    trajectory: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Of sample 0, on the main rank."""

    def add(self, numbers: Sequence[int], labels: Tensor, tokens: Tensor, clips: Mapping[str, Frames]) -> None:
        """Keeps a batch: labels 'b', tokens 'b t h w', clips by kind 'b t h w c'."""
        self.tokens += tokens.unbind()
        self.labels += labels.unbind()
        for kind, batch in clips.items():
            self.frames[kind] += [
                torch.from_numpy(clip) for number, clip in zip(numbers, batch, strict=True) if number < NUM_SHOWN
            ]


def in_turn(own: Sequence[Tensor], dtype: torch.dtype, ranks: Ranks) -> NDArray[Any]:
    """Joins what ranks have made of samples that were dealt out in turn. Collective: every rank must call.

    Args:
        own: this rank's, in order: samples rank, rank + world size, ...; of one shape.
        dtype: of all, since a rank may have none.
        ranks: of `start`; the main rank has at least one.

    Returns:
        'n ...', all samples in their order, on every rank.
    """
    count = int(distributed.sum_over_ranks(torch.tensor(len(own), device=ranks.device)))
    shape = json.loads(distributed.tell(json.dumps(list(own[0].shape) if own else [])))
    mine = torch.zeros((-(-count // ranks.world_size), *shape), dtype=dtype, device=ranks.device)
    for place, value in enumerate(own):
        mine[place] = value
    dealt = distributed.all_of(mine)
    return rearrange(dealt, "(rank place) ... -> (place rank) ...", rank=ranks.world_size)[:count].cpu().numpy()
