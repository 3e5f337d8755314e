"""Spells on the ranks of a world, see `nursery.Nursery.begin`: trouble that hangs on the batches, as that of bad data
does, so that a run which goes back and leaves them out gets past it.
"""

import json
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magvit_scale.commit import step as commit_step
from magvit_scale.training import recovery, rollback
from magvit_scale.vqgan import step as vqgan_step

STEPS = {"vqgan": "vqgan_step", "commit": "commit_step"}


class Batches:
    """Numbers the batches of a program in this process; `number` is that of the one in work, `num_parts` says in how
    many micro-batches it comes.

    Args:
        program: `vqgan` or `commit`.
        record: receives one line of JSON a step: steps completed, number of the batch, its content's sum per sample.
    """

    def __init__(self, program: str, record: Path | None = None) -> None:
        self.module, self.record = import_module(f"magvit_scale.train_{program}"), record
        self.number, self.num_parts = -1, 0
        self._source, self._step = self.module.training_batches, getattr(self.module, STEPS[program])
        self.module.training_batches = self._numbered
        setattr(self.module, STEPS[program], self.step)

    def step(self, training: Any, micro_batches: Any, step: int, *more: Any) -> dict[str, Tensor]:
        """The program's step."""
        self.num_parts = len(micro_batches)
        if self.record:
            with self.record.open("a") as file:
                file.write(json.dumps([step, self.number, [sum_of(part) for part in micro_batches]]) + "\n")
        return dict(self._step(training, micro_batches, step, *more))

    def _numbered(self, *arguments: Any, start_step: int, **more: Any) -> Iterator[Any]:
        for number, batch in enumerate(self._source(*arguments, start_step=start_step, **more), start_step):
            self.number = number
            yield batch


def sum_of(part: Tensor | Mapping[str, Tensor]) -> list[float]:
    """One figure per sample of a micro-batch."""
    content = part if isinstance(part, Tensor) else part["tokens"]
    return [float(total) for total in content.double().flatten(1).sum(1)]


def record(rank: int, *, program: str, folder: str) -> None:
    """Only writes down which batches are met; `Batches.record` of every rank."""
    Batches(program, Path(folder) / f"rank{rank}.jsonl")


def scale_metric(rank: int, *, program: str, folder: str, metric: str, factor: float, bad: list[int]) -> None:
    """Every rank reports `factor` times the value of `metric` for the batches `bad`."""
    batches = Batches(program, Path(folder) / f"rank{rank}.jsonl")
    step = batches.step

    def scaled(*arguments: Any) -> dict[str, Tensor]:
        metrics = step(*arguments)
        return metrics | ({metric: metrics[metric] * factor} if batches.number in bad else {})

    setattr(batches.module, STEPS[program], scaled)


def spoil(rank: int, *, program: str, folder: str, what: str, bad: list[int], struck: int, killed: str = "") -> None:
    """On rank `struck` the `loss` or its `gradient` is not finite for the last micro-batch of the batches `bad`. With
    `killed`, the whole run is killed `before` its first rollback is recorded, or `after` that.
    """
    batches = Batches(program, Path(folder) / f"rank{rank}.jsonl")
    if killed and rank == 0:
        _kill_at_rollback(killed)
    if rank != struck:
        return
    module, name = (commit_step, "compute_commit_loss") if program == "commit" else (vqgan_step, "quantizer_loss")
    compute, met = getattr(module, name), list[int]()

    def spoilt(*arguments: Any) -> Any:
        met.append(batches.number)
        loss, is_last = compute(*arguments), met.count(batches.number) % batches.num_parts == 0
        if batches.number not in bad or not is_last:
            return loss
        return replace(loss, total=SPOILT[what](loss.total)) if program == "commit" else SPOILT[what](loss)

    setattr(module, name, spoilt)


class _Spoilt(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.nan


SPOILT = {"loss": lambda value: value * torch.nan, "gradient": _Spoilt.apply}


def _kill_at_rollback(when: str) -> None:
    write = rollback.record

    def struck(*arguments: Any) -> None:
        if when == "after":
            write(*arguments)
        os.kill(0, signal.SIGKILL)

    recovery.rollback.record = struck
