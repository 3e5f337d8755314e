"""Checkpoints that a kill at any moment cannot spoil: written aside, fsynced, COMPLETE last, renamed.

`checkpoints/step_00001000/` holds rank_00000.safetensors per rank (slices of engine state), replicated.safetensors
(modules that are the same on every rank: EMA, LeCam) and COMPLETE, the list of files with their sizes. Only
safetensors and JSON.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from magvit_scale.config import Refusal
from magvit_scale.training.engine_state import num_updates, owned_slices, restore


@dataclass(frozen=True)
class TrainingState:
    """Everything a run must carry over: engines by name, and modules that every rank holds whole."""

    engines: dict[str, Any]
    replicated: dict[str, nn.Module]
    rank: int
    world_size: int
    barrier: Callable[[], None]


def save(folder: Path, step: int, state: TrainingState, keep: int) -> None:
    """Writes `folder`/step_XXXXXXXX and points `latest` at it, then removes all but the newest `keep`. Collective."""
    target, aside = folder / f"step_{step:08d}", folder / f"step_{step:08d}.tmp"
    if state.rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    state.barrier()
    slices = {
        f"{engine_name}/{name}@{start}": view.detach().cpu().contiguous().clone()
        for engine_name, engine in state.engines.items()
        for name, start, view in owned_slices(engine, state.rank, state.world_size)
    }
    _write(slices, aside / f"rank_{state.rank:05d}.safetensors")
    if state.rank == 0:
        _write(_replicated_tensors(state), aside / "replicated.safetensors")
    state.barrier()
    if state.rank == 0:
        _commit(aside, target, step)
        _prune(folder, keep)
    state.barrier()


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None; one whose files do not match its COMPLETE list is passed over."""
    return next((path for path in _newest_first(folder) if _is_complete(path)), None)


def step_of(checkpoint: Path) -> int:
    """Optimiser steps completed at a checkpoint."""
    return int(checkpoint.name.removeprefix("step_"))


def load(checkpoint: Path, state: TrainingState) -> None:
    """Fills freshly built engines and modules; any ZeRO stage 0 to 2 and world size reads any other's. No collective.

    Raises:
        Refusal: the checkpoint lacks a tensor of this run.
    """
    tensors = load_file(checkpoint / "replicated.safetensors")
    for name, module in state.replicated.items():
        own = {key.removeprefix(f"{name}/"): t for key, t in tensors.items() if key.startswith(f"{name}/")}
        module.load_state_dict(own)
    with ExitStack() as stack:
        pieces = _index(checkpoint, stack)
        for name, engine in state.engines.items():
            restore(engine, int(tensors[f"{name}/updates"]), partial(_read, pieces, name))


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # safetensors' own word for a disk that is full
        raise OSError(f"{path}: {error}; the older checkpoints are whole: free some space and start again") from error


def _replicated_tensors(state: TrainingState) -> dict[str, Tensor]:
    updates = {f"{name}/updates": torch.tensor(num_updates(engine)) for name, engine in state.engines.items()}
    return updates | {
        f"{name}/{key}": tensor.detach().cpu().contiguous().clone()
        for name, module in state.replicated.items()
        for key, tensor in module.state_dict().items()
    }


def _commit(aside: Path, target: Path, step: int) -> None:
    files = sorted(path for path in aside.iterdir())
    for path in files:
        _fsync(path)
    complete = aside / "COMPLETE"
    complete.write_text(json.dumps({"step": step, "files": {path.name: path.stat().st_size for path in files}}))
    _fsync(complete)
    shutil.rmtree(target, ignore_errors=True)
    os.rename(aside, target)
    pointer = target.parent / "latest.tmp"
    pointer.write_text(target.name)
    os.replace(pointer, target.parent / "latest")
    _fsync(target.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _newest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("step_*") if path.suffix != ".tmp"), reverse=True)


def _is_complete(path: Path) -> bool:
    try:
        files = json.loads((path / "COMPLETE").read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):  # missing, cut short, or no such list
        return False
    return all((path / name).is_file() and (path / name).stat().st_size == size for name, size in files.items())


def _prune(folder: Path, keep: int) -> None:
    kept = [path for path in _newest_first(folder) if _is_complete(path)][:keep]
    for path in _newest_first(folder):
        if path not in kept:
            shutil.rmtree(path)


Pieces = dict[str, list[tuple[int, Any, str]]]


def _index(checkpoint: Path, stack: ExitStack) -> Pieces:
    """Tensor name -> its slices, by first element, over the files of all ranks."""
    pieces: Pieces = {}
    for path in sorted(checkpoint.glob("rank_*.safetensors")):
        file = stack.enter_context(safe_open(path, framework="pt"))
        for key in file.keys():  # noqa: SIM118
            name, start = key.rsplit("@", 1)
            pieces.setdefault(name, []).append((int(start), file, key))
    return {name: sorted(parts, key=lambda part: part[0]) for name, parts in pieces.items()}


def _read(pieces: Pieces, engine: str, key: str, start: int, length: int) -> Tensor:
    """Elements [start, start + length) of an engine's tensor, joined from the slices that overlap it."""
    name = f"{engine}/{key}"
    parts = list(_overlaps(pieces.get(name, []), start, start + length))
    joined = torch.cat(parts) if parts else torch.empty(0)
    if joined.numel() != length:
        raise Refusal(f"checkpoint holds {joined.numel()} of {length} elements of {name}; it is of another model")
    return joined


def _overlaps(parts: Iterable[tuple[int, Any, str]], start: int, stop: int) -> Iterable[Tensor]:
    for first, file, key in parts:
        piece = file.get_slice(key)
        last = first + piece.get_shape()[0]
        if first < stop and last > start:
            yield piece[max(start - first, 0) : min(stop, last) - first]
