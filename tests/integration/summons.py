"""Spells on the ranks of a world, see `nursery.Nursery.begin`: signals at a step, and in the middle of the save after
it.
"""

import os
import signal
from collections.abc import Callable
from typing import Any

from magvit_scale.training import checkpoint, loop
from tests.integration import injections


def signal_at(rank: int, *, receivers: list[int], step: int, first: str, second: str = "") -> None:
    """Every receiver signals itself before the update of step `step` + 1, and once more in the save that follows."""
    if rank not in receivers:
        return
    update, save = loop._update, checkpoint.Writer.save

    def updating(run: Any, batch: Any, number: int, throughput: Any) -> Any:
        if number == step:
            _signal(first)
        return update(run, batch, number, throughput)

    def saving(self: checkpoint.Writer, about: Any, config: str) -> None:
        if about["step"] == step + 1:
            _signal(second)
            _before(self, "_write", lambda: _signal(second))
        save(self, about, config)

    loop._update = updating
    if second:
        checkpoint.Writer.save = saving  # type: ignore[method-assign]


def _before(owner: Any, name: str, action: Callable[[], None]) -> None:
    function = getattr(owner, name)

    def wrapped(*arguments: Any) -> Any:
        action()
        return function(*arguments)

    setattr(owner, name, wrapped)


def _signal(name: str) -> None:
    os.kill(os.getpid(), signal.Signals[name])


def recorded_leg(rank: int, *, program: str, folder: str, stop_at: int) -> None:
    """Writes down which batches are met, see `injections.Batches`; asks to stop within the step `stop_at`."""
    injections.record(rank, program=program, folder=folder)
    signal_at(rank, receivers=[0], step=stop_at - 1, first="SIGTERM")
