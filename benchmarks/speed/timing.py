"""Seconds of a piece of work: CPU time of the process on a CPU, events on a GPU."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch

from benchmarks.measure import cpu_seconds
from benchmarks.speed.plan import Setting

Work = Callable[[], Any]
SHORTEST_S = 0.1
"""A measurement repeats its work for at least so long."""
LONG_S = 1.0
"""Work of so many seconds runs once per measurement, however slow its first run was."""


@dataclass(frozen=True)
class Timed:
    """Work that has been warmed up, and how often one measurement repeats it."""

    work: Work
    device: torch.device
    repeats: int = 1

    def seconds(self) -> float:
        """Of one run, the mean over the repeats: of one CPU core, children included, or of the GPU's stream."""
        if self.device.type == "cuda":
            return self._seconds_on_gpu()
        start = cpu_seconds()
        for _ in range(self.repeats):
            self.work()
        return (cpu_seconds() - start) / self.repeats

    def _seconds_on_gpu(self) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        start.record()
        for _ in range(self.repeats):
            self.work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / self.repeats


def warmed_up(work: Work, device: torch.device) -> Timed:
    """Decides on the repeats by the second run on a CPU and the third on a GPU; for work of seconds by the first."""
    for _ in range(3 if device.type == "cuda" else 2):
        seconds = Timed(work, device).seconds()
        if device.type == "cpu" and seconds > LONG_S:
            break
    return Timed(work, device, repeats_for(seconds))


def repeats_for(seconds: float) -> int:
    """How often work of so many seconds is repeated in one measurement."""
    return max(1, ceil(SHORTEST_S / max(seconds, 1e-6)))


def inferring(work: Work, setting: Setting) -> Work:
    """The work without gradients, under autocast for bf16."""

    @torch.no_grad()
    def inner() -> Any:
        with torch.autocast(setting.device.type, dtype=torch.bfloat16, enabled=setting.arithmetic == "bf16"):
            return work()

    return inner
