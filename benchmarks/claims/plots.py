"""Figures over seeds as SVG: every seed a dot, their mean a line."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.claims.tables import Measure, Rows

STYLE: Any = {
    "svg.hashsalt": "magvit_scale",  # the same figures give the same bytes
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.2,
}
WIDTH, HEIGHT, ROW_HEIGHT = 3.0, 2.6, 0.3  # inches


def draw_rows(path: Path, rows: Rows, measures: Sequence[Measure]) -> None:
    """A panel per measure, a line per row."""
    names = list(rows)[::-1]
    with _panels(path, len(measures), 0.9 + ROW_HEIGHT * len(names)) as panels:
        for axes, measure in zip(panels, measures, strict=True):
            for place, name in enumerate(names):
                if spread := measure.spread(rows[name]):
                    axes.plot(spread.values, [place] * len(spread.values), "o", color="tab:blue", markersize=3.5)
                    axes.plot([spread.mean] * 2, [place - 0.3, place + 0.3], color="black")
            axes.set_yticks(range(len(names)), names if axes is panels[0] else [""] * len(names))
            axes.set_ylim(-0.6, len(names) - 0.4)
            axes.set_title(measure.name, fontsize=8)


def draw_curves(
    path: Path, panels: Mapping[str, Mapping[str, Rows]], measures: Mapping[str, Measure], level: float | None = None
) -> None:
    """A panel per title; in it a curve per name, of a measure over numbers of steps.

    Args:
        path: of the SVG.
        panels: title -> curve -> rows by number of steps.
        measures: of each title.
        level: a baseline drawn across every panel.
    """
    with _panels(path, len(panels), HEIGHT) as drawn:
        for axes, (title, curves) in zip(drawn, panels.items(), strict=True):
            for color, (name, rows) in zip(matplotlib.color_sequences["tab10"], curves.items(), strict=False):
                _draw_curve(axes, name, rows, measures[title], color)
            if level is not None:
                axes.axhline(level, color="grey", linestyle=":", label="the clip's mean image")
            axes.set_title(title, fontsize=8)
            axes.set_xlabel("steps")
            axes.set_ylabel(measures[title].name if measures[title].name != title else "")
            if len(curves) > 1 or level is not None:
                axes.legend(fontsize=7, frameon=False)


def _draw_curve(axes: Axes, name: str, rows: Rows, measure: Measure, color: Any) -> None:
    spreads = {int(step): measure.spread(found) for step, found in rows.items()}
    points = [(step, value) for step, spread in spreads.items() if spread for value in spread.values]
    axes.plot(*zip(*points, strict=True), "o", color=color, markersize=2.5, alpha=0.6)
    means = {step: spread.mean for step, spread in spreads.items() if spread}
    axes.plot(list(means), list(means.values()), color=color, label=name)


@contextmanager
def _panels(path: Path, count: int, height: float) -> Iterator[list[Axes]]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH * count, height), layout="constrained")
        yield list(figure.subplots(1, count, squeeze=False)[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})
