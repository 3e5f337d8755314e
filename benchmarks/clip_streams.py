"""Clips and stored bytes out of the same tars: ours, a bare loop over the same bytes, and WebDataset's own pipeline."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import webdataset
from einops import rearrange

from benchmarks.measure import Measured, compare, resident_mb
from data_prep import list_videos, moving_shapes, write_shards
from magvit_scale.config import ClipsConfig
from magvit_scale.data.clips import training_batches
from magvit_scale.data.frames import read_bytes
from magvit_scale.data.order import Order
from magvit_scale.data.shards import load_dataset
from magvit_scale.video import Frames
from magvit_scale.video_bytes import decode_mp4

SIZE_PX, NUM_FRAMES, BATCH_SIZE, NUM_CLIPS = 128, 16, 16, 512


def write_clip_shards(folder: Path) -> Path:
    """Eight shards of 12 embedded videos, 64 frames of 128 px."""
    moving_shapes.main([f"output={folder / 'videos'}", "videos_per_class=12", f"size_px={SIZE_PX}"])
    list_videos.main([f"videos={folder / 'videos'}", f"output={folder}", "test_fraction=0.02"])
    manifest = folder / "manifest.jsonl"
    write_shards.main(
        [f"manifest={manifest}", f"output={folder / 'shards'}", f"size_px={SIZE_PX}", "videos_per_shard=12"]
    )
    return folder / "shards"


def _clips(shards: Path) -> ClipsConfig:
    return ClipsConfig(shards=str(shards), num_frames=NUM_FRAMES, size_px=SIZE_PX, num_workers=0)


def measure_clips(shards: Path) -> dict[str, Measured]:
    """CPU time per clip, in the process that asks for it."""
    dataset = load_dataset(shards)
    samples = dataset.samples("train")
    order, rng = Order(len(samples), seed=0), np.random.default_rng(0)
    tars = [str(shard.path) for shard in dataset.shards("train")]

    def ours() -> int:
        steps = NUM_CLIPS // BATCH_SIZE
        batches = training_batches(
            _clips(shards), seed=0, global_batch_size=BATCH_SIZE, rank=0, world_size=1, start_step=0, steps=steps
        )
        return sum(len(batch["clip"]) for batch in batches)

    def bare() -> int:
        for position in range(NUM_CLIPS):
            sample = samples[order.at(position)]
            start = int(rng.integers(sample.num_frames - NUM_FRAMES + 1))
            decode_mp4(read_bytes(sample), start, start + NUM_FRAMES)
        return NUM_CLIPS

    def stream() -> int:
        pipeline = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0).shuffle(50).repeat()
        clips = (_window(sample["mp4"], rng) for sample in pipeline)
        return sum(len(batch) for batch in _batches(clips, NUM_CLIPS // BATCH_SIZE))

    return compare({"bare decoding loop": bare, "clips": ours, "WebDataset, the same decoder": stream}, rounds=9)


def _window(data: bytes, rng: np.random.Generator) -> Frames:
    start = int(rng.integers(64 - NUM_FRAMES + 1))
    return decode_mp4(data, start, start + NUM_FRAMES)


def _batches(clips: Iterator[Frames], count: int) -> Iterator[torch.Tensor]:
    for _ in range(count):
        frames = np.stack([next(clips) for _ in range(BATCH_SIZE)])
        yield torch.from_numpy(np.ascontiguousarray(rearrange(frames, "b t h w c -> b c t h w")))


def measure_reads(shards: Path) -> dict[str, Measured]:
    """CPU time per stored video, its bytes in memory and nothing decoded."""
    dataset = load_dataset(shards)
    samples = dataset.samples("train")
    order, tars = Order(len(samples), seed=0), [str(shard.path) for shard in dataset.shards("train")]

    def ours() -> int:
        positions = range(10 * len(samples))
        return sum(len(read_bytes(samples[order.at(position)])) > 0 for position in positions)

    def stream() -> int:
        pipeline = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0)
        return sum(len(sample["mp4"]) > 0 for _ in range(10) for sample in pipeline)

    return compare({"shuffled by index": ours, "WebDataset": stream})


def measure_memory(shards: Path) -> dict[str, str]:
    """Resident size after the first and after the fifth pass over the clips."""
    num_videos = len(load_dataset(shards).samples("train"))
    batches = training_batches(
        _clips(shards),
        seed=0,
        global_batch_size=BATCH_SIZE,
        rank=0,
        world_size=1,
        start_step=0,
        steps=5 * num_videos // BATCH_SIZE,
    )
    found = [resident_mb() for _ in batches]
    return {"after one pass": f"{found[len(found) // 5]:.0f} MB", "after five passes": f"{found[-1]:.0f} MB"}
