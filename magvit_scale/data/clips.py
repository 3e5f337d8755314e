"""Clips out of clip shards: augmented ones for training, fixed ones for evaluation, views for the token writer.

What a clip shows follows from (config, seed, position) and nothing else: not from the worker that cut it, the
number of ranks or what was read before. Frames stay uint8 until `to_unit_range` on the device.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm import tqdm

from magvit_scale.config import ClipsConfig, Refusal
from magvit_scale.data.shards import Dataset, Order, Sample, keyed_generator, load_dataset
from magvit_scale.video import Frames, VideoError

MAX_BROKEN_FRACTION = 0.05
"""A run stops when more than this share of its videos does not decode."""


def to_unit_range(clip: Tensor) -> Tensor:
    """uint8 in [0, 255] of any shape -> float32 in [0, 1]."""
    return clip.to(torch.float32) / 255


def to_frames(clip: Tensor) -> NDArray[np.uint8]:
    """'n 3 t h w' in [0, 1] -> uint8 'n t h w 3' on the CPU: what videos and pictures are written from."""
    return rearrange(clip.clamp(0, 1).mul(255).round().byte(), "n c t h w -> n t h w c").cpu().numpy()


def open_clips(config: ClipsConfig) -> Dataset:
    """Opens the clip shards of a configuration.

    Raises:
        Refusal: missing shards, another frame size, or impossible lengths.
    """
    dataset = load_dataset(config.shards)
    if config.size_px != dataset.size_px:
        raise Refusal(
            f"clips.size_px={config.size_px}: {config.shards} holds frames of {dataset.size_px} px; set it to that"
        )
    for key, least in (("num_frames", 1), ("frame_stride", 1), ("num_workers", 0)):
        if getattr(config, key) < least:
            raise Refusal(f"clips.{key}={getattr(config, key)}: expected at least {least}")
    if config.sampled_frames is not None and not 1 <= config.sampled_frames <= config.num_frames:
        raise Refusal(
            f"clips.sampled_frames={config.sampled_frames}: expected 1 to clips.num_frames={config.num_frames}"
        )
    return dataset


def cut_clip(dataset: Dataset, sample: Sample, config: ClipsConfig, rng: np.random.Generator | None) -> Frames:
    """Cuts one clip out of a stored video; a video that is too short repeats its last frame.

    Args:
        dataset: where the sample comes from.
        sample: the video.
        config: clip length, stride, sampled frames and flip.
        rng: draws the window and the flip; None takes the centre window, unflipped.

    Returns:
        uint8 't h w c'; t is num_frames, or sampled_frames where that is set.

    Raises:
        VideoError: the video does not decode.
    """
    if rng is None:
        return _window(dataset, sample, config, 0.5)
    clip = _window(dataset, sample, config, rng.random())
    return clip[:, :, ::-1] if config.horizontal_flip and rng.random() < 0.5 else clip


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
    cuts = _TrainingClips(config, seed)
    size = global_batch_size // world_size
    positions = [
        range(step * global_batch_size + rank * size, step * global_batch_size + (rank + 1) * size)
        for step in range(start_step, start_step + steps)
    ]
    return ({"clip": batch["clip"], "label": batch["label"]} for batch in _load(cuts, positions, config.num_workers))


def held_out_clips(config: ClipsConfig, num_clips: int, batch_size: int) -> Iterator[dict[str, Any]]:
    """Yields the same clips at every call: the centre window of each video, then further evenly spread ones, no flips.

    Videos that do not decode are reported and left out.

    Yields:
        `clip`: uint8 'b c t h w'; `label`: int64 'b'; `key`: list of b names. The last batch may be smaller.

    Raises:
        Refusal: unusable shards, or too many videos do not decode.
    """
    cuts = _HeldOutClips(config)
    positions = [range(start, min(start + batch_size, num_clips)) for start in range(0, num_clips, batch_size)]
    return (batch for batch in _load(cuts, positions, config.num_workers) if batch["key"])


def views(config: ClipsConfig, *, views: int, seed: int, shard: int) -> Iterator[dict[str, Any]]:
    """Yields `views` clips of every video of one clip shard, for the token writer.

    In split `test` view 0 is the centre window, unflipped; every other view is random, keyed by (seed, view, key).
    Videos that do not decode are reported and left out.

    Yields:
        `clip`: uint8 'v c t h w'; `label`: int; `key`: str.

    Raises:
        Refusal: unusable shards, or too many videos of the shard do not decode.
    """
    dataset = open_clips(config)
    samples = dataset.shard_samples(dataset.shards(config.split)[shard])
    broken = _Broken(len(samples))
    for sample in samples:
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


def _window(dataset: Dataset, sample: Sample, config: ClipsConfig, place: float) -> Frames:
    """The window at `place` in [0, 1) of all possible ones."""
    span = (config.num_frames - 1) * config.frame_stride + 1
    start = int(place * (max(0, sample.num_frames - span) + 1))
    frames = dataset.read_video(sample, start, min(start + span, sample.num_frames), config.frame_stride)
    return frames[np.minimum(_taken_frames(config), len(frames) - 1)]


def _taken_frames(config: ClipsConfig) -> NDArray[np.int64]:
    """Which of a clip's frames are taken: all, or the inner points of an even division (spec section 1.6)."""
    if config.sampled_frames is None:
        return np.arange(config.num_frames)
    places = config.num_frames / (config.sampled_frames + 1) * np.arange(1, config.sampled_frames + 1)
    return places.round().astype(np.int64)


class _TrainingClips(TorchDataset[dict[str, Any]]):
    """Position -> clip. A video that does not decode is replaced by the next one of the order."""

    def __init__(self, config: ClipsConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.dataset = open_clips(config)
        self.samples = self.dataset.samples(config.split)
        self.num_videos = len(self.samples)
        self.order = Order(self.num_videos, seed)

    def __getitem__(self, position: int) -> dict[str, Any]:
        failed: dict[str, str] = {}
        for offset in range(self.num_videos):
            sample = self.samples[self.order.at(position + offset)]
            rng = keyed_generator("clip", self.seed, position)
            try:
                clip = cut_clip(self.dataset, sample, self.config, rng)
            except VideoError as error:
                failed[sample.key] = str(error)
                continue
            return {"clip": clip, "label": sample.class_id, "key": sample.key, "failed": failed}
        return {"failed": failed}


class _HeldOutClips(TorchDataset[dict[str, Any]]):
    """Position -> clip: round by round over the videos of a split, each round at another place."""

    def __init__(self, config: ClipsConfig) -> None:
        self.config = config
        self.dataset = open_clips(config)
        self.samples = self.dataset.samples(config.split)
        self.num_videos = len(self.samples)

    def __getitem__(self, position: int) -> dict[str, Any]:
        round_number, number = divmod(position, self.num_videos)
        sample = self.samples[number]
        try:
            clip = _window(self.dataset, sample, self.config, _bisect(round_number + 1))
        except VideoError as error:
            return {"failed": {sample.key: str(error)}}
        return {"clip": clip, "label": sample.class_id, "key": sample.key, "failed": {}}


def _bisect(number: int) -> float:
    """1/2, 1/4, 3/4, 1/8, ...: each new place halves the widest gap (van der Corput)."""
    digits = f"{number:b}"
    return int(digits[::-1], 2) / 2 ** len(digits)


def _load(cuts: Any, positions: Sequence[Sequence[int]], num_workers: int) -> Iterator[dict[str, Any]]:
    """Cuts batches in worker processes and yields them in order, with the broken videos told and counted."""
    loader = DataLoader(
        cuts,
        batch_sampler=list(map(list, positions)),
        collate_fn=_collate,
        num_workers=num_workers,
        prefetch_factor=2 if num_workers else None,
    )
    broken = _Broken(cuts.num_videos)
    for batch in loader:
        for key, reason in batch["failed"].items():
            broken.add(key, reason)
        if batch["key"]:
            batch["clip"] = torch.from_numpy(batch["clip"])
        yield {"clip": batch["clip"], "label": torch.tensor(batch["label"], dtype=torch.int64), "key": batch["key"]}


def _collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    # NumPy, not tensors: those travel through /dev/shm, which is 64 MB in a container and kills the worker when full.
    cut = [item for item in items if "clip" in item]
    clips = (
        rearrange(np.stack([item["clip"] for item in cut]), "b t h w c -> b c t h w") if cut else np.empty(0, np.uint8)
    )
    return {
        "clip": np.ascontiguousarray(clips),
        "label": [item["label"] for item in cut],
        "key": [item["key"] for item in cut],
        "failed": {key: reason for item in items for key, reason in item["failed"].items()},
    }


class _Broken:
    """Tells every broken video once, and stops when there are too many."""

    def __init__(self, num_videos: int) -> None:
        self.num_videos = num_videos
        self.keys: set[str] = set()

    def add(self, key: str, reason: str) -> None:
        if key in self.keys:
            return
        self.keys.add(key)
        tqdm.write(
            f"video {key} does not decode: {reason}; {len(self.keys)} of {self.num_videos} so far", file=sys.stderr
        )
        if len(self.keys) > MAX_BROKEN_FRACTION * self.num_videos:
            allowed = f"{MAX_BROKEN_FRACTION:.0%}"
            found = f"{len(self.keys)} of {self.num_videos} videos do not decode, more than {allowed}"
            raise Refusal(f"{found}; the last is {key}: {reason}; write the shards again")
