"""Checkpoints that a kill at any moment cannot spoil, written while training goes on: aside, fsynced, COMPLETE last,
renamed.

`checkpoints/step_00001000/` holds everything that a run needs to go on, anywhere: rank_00000.safetensors per rank
(slices of weights, moments and averages), replicated.safetensors (what is the same on every rank), state.json (step,
place in the data, counters, versions), config.yaml and COMPLETE, the list of files with their sizes. Only safetensors,
JSON and YAML; what is read are slices, so any ZeRO stage and world size continues from any other's.

Every rank copies what it owns, and a thread of its own writes the copy; ranks meet in the folder and not in a
collective, so nothing waits for the disk.
"""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from magvit_scale.files import write_text
from magvit_scale.training.ranks import Ranks
from magvit_scale.training.retention import Retention, prune
from magvit_scale.training.slices import Read, open_slices, write_tensors

POLL_INTERVAL_S = 0.02
PATIENCE_S = 30.0
"""How long a run that ends by an error waits for its last checkpoint's other parts."""


class Partitioned(Protocol):
    """State of which every rank holds a part: an engine, an average."""

    def owned_slices(self) -> Iterator[tuple[str, int, Tensor]]:
        """(tensor name, first element, flat float32 view); together the ranks cover every tensor once."""

    def facts(self) -> dict[str, float]:
        """Numbers beside it, the same on every rank."""

    def restore(self, facts: dict[str, float], read: Read) -> None:
        """Takes over what another one wrote. Collective."""


@dataclass(frozen=True)
class TrainingState:
    """Everything a run must carry over."""

    partitioned: Mapping[str, Partitioned]
    replicated: Mapping[str, nn.Module]
    """With state that every rank holds whole."""


class Writer:
    """Writes the checkpoints of one run, one at a time.

    Args:
        folder: the run's checkpoints.
        state: what is written.
        ranks: of `distributed.start`.
        barrier: collective; makes the ranks wait for each other.
        retention: which checkpoints stay.
    """

    def __init__(
        self, folder: Path, state: TrainingState, ranks: Ranks, barrier: Callable[[], None], retention: Retention
    ):
        self.folder, self.state, self.ranks = folder, state, ranks
        self._barrier, self._retention = barrier, retention
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._copies: dict[str, Tensor] = {}
        self._closed = threading.Event()

    def save(self, about: Mapping[str, Any], config: str) -> None:
        """Begins a checkpoint; returns when the state is copied and may change again. Collective.

        Args:
            about: JSON for state.json; `step` is the number of optimiser steps completed.
            config: text of config.yaml.
        """
        self.wait()
        aside = self.folder / f"{_name(about['step'])}.tmp"
        if self.ranks.is_main:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        self._barrier()
        slices = {
            (key := f"{part}/{name}@{first}"): self._copy(key, view)
            for part, owner in self.state.partitioned.items()
            for name, first, view in owner.owned_slices()
        }
        files = {"config.yaml": config, "state.json": json.dumps({**about, "facts": _facts(self.state)}, indent=1)}
        replicated = _replicated(self.state) if self.ranks.is_main else {}
        self._writing = self._pool.submit(self._write, aside, slices, replicated, files)

    def _copy(self, key: str, view: Tensor) -> Tensor:
        """Into memory of the host that is kept from one checkpoint to the next: most of the time of a copy into new
        memory is spent on getting it.
        """
        if key not in self._copies:
            self._copies[key] = torch.empty(view.shape, dtype=view.dtype, pin_memory=view.is_cuda)
        return self._copies[key].copy_(view.detach())

    @property
    def is_writing(self) -> bool:
        """Whether this rank's thread is at work."""
        return self._writing is not None and not self._writing.done()

    @property
    def has_failed(self) -> bool:
        """Whether this rank's thread has ended with an error, which `wait` raises."""
        return self._writing is not None and self._writing.done() and self._writing.exception() is not None

    def wait(self) -> None:
        """Waits until this rank has nothing to write; the main rank until the checkpoint is complete.

        Raises:
            OSError: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def close(self, patience_s: float = PATIENCE_S) -> None:
        """Ends the thread, so that it cannot keep this process: at once where it has nothing to write, and else when
        the checkpoint is complete, or after so many seconds of waiting for a lost rank's part.
        """
        if self._writing:
            wait([self._writing], timeout=patience_s)
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _write(
        self, aside: Path, slices: dict[str, Tensor], replicated: dict[str, Tensor], files: dict[str, str]
    ) -> None:
        write_tensors(slices, aside / f"rank_{self.ranks.rank:05d}.safetensors")
        if not self.ranks.is_main:
            return
        write_tensors(replicated, aside / "replicated.safetensors")
        for name, text in files.items():
            write_text(aside / name, text)
        while len(list(aside.glob("rank_*.safetensors"))) < self.ranks.world_size:
            if self._closed.wait(POLL_INTERVAL_S):
                return
        _commit(aside)
        prune(self.folder, self._retention)


def step_of(checkpoint: Path) -> int:
    """Optimiser steps completed at a checkpoint."""
    return int(checkpoint.name.removeprefix("step_"))


def about(checkpoint: Path) -> dict[str, Any]:
    """Its state.json."""
    return dict(json.loads((checkpoint / "state.json").read_text()))


def load(checkpoint: Path, state: TrainingState) -> None:
    """Fills freshly built engines, averages and modules. Collective.

    Raises:
        Refusal: the checkpoint lacks a tensor of this run.
    """
    facts = about(checkpoint)["facts"]
    tensors = load_file(checkpoint / "replicated.safetensors")
    for name, module in state.replicated.items():
        module.load_state_dict({k.removeprefix(f"{name}/"): t for k, t in tensors.items() if k.startswith(f"{name}/")})
    with open_slices(checkpoint) as read:
        for name, part in state.partitioned.items():
            part.restore(facts[name], partial(_read_of, read, name))


def _read_of(read: Read, part: str, name: str, first: int, length: int) -> Tensor:
    return read(f"{part}/{name}", first, length)


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _facts(state: TrainingState) -> dict[str, dict[str, float]]:
    return {name: part.facts() for name, part in state.partitioned.items()}


def _replicated(state: TrainingState) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": tensor.detach().to("cpu", copy=True).contiguous()
        for name, module in state.replicated.items()
        for key, tensor in module.state_dict().items()
    }


def _commit(aside: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in sorted(aside.iterdir())}
    target = aside.with_suffix("")
    write_text(aside / "COMPLETE", json.dumps({"files": sizes}))
    _fsync(aside)
    shutil.rmtree(target, ignore_errors=True)
    os.rename(aside, target)
    write_text(target.parent / "latest", target.name)
    _fsync(target.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
