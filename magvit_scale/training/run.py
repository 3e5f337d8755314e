"""What the loop works with: a program's part of it, and the tools that all parts of the loop share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from magvit_scale.config import HealthConfig, RunConfig
from magvit_scale.training.checkpoint import TrainingState, Writer
from magvit_scale.training.ranks import Ranks
from magvit_scale.training.signals import StopRequest
from magvit_scale.training.tracking import Tracker
from magvit_scale.training.watchdog import Watchdog

End = Literal["done", "stopped", "rolled back"]
Metrics = Mapping[str, Tensor]


class TrainingConfig(Protocol):
    """What both stages' configurations have."""

    @property
    def run(self) -> RunConfig:
        """The run folder and how it is filled."""

    @property
    def health(self) -> HealthConfig:
        """What is watched."""


@dataclass(frozen=True)
class Work:
    """What a program gives the loop to do."""

    state: TrainingState
    batches: Callable[[int], Iterator[Any]]
    """Number of batches that were met or left out -> this rank's batches from there, without an end."""
    update: Callable[[Any, int], Metrics]
    """(batch, steps completed) -> this rank's scalars; one optimiser step. Collective."""
    sample: Callable[[Tracker | None, int], None]
    """Shows what the model does after so many steps; has a tracker on the main rank. Collective."""
    finish: Callable[[], object]
    """Makes of the last checkpoint what later stages read. Main rank only, no collectives."""
    data: str
    """Fingerprint of the data set: another one is refused at a resume."""
    frames_per_sample: int = 0
    notes: Sequence[str] = ()
    """Lines for log.txt, what a reader of the run must know."""


@dataclass(frozen=True)
class Run:
    """What all parts of the loop need."""

    config: TrainingConfig
    folder: Path
    ranks: Ranks
    work: Work
    writer: Writer
    stop: StopRequest
    watchdog: Watchdog
