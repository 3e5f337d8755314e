"""Which checkpoints there are, which of them are whole, and which stay."""

import json
import shutil
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from magvit_scale.config import RunConfig


@dataclass(frozen=True)
class Retention:
    """Checkpoints that stay: the newest ones, those of certain steps, and the best by a logged value."""

    newest: int = 2
    every: int = 0
    """Those whose step it divides; 0: none."""
    best_metric: str | None = None
    """Name of a logged value, as it stood when the checkpoint was written; None: no best one."""
    best_is: str = "lowest"

    @staticmethod
    def of(run: RunConfig) -> "Retention":
        """As a run's configuration says."""
        return Retention(run.keep_checkpoints, run.keep_every, run.keep_best, run.best_is)


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None; one whose files do not match its COMPLETE list is passed over."""
    return next((path for path in newest_first(folder) if is_complete(path)), None)


def newest_first(folder: Path) -> list[Path]:
    """All that bear a checkpoint's name, complete or not."""
    return sorted((path for path in folder.glob("step_*") if path.suffix != ".tmp"), reverse=True)


def is_complete(checkpoint: Path) -> bool:
    """Whether COMPLETE is there, and all files that it lists, in their sizes."""
    try:
        files = json.loads((checkpoint / "COMPLETE").read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):  # missing, cut short, or no such list
        return False
    return all((checkpoint / name).is_file() and (checkpoint / name).stat().st_size == size
               for name, size in files.items())  # fmt: skip


def prune(folder: Path, retention: Retention) -> None:
    """Removes all others, incomplete ones too. Main rank only."""
    complete = [path for path in newest_first(folder) if is_complete(path)]
    kept = {*complete[: retention.newest], *_best(complete, retention)}
    for path in newest_first(folder):
        is_milestone = retention.every and path in complete and int(path.name[len("step_") :]) % retention.every == 0
        if path not in kept and not is_milestone:
            shutil.rmtree(path)


def _best(complete: list[Path], retention: Retention) -> list[Path]:
    values = {path: _metric(path, retention.best_metric) for path in complete} if retention.best_metric else {}
    known = {path: value for path, value in values.items() if value is not None}
    if not known:
        return []
    # Of equal ones the newest: `complete` begins with it, and min and max take the first.
    choose = min if retention.best_is == "lowest" else max
    return [choose(known, key=lambda path: known[path])]


def _metric(checkpoint: Path, name: str | None) -> float | None:
    values = json.loads((checkpoint / "state.json").read_text()).get("metrics", {})
    value = values.get(name)
    return float(value) if value is not None and isfinite(value) else None
