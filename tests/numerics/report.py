"""Runs the comparisons with the official code and prints the table of largest differences.

`python -m tests.numerics.report` prints it; with `docs/fidelity.md` as argument it also rewrites the table in that
file. Reads the reference arrays of MAGVIT_GOLDEN_DIR.
"""

import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.numerics.agreement import AGREEMENTS, Agreement

FOLDER = Path(__file__).parent
START, END = "<!-- written by python -m tests.numerics.report -->", "<!-- end -->"
HEAD = ["component", "compared", "times", "largest difference", "tolerance", "why this tolerance", "test"]


class Collector:
    """A pytest plugin that keeps what the tests recorded."""

    def __init__(self) -> None:
        self.agreements: list[Agreement] = []

    def pytest_unconfigure(self, config: pytest.Config) -> None:
        """Takes the record before the run's memory goes."""
        self.agreements = config.stash.get(AGREEMENTS, [])


def main(arguments: Sequence[str]) -> int:
    """Runs tests/numerics; returns pytest's exit status."""
    if not os.environ.get("MAGVIT_GOLDEN_DIR"):
        sys.exit("MAGVIT_GOLDEN_DIR is not set: nothing to compare with; set it to the folder of the official arrays")
    collector = Collector()
    status = pytest.main(["-q", "--no-header", "-p", "no:cacheprovider", str(FOLDER)], plugins=[collector])
    table = markdown(by_what(collector.agreements))
    sys.stdout.write(table + "\n")
    if arguments and status == 0:
        write_into(Path(arguments[0]), table)
    return int(status)


def by_what(agreements: Sequence[Agreement]) -> list[list[Agreement]]:
    """The comparisons of one thing, of all its cases, the one nearest to its tolerance first."""
    groups: dict[tuple[str, str], list[Agreement]] = defaultdict(list)
    for made in agreements:
        groups[made.component, made.what].append(made)
    return [sorted(group, key=lambda made: made.tolerance - made.difference) for _, group in sorted(groups.items())]


def markdown(groups: Sequence[Sequence[Agreement]]) -> str:
    """The table, a line for each thing compared."""
    rows = [HEAD, ["---"] * len(HEAD), *map(_cells, groups)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cells(group: Sequence[Agreement]) -> list[str]:
    worst, times = group[0], str(len(group))
    unit = " rel." if worst.is_relative else ""
    difference, tolerance = ("exact" if v == 0 else f"{v:.1e}{unit}" for v in (worst.difference, worst.tolerance))
    test = worst.test.removeprefix("tests/numerics/").split("[")[0]
    return [worst.component, worst.what, times, difference, tolerance, worst.reason, f"`{test}`"]


def write_into(path: Path, table: str) -> None:
    """Replaces what stands between the two marks."""
    before, rest = path.read_text().split(START)
    path.write_text(f"{before}{START}\n{table}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
