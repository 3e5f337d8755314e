"""Tensors as slices in the safetensors files of many ranks, read back by any other division."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from magvit_scale.config import Refusal

Read = Callable[[str, int, int], Tensor]
"""(tensor name, first element, number of elements) -> flat float32 tensor."""
Pieces = dict[str, list[tuple[int, Any, str]]]


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes a safetensors file: aside, fsynced, renamed.

    Raises:
        OSError: the disk is full.
    """
    aside = path.with_suffix(".tmp")
    try:
        save_file(dict(tensors), aside)
        descriptor = os.open(aside, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    except SafetensorError as error:  # safetensors' own word for a disk that is full
        raise OSError(f"{path}: {error}; the older checkpoints are whole: free some space and start again") from error
    os.replace(aside, path)


@contextmanager
def open_slices(checkpoint: Path) -> Iterator[Read]:
    """Gives a reader of any slice of any tensor in the rank_*.safetensors of a folder; keys there are `name@first`."""
    with ExitStack() as stack:
        pieces = _index(checkpoint, stack)
        yield lambda name, first, length: _read(pieces, name, first, length)


def read_whole(checkpoint: Path, prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Reads whole tensors by name: those written as `prefix`/name.

    Raises:
        Refusal: one of them is not there, or has another number of elements.
    """
    with open_slices(checkpoint) as read:
        return {
            name: read(f"{prefix}/{name}", 0, torch.Size(shape).numel()).reshape(shape)
            for name, shape in shapes.items()
        }


def _index(checkpoint: Path, stack: ExitStack) -> Pieces:
    """Tensor name -> its slices, by first element, over the files of all ranks."""
    pieces: Pieces = {}
    for path in sorted(checkpoint.glob("rank_*.safetensors")):
        file = stack.enter_context(safe_open(path, framework="pt"))
        for key in file.keys():  # noqa: SIM118
            name, first = key.rsplit("@", 1)
            pieces.setdefault(name, []).append((int(first), file, key))
    return {name: sorted(parts, key=lambda part: part[0]) for name, parts in pieces.items()}


def _read(pieces: Pieces, name: str, first: int, length: int) -> Tensor:
    """Elements [first, first + length) of a tensor, joined from the slices that overlap it."""
    parts = list(_overlaps(pieces.get(name, []), first, first + length))
    joined = torch.cat(parts) if parts else torch.empty(0)
    if joined.numel() != length:
        raise Refusal(f"checkpoint holds {joined.numel()} of {length} elements of {name}; it is of another model")
    return joined


def _overlaps(parts: Iterable[tuple[int, Any, str]], first: int, stop: int) -> Iterator[Tensor]:
    for start, file, key in parts:
        piece = file.get_slice(key)
        end = start + piece.get_shape()[0]
        if start < stop and end > first:
            yield piece[max(first - start, 0) : min(stop, end) - start]
