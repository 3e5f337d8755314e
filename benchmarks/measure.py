"""CPU time of competitors in turn, and what becomes of it: a JSON file per benchmark.

Machines are shared, so wall time says nothing: what counts is the process's own CPU time with its children's, the
median over rounds in which all competitors take their turn, and the ratio of two medians of one run.
"""

import gc
import os
import platform
import resource
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from magvit_scale.files import write_json

Work = Callable[[], int]
"""Does the work once and returns how many items that were."""


@dataclass(frozen=True)
class Measured:
    """CPU time of one competitor."""

    name: str
    ms_per_item: float
    """Median over the rounds."""
    lowest: float
    highest: float
    ratio: float
    """To the first competitor: the median over the rounds of the ratio within a round, which a machine that is now
    faster and now slower leaves alone."""
    items: int
    """Of one round."""
    rounds: int

    @property
    def items_per_second(self) -> float:
        """Per second of one core."""
        return 1000 / self.ms_per_item


def cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def compare(competitors: Mapping[str, Work], rounds: int = 5) -> dict[str, Measured]:
    """Runs all competitors once to warm up, then in turn `rounds` times; ratios are to the first."""
    found: dict[str, list[float]] = {name: [] for name in competitors}
    items = {name: work() for name, work in competitors.items()}
    for _ in range(rounds):
        for name, work in competitors.items():
            gc.collect()
            start = cpu_seconds()
            count = work()
            found[name].append(1000 * (cpu_seconds() - start) / count)
    return summarise(found, items)


def summarise(found: Mapping[str, Sequence[float]], items: Mapping[str, int]) -> dict[str, Measured]:
    """Medians and ratios of the milliseconds per item that each round gave, competitor by competitor."""
    first = next(iter(found.values()))
    return {
        name: Measured(
            name,
            ms_per_item=statistics.median(ms),
            lowest=min(ms),
            highest=max(ms),
            ratio=statistics.median(own / other for own, other in zip(ms, first, strict=True)),
            items=items[name],
            rounds=len(ms),
        )
        for name, ms in found.items()
    }


def resident_mb() -> float:
    """Resident size of this process now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def machine() -> dict[str, Any]:
    """What a figure was measured on; no names."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load": [round(value, 1) for value in os.getloadavg()],
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def write_results(path: Path, title: str, command: str, groups: Mapping[str, Any], note: str = "") -> None:
    """Writes one benchmark's figures; `groups` maps a heading to its Measured by name, or to plain figures, and `note`
    is what a reader must know of them.
    """
    figures = {
        heading: {name: asdict(value) if isinstance(value, Measured) else value for name, value in group.items()}
        for heading, group in groups.items()
    }
    write_json(path, {"title": title, "command": command, "note": note, "machine": machine(), "figures": figures})
