"""How far a stage has come, read from what it has on the disk."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm.arguments import value
from slurm.stages import Call

TAIL_BYTES = 65_536
LOSSES = ("loss/total", "loss/reconstruction")


@dataclass(frozen=True)
class Progress:
    """Of a training run, from its metrics.jsonl."""

    step: int
    num_steps: int | None
    loss: float | None
    step_s: float | None
    """Seconds per step, lately."""

    @property
    def remaining_s(self) -> float | None:
        """Seconds to the last step at the present rate."""
        if self.num_steps is None or self.step_s is None:
            return None
        return max(0, self.num_steps - self.step) * self.step_s


def read(calls: Sequence[Call]) -> Progress | None:
    """The progress of the last run that a stage's programs have begun; None before its first log, or if none trains."""
    found = (_read(call.argv) for call in reversed(calls))
    return next((progress for progress in found if progress), None)


def _read(argv: Sequence[str]) -> Progress | None:
    folder = value(argv, "run.folder")
    line = read_metrics(Path(folder)) if folder else None
    if line is None:
        return None
    loss = next((line[name] for name in LOSSES if name in line), None)
    return Progress(int(line["step"]), value(argv, "run.steps"), loss, line.get("perf/step_s"))


def measure(calls: Sequence[Call]) -> str:
    """In words, what only grows when a stage gets on: of each program the newest complete checkpoint, or the number of
    files made.
    """
    return ", ".join(_measure(call.argv) for call in calls)


def _measure(argv: Sequence[str]) -> str:
    if folder := value(argv, "run.folder"):
        steps = [path.parent.name for path in Path(folder, "checkpoints").glob("step_*/COMPLETE")]
        return max(steps, default="step_00000000")
    output = value(argv, "output")
    return f"{sum(len(files) for _, _, files in os.walk(output or os.devnull))} files"


def read_metrics(folder: Path) -> dict[str, float] | None:
    """The newest value of every name that a training run has logged lately; None before its first log.

    Losses and validation stand on lines of their own.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        # The last piece is empty, or a line that is being written.
        lines = [json.loads(line) for line in file.read().split(b"\n")[:-1] if line.startswith(b"{")]
    return {name: value for line in lines for name, value in line.items()} or None
