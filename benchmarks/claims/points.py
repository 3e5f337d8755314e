"""Points of an experiment: each in a process of its own, each kept as JSON and not computed again."""

import hashlib
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.measure import cpu_seconds, write_results
from magvit_scale.config import Refusal
from magvit_scale.files import write_json

Figures = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One training run or examination."""

    settings: Figures
    """All that decides its figures, as JSON has it."""
    work: Callable[[Path], Figures]
    """Takes a folder for what it needs on the way, which is removed when it is done."""


def compute(points: Mapping[str, Point], output: Path) -> dict[str, Figures]:
    """The points' records by name: `settings`, `figures`, `cpu_s`.

    Those that are there with the same settings are taken as they are. A point that was interrupted goes on where its
    programs do.

    Raises:
        Refusal: a point failed; its log is named.
    """
    for number, (name, point) in enumerate(points.items(), start=1):
        if not _is_done(_record(output, name), point):
            sys.stderr.write(f"{number} of {len(points)}: {name}\n")
            _compute_aside(name, point, output)
    return {name: json.loads(_record(output, name).read_text()) for name in points}


def write_claim(results: Path, name: str, title: str, records: Mapping[str, Figures]) -> None:
    """Writes results/NAME.json, each point with its settings, figures and CPU seconds."""
    versions = ", ".join(f"{library} {version(library)}" for library in ("torch", "deepspeed"))
    write_results(results / f"{name}.json", title, f"python -m benchmarks.claims.{name}", records, versions)
    sys.stdout.write(f"{results / name}.json\n")


def _is_done(path: Path, point: Point) -> bool:
    return path.is_file() and json.loads(path.read_text())["settings"] == point.settings


def _compute_aside(name: str, point: Point, output: Path) -> None:
    # By its settings too: a run that was interrupted is continued with the same ones only.
    digest = hashlib.sha256(json.dumps(point.settings, sort_keys=True).encode()).hexdigest()[:8]
    folder, log = output / "runs" / f"{name}_{digest}", output / "logs" / f"{name}.log"
    folder.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    # Forked, as torch and DeepSpeed take seconds to import; this process computes nothing with them itself.
    process = multiprocessing.get_context("fork").Process(
        target=_child, args=(point, folder, log, _record(output, name))
    )
    process.start()
    process.join()
    if process.exitcode:
        raise Refusal(f"{name}: ended with status {process.exitcode}; read {log}, then start again")
    shutil.rmtree(folder)


def _child(point: Point, folder: Path, log: Path, record: Path) -> None:
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    figures = point.work(folder)
    write_json(record, {"settings": point.settings, "figures": figures, "cpu_s": round(cpu_seconds(), 1)})


def _record(output: Path, name: str) -> Path:
    return output / "points" / f"{name}.json"
