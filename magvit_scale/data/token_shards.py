"""Token shards, read: mapped into memory, gathered in the seekable order that clips have too.

Tokens stay uint16 until `to_token_ids` on the device: a quarter of the bytes to copy.
"""

import errno
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from torch import Tensor

from magvit_scale.config import Refusal
from magvit_scale.data.order import Order
from magvit_scale.data.token_facts import TokenFacts, facts_of, read_dataset
from magvit_scale.data.token_tar import DamagedShard, Labels, Tokens, TokenTar, open_token_tar
from magvit_scale.files import sha256

Numbers = NDArray[np.int64]

CHUNK_STEPS = 64
"""So many batches are drawn together: for one alone, numpy's calls cost more than its work."""


def to_token_ids(tokens: Tensor) -> Tensor:
    """uint16 tokens of any shape -> int64 ids."""
    return tokens.to(torch.int64)


@dataclass(frozen=True, kw_only=True)
class TokenShards(TokenFacts):
    """An opened folder of token shards.

    Attributes:
        folder: of dataset.json.
        hash: of the content.
        codebook: `used` codes and `perplexity` of z over the whole set.
        tars: the shards.
        labels: int64 '(num_clips)'.
    """

    folder: Path
    hash: str
    codebook: dict[str, Any]
    tars: tuple[TokenTar, ...]
    labels: Labels

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = False) -> "TokenShards":
        """Opens the folder that `magvit precompute-tokens` filled.

        Args:
            folder: of dataset.json.
            verify: reads every shard once and compares it with its checksum.

        Raises:
            Refusal: dataset.json is missing, damaged or not the whole list; a shard is missing, truncated, damaged or
                of another shape; there are more than this process may map; or there are no clips.
        """
        folder = Path(folder)
        content = read_dataset(folder)
        facts = TokenFacts(**facts_of(content))
        tars = tuple(_open_shard(folder, line, facts, verify) for line in content["shards"])
        labels = np.concatenate([np.empty(0, np.int64), *(tar.labels for tar in tars)])
        # Held once: eight bytes of each clip of a large set, in every rank.
        parts = np.split(labels, np.cumsum([len(tar.labels) for tar in tars]))[: len(tars)]
        opened = cls(
            **facts_of(content),
            folder=folder,
            hash=content["hash"],
            codebook=content["codebook"],
            tars=tuple(replace(tar, labels=part) for tar, part in zip(tars, parts, strict=True)),
            labels=labels,
        )
        if opened.num_clips == 0:
            raise Refusal(
                f"{folder}: the token shards hold no clips; run magvit precompute-tokens on a split that has some"
            )
        return opened

    @cached_property
    def _memory(self) -> tuple[NDArray[np.void], Numbers]:
        """One array whose element k is the view of a clip that begins k bytes after the first mapped byte; and for
        every clip the element that is its first view.

        Across the shards, because one call of numpy gathers a batch in half the time of a slice per clip. What lies
        between the mappings is never touched: places are computed from clips that the headers have vouched for.
        """
        parts = [tar.tokens.reshape(-1).view(np.uint8) for tar in self.tars]
        begins = np.array([part.ctypes.data for part in parts])
        first = min((part for part in parts if part.size), key=lambda part: part.ctypes.data)
        size = 2 * int(np.prod(self.clip_shape[1:]))
        end = max(part.ctypes.data + part.size for part in parts if part.size)
        rows = first[:size].view(f"V{size}")
        shape = (end - first.ctypes.data - size + 1,)
        places = [begin + np.arange(len(tar.labels)) * self.views * size
                  for begin, tar in zip(begins - first.ctypes.data, self.tars, strict=True)]  # fmt: skip
        return as_strided(rows, shape, strides=(1,), writeable=False), np.concatenate(places)

    @property
    def num_clips(self) -> int:
        """Videos, each with `views` views."""
        return len(self.labels)

    @property
    def tokens(self) -> tuple[Tokens, ...]:
        """Per shard, uint16 '(n views canvases t h w)', mapped from the file."""
        return tuple(tar.tokens for tar in self.tars)

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of the videos, read anew at each call.

        Raises:
            Refusal: they are damaged.
        """
        try:
            return tuple(key for tar in self.tars for key in tar.read_keys())
        except DamagedShard as error:
            raise Refusal(f"{self.folder}: damaged ({error}); {_AGAIN}") from error

    def gather(self, indices: Numbers, views: Numbers) -> Iterator[Tokens]:
        """Batches of clips as they are stored, each copied when its turn comes.

        Args:
            indices: 'steps b', numbers in [0, num_clips).
            views: 'steps b', numbers in [0, self.views).

        Yields:
            uint16 'b canvases t h w'.

        Raises:
            IndexError: there is no such clip or view.
        """
        _, *shape = self.clip_shape
        memory, first_views = self._memory
        if not (_are_below(indices, self.num_clips) and _are_below(views, self.views)):
            raise IndexError(f"expected clips in [0, {self.num_clips}) and views in [0, {self.views})")
        places = first_views[indices] + views * memory.itemsize
        return (memory[batch].view(np.uint16).reshape(-1, *shape) for batch in places)

    def batch(self, indices: Sequence[int], views: Sequence[int]) -> tuple[Tensor, Tensor]:
        """`gather` as ids.

        Args:
            indices: b numbers in [0, num_clips).
            views: b numbers in [0, self.views).

        Returns:
            tokens int64 'b canvases t h w', labels int64 'b'.
        """
        places = np.asarray(indices, np.int64)
        (tokens,) = self.gather(places[None], np.asarray(views, np.int64)[None])
        return to_token_ids(torch.from_numpy(tokens)), torch.from_numpy(self.labels[places])


def training_batches(
    shards: TokenShards, *, seed: int, global_batch_size: int, rank: int, world_size: int, start_step: int, steps: int
) -> Iterator[dict[str, Tensor]]:
    """Yields this rank's part of the global batches `start_step` to `start_step + steps - 1`.

    Global batch s holds positions [s * B, (s + 1) * B) of the seekable order, which may be more than one pass; the view
    is drawn by (seed, position).

    Yields:
        `tokens`: uint16 'b k t h w', k canvases; `label`: int64 'b'; `position`: int64 'b'.

    Raises:
        Refusal: B is not a multiple of world_size.
    """
    if global_batch_size % world_size:
        raise Refusal(
            f"global_batch_size={global_batch_size}: not a multiple of the {world_size} ranks; change one of them"
        )
    order, size = Order(shards.num_clips, seed), global_batch_size // world_size
    starts = np.arange(start_step, start_step + steps) * global_batch_size + rank * size
    chunks = (starts[first : first + CHUNK_STEPS, None] + np.arange(size) for first in range(0, steps, CHUNK_STEPS))
    return (batch for positions in chunks for batch in _batches_at(shards, order, seed, positions))


def draw_views(num_views: int, seed: int, positions: Numbers) -> Numbers:
    """The view shown at each position: uniform in [0, num_views), a function of (seed, position) alone."""
    key = hashlib.blake2b(f"token view {seed}".encode(), digest_size=8).digest()
    # SplitMix64: any place of its stream is reached at once, for a whole array of places.
    if num_views == 1:
        return np.zeros(positions.shape, np.int64)
    words = positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.frombuffer(key, "<u8")
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((words ^ (words >> np.uint64(31))) % np.uint64(num_views)).astype(np.int64)


def _batches_at(shards: TokenShards, order: Order, seed: int, positions: Numbers) -> Iterator[dict[str, Tensor]]:
    """Batches at positions 'steps b': orders and views are drawn for all of them at once, tokens one by one."""
    flat = positions.reshape(-1)
    indices, views = order.many(flat), draw_views(shards.views, seed, flat)
    labels = torch.from_numpy(shards.labels[indices]).reshape(positions.shape)
    tokens = shards.gather(indices.reshape(positions.shape), views.reshape(positions.shape))
    for batch, label, position in zip(tokens, labels, torch.from_numpy(positions), strict=True):
        yield {"tokens": torch.from_numpy(batch), "label": label, "position": position}


_AGAIN = "delete it and run magvit precompute-tokens again"
_ROOM = "raise vm.max_map_count or `ulimit -v`, or write fewer, larger ones (videos_per_shard of write_shards)"


def _open_shard(folder: Path, line: dict[str, Any], facts: TokenFacts, verify: bool) -> TokenTar:
    path = folder / line["name"]
    found = path.stat().st_size if path.is_file() else None
    if found != line["bytes"]:
        size = "missing" if found is None else f"{found} bytes"
        raise Refusal(f"{path}: {size}, expected {line['bytes']} bytes; {_AGAIN}")
    if verify and sha256(path) != line["sha256"]:
        raise Refusal(f"{path}: its bytes are not those that were written (sha256); {_AGAIN}")
    try:
        tar = open_token_tar(path, facts.clip_shape)
    except DamagedShard as error:
        raise Refusal(f"{path}: damaged ({error}); {_AGAIN}") from error
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        raise Refusal(f"{path}: cannot be mapped, expected room for {facts.num_shards} shards; {_ROOM}") from error
    if len(tar.labels) != line["count"] or not _are_class_ids(tar.labels, facts.num_classes):
        raise Refusal(f"{path}: damaged (not {line['count']} labels of {facts.num_classes} classes); {_AGAIN}")
    return tar


def _are_below(numbers: Numbers, end: int) -> bool:
    return numbers.size == 0 or (int(numbers.min()) >= 0 and int(numbers.max()) < end)


def _are_class_ids(labels: Labels, num_classes: int) -> bool:
    return len(labels) == 0 or (labels.min() >= -1 and labels.max() < max(num_classes, 1))
