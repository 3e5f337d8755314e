"""Which rollbacks a run folder has seen, and what they change.

A step is a function of (config, seed, step), so that going back alone would lead into the same trouble again. After a
rollback the data go on behind the trouble: the steps that were taken back are made with batches no step has met. So
what a step computes is a function of (config, seed, step, rollbacks.jsonl).
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "rollbacks.jsonl"


@dataclass(frozen=True)
class Rollback:
    """One return to an earlier step."""

    rule: str
    found: int
    """Steps begun when trouble was found: no batch of theirs is met again."""
    resumed: int
    """Step of the checkpoint from which the run went on; 0 for the start."""


def text(folder: Path) -> str:
    """What a run folder's rollbacks.jsonl holds; nothing where there is none. Main rank, which tells the others."""
    path = folder / FILE
    return path.read_text() if path.is_file() else ""


def parse(lines: str) -> list[Rollback]:
    """All rollbacks in such a text, oldest first."""
    return [Rollback(**json.loads(line)) for line in lines.splitlines()]


def record(folder: Path, rollback: Rollback) -> None:
    """Adds one, written aside and renamed. Main rank only, after the newer checkpoints were deleted: killed between
    the two, the run comes to the same trouble and rolls back again; the other way round it would go on behind it.
    """
    aside = folder / f"{FILE}.tmp"
    with aside.open("w") as file:
        file.writelines(json.dumps(asdict(one)) + "\n" for one in [*parse(text(folder)), rollback])
        file.flush()
        os.fsync(file.fileno())
    aside.replace(folder / FILE)


def skipped_batches(rollbacks: Sequence[Rollback]) -> int:
    """How many batches later than its own step a step finds its data."""
    return sum(rollback.found - rollback.resumed for rollback in rollbacks)


def choose_checkpoint(steps: Sequence[int], since: int) -> int | None:
    """The newest of the checkpoints' steps before trouble began; None where all are as young."""
    return max((step for step in steps if step < since), default=None)
