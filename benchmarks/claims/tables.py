"""results/claims/*.json -> rows of figures over seeds, and those as Markdown."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from benchmarks.claims.measures import steps_until
from benchmarks.claims.spread import Spread, spread_of, verdict

Figures = Mapping[str, Any]
Rows = dict[str, list[Figures]]
"""What each seed of a row found."""


@dataclass(frozen=True)
class Measure:
    """A column."""

    name: str
    digits: int
    is_lower_better: bool
    read: Callable[[Figures], float | None]
    missing: str = ""
    """What a cell says where some of a row's seeds have no figure; filled with how many, and of how many."""

    def spread(self, found: Sequence[Figures]) -> Spread | None:
        """Over a row's seeds; None where there is no such figure."""
        return spread_of([self.read(figures) for figures in found])


def cross_entropy(masks: str, tasks: Sequence[str], name: str) -> Measure:
    """Mean over tasks of the nats per masked token."""

    def read(figures: Figures) -> float | None:
        found = figures.get("cross_entropy")
        return mean(found[masks][task] for task in tasks) if found else None

    return Measure(name, 3, True, read)


def generated(key: str, tasks: Sequence[str], name: str) -> Measure:
    """Mean over tasks of a figure of generated clips."""

    def read(figures: Figures) -> float | None:
        found = [figures.get("generated", {}).get(task, {}).get(key) for task in tasks]
        return mean(found) if None not in found else None

    return Measure(name, 4 if key == "frechet" else 2, key == "frechet", read)


def rows_by(results: Figures, label: Callable[[Figures], str | None]) -> Rows:
    """Points by the label that their settings give; None leaves a point out."""
    rows: Rows = {}
    for point in results["figures"].values():
        if (name := label(point["settings"])) is not None:
            rows.setdefault(name, []).append(point["figures"])
    return rows


def baseline_rows(results: Figures) -> Rows:
    """What needs no transformer."""
    found = results["figures"]["baselines"]["figures"]
    return {
        "token frequencies per position": [{"cross_entropy": found["cross_entropy"]}],
        "the condition's canvas itself": [{"generated": found["canvas"]}],
        "the tokenizer's reconstruction": [{"generated": found["reconstruction"]}],
    }


def from_clip(found: Sequence[Figures]) -> list[Figures]:
    """The figures of `latent` conditioning that is shown the true clip's tokens."""
    return [{name: figures[f"{name}_of_clip"] for name in ("cross_entropy", "generated")} for figures in found]


def table(rows: Rows, measures: Sequence[Measure], baselines: Rows | None = None) -> list[str]:
    """Markdown; every figure of `rows` below the first with its verdict against the first."""
    lines = [["", *(measure.name for measure in measures)], ["---"] * (len(measures) + 1)]
    first = next(iter(rows.values()))
    for name, found in rows.items():
        lines.append([name, *(_cell(measure, found, None if found is first else first) for measure in measures)])
    for name, found in (baselines or {}).items():
        if any(cells := [_cell(measure, found, None) for measure in measures]):
            lines.append([f"*{name}*", *cells])
    return [f"| {' | '.join(line)} |" for line in lines]


def _cell(measure: Measure, found: Sequence[Figures], first: Sequence[Figures] | None) -> str:
    own = measure.spread(found)
    if own is None:
        return measure.missing.format(sum(measure.read(figures) is None for figures in found), len(found))
    compared = measure.spread(first) if first else None
    word = "" if compared is None else f" {verdict(own, compared, is_lower_better=measure.is_lower_better)}"
    return own.text(measure.digits) + word


def at_step(step: int, key: str, name: str) -> Measure:
    """A score of the reconstructions after so many steps."""
    return Measure(name, 2, False, lambda figures: figures["by_step"][str(step)][key])


def steps_to(target: float, name: str) -> Measure:
    """Steps until the PSNR of moving pixels stays above a target."""

    def read(figures: Figures) -> float | None:
        return steps_until(target, {int(step): found["psnr_moving"] for step, found in figures["by_step"].items()})

    return Measure(name, 0, True, read, missing="not reached by {} of {}")
