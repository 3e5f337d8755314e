"""Clips through worker processes into batches, with the broken videos told, counted and judged."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch.utils.data import DataLoader
from tqdm import tqdm

from magvit_scale.config import ClipsConfig, Refusal
from magvit_scale.data.cutting import flipped

MIN_SEEN = 1000
"""So many videos are read before the share of broken ones is judged by those that were read, not by all there are."""


def load(cuts: Any, config: ClipsConfig, positions: Iterable[Iterable[int]]) -> Iterator[dict[str, Any]]:
    """Cuts batches in worker processes and yields them in order, with the broken videos told and counted."""
    loader = DataLoader(
        cuts,
        batch_sampler=map(list, positions),
        collate_fn=as_it_is,
        num_workers=config.num_workers,
        prefetch_factor=2 if config.num_workers else None,
    )
    broken = Broken(config, cuts.num_videos)
    for batch in loader:
        yield checked(batch, broken)


def collate(items: Iterable[Mapping[str, Any]], num_items: int) -> dict[str, Any]:
    """Clips 't h w c' of a worker, as they are cut -> one batch of arrays; flipped where `is_flipped`."""
    # NumPy, not tensors: those travel through /dev/shm, which is 64 MB in a container and kills the worker when full.
    # Each clip is copied before the next is decoded into the same memory; its layout is changed on the device.
    clips, refusal, failed = np.empty((0,) * 5, np.uint8), None, dict[str, str]()
    labels, keys, flips = list[int](), list[str](), list[int]()
    for item in items:
        failed.update(item["failed"])
        refusal = refusal or item.get("refusal")
        if "clip" in item:
            clips = clips if keys else np.empty((num_items, *item["clip"].shape), np.uint8)
            clips[len(keys)] = item["clip"]
            flips += [len(keys)] if item.get("is_flipped") else []
            labels.append(item["label"])
            keys.append(item["key"])
    # All at once: each decoder run drives torch's code out of the caches, and then one flip costs as much as six.
    for number in flips:
        clips[number] = flipped(clips[number])
    return {"clip": clips[: len(keys)], "label": labels, "key": keys, "failed": failed, "refusal": refusal}


def as_it_is(item: Any) -> Any:
    """What a loader does with batches that are made."""
    return item


def checked(batch: Mapping[str, Any], broken: "Broken") -> dict[str, Any]:
    """A batch of a worker as tensors.

    Raises:
        Refusal: the worker met one, or too many videos do not decode.
    """
    broken.num_seen += len(batch["key"]) + len(batch["failed"])
    for key, reason in batch["failed"].items():
        broken.add(key, reason)
    if batch["refusal"]:
        raise Refusal(batch["refusal"])
    return {
        "clip": rearrange(torch.from_numpy(batch["clip"]), "b t h w c -> b c t h w"),
        "label": torch.tensor(batch["label"], dtype=torch.int64),
        "key": batch["key"],
    }


class Broken:
    """Tells every broken video once, and stops when there are too many."""

    def __init__(self, config: ClipsConfig, num_videos: int) -> None:
        self.max_fraction, self.num_videos = config.max_broken_fraction, num_videos
        self.num_seen = 0
        self.keys: set[str] = set()

    def add(self, key: str, reason: str) -> None:
        """Counts a video that does not decode.

        Raises:
            Refusal: they are too many.
        """
        if key in self.keys:
            return
        self.keys.add(key)
        judged = min(self.num_videos, max(self.num_seen, MIN_SEEN))
        tell(f"video {key} does not decode: {reason}; {len(self.keys)} of {judged} so far")
        if len(self.keys) > self.max_fraction * judged:
            found = f"{len(self.keys)} of {judged} videos do not decode, more than {self.max_fraction:.0%}"
            raise Refusal(f"{found}; the last is {key}: {reason}; write the shards again")


def tell(line: str) -> None:
    """One line on stderr, whatever bytes a name is made of, beside a progress bar."""
    tqdm.write(line.encode(errors="backslashreplace").decode(), file=sys.stderr)
