"""Curves and bars as inline SVG that takes its colours and letters from the page, so it follows light and dark."""

import io
import re
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

INK, ACCENT = "#010101", "#020202"
RUNS = ("#030301", "#030302", "#030303", "#030304", "#030305", "#030306")
"""Stand-ins that `_inline` turns into the page's own colours."""
DASHES = ((1, 0), (6, 2), (2, 1.5), (8, 2, 2, 2), (4, 4), (1, 1))
"""On and off, in widths of the line: runs are told apart without their colours, too."""
WIDTH, HEIGHT, LETTER = 300, 150, 14
"""Of a curve, in pixels where it is as narrow as the page lets it be; wider, everything grows."""
MAX_POINTS = 240
LOG_RANGE = 20.0
"""A curve is drawn on a log scale where its largest value is this many times its smallest."""

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "magvit_scale",  # the same input gives the same bytes
    "font.size": LETTER,
    "font.sans-serif": ["DejaVu Sans"],  # to measure by; the page's style has the last word
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.linewidth": 0.8,
    "axes.edgecolor": INK,
    "axes.formatter.limits": (-3, 4),
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.8,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "path.simplify": True,
}


def curve(steps: Sequence[int], values: Sequence[float]) -> str:
    """One metric over the steps: as logged (thin) and smoothed (thick).

    Args:
        steps: ascending.
        values: one per step; those that are not finite are left out.

    Returns:
        SVG.
    """
    return _curves([(steps, values)], [ACCENT], [DASHES[0]])


def overlaid(curves: Mapping[int, tuple[Sequence[int], Sequence[float]]]) -> str:
    """One metric of several runs.

    Args:
        curves: number of the run, which decides its line as in `line_sample` -> as for `curve`.

    Returns:
        SVG.
    """
    colours = [RUNS[run % len(RUNS)] for run in curves]
    return _curves(list(curves.values()), colours, [DASHES[run % len(DASHES)] for run in curves])


def line_sample(run: int) -> str:
    """The line of a run for a legend. SVG."""
    dashes = " ".join(f"{2.5 * length:g}" for length in DASHES[run % len(DASHES)])
    path = f'<path d="M0 6h40" stroke="var(--run-{run % len(RUNS) + 1})" stroke-width="3" stroke-dasharray="{dashes}"/>'
    return f'<svg class="line" viewBox="0 0 40 12" aria-hidden="true">{path}</svg>'


def sorted_bars(counts: Sequence[int]) -> str:
    """How often each code occurs, most frequent first, with the even share as a line. SVG."""
    heights = np.sort(np.asarray(counts, dtype=float))[::-1]
    shares = 100 * heights / max(heights.sum(), 1)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(2 * WIDTH, 180)
        axes.bar(np.arange(1, len(shares) + 1), shares, width=0.8 if len(shares) <= 256 else 1.0, color=ACCENT)
        axes.axhline(100 / len(shares), color=INK, linewidth=1, dashes=(3, 3))
        axes.annotate(
            "even use", (len(shares), 100 / len(shares)), (0, 3), textcoords="offset points", ha="right", color=INK
        )
        axes.set_xlim(0, len(shares) + 1)
        axes.set_xlabel("codes, most frequent first", color=INK)
        axes.set_ylabel("% of tokens", color=INK)
        return _inline(figure)


def smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A centred mean over a fifteenth of the points; at the ends over those that exist."""
    window = 2 * (len(values) // 30) + 1
    kernel = np.ones(window)
    return (
        np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")
        if window > 1
        else values
    )


def is_logarithmic(values: Sequence[float]) -> bool:
    """Whether a log scale shows these values better: all above 0, and far apart."""
    finite = [value for value in values if isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) > LOG_RANGE * min(finite)


def _curves(
    curves: Sequence[tuple[Sequence[int], Sequence[float]]],
    colours: Sequence[str],
    dashes: Sequence[tuple[float, ...]],
) -> str:
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(WIDTH, HEIGHT)
        if is_logarithmic([value for _, values in curves for value in values]):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(numticks=4))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        for (steps, values), colour, dash in zip(curves, colours, dashes, strict=True):
            x, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
            x, y = x[np.isfinite(y)], y[np.isfinite(y)]
            axes.plot(*_thinned(x, y), color=colour, linewidth=1, alpha=0.35)
            axes.plot(*_thinned(x, smoothed(y)), color=colour, linewidth=2, dashes=dash, solid_capstyle="round")
        return _inline(figure)


def _axes(width_px: float, height_px: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width_px / 72, height_px / 72), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _thinned(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    stride = max(1, -(-len(x) // MAX_POINTS))
    return x[::stride], y[::stride]


def _inline(figure: Figure) -> str:
    """An svg element that can stand in a page: no prolog, no global style, no ids but of what it uses itself."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="(?![mp][0-9a-f]{10})[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 aria-hidden="true"', svg, count=1)
    for number, stand_in in enumerate(RUNS, start=1):
        svg = svg.replace(stand_in, f"var(--run-{number})")
    return svg.replace(INK, "currentColor").replace(ACCENT, "var(--accent)")
