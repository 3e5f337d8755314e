"""Curves and bars: in the page's colours, smoothed, one line for each run."""

import re

import numpy as np

from magvit_scale.page.plots import DASHES, RUNS, curve, line_sample, overlaid, smoothed, sorted_bars


def test_plots_are_inline_svg_in_the_pages_colours() -> None:
    for svg in (
        curve(range(100), [10.0 ** -(step / 20) for step in range(100)]),
        curve([1], [float("nan")]),
        sorted_bars([3, 0, 9]),
    ):
        assert svg.startswith("<svg")
        assert "<style" not in svg
        assert "currentColor" in svg
    np.testing.assert_allclose(smoothed(np.full(90, 2.0)), 2.0)
    np.testing.assert_allclose(smoothed(np.arange(90.0))[10:80], np.arange(10.0, 80.0))


def test_runs_over_each_other_have_lines_of_their_own() -> None:
    svg = overlaid({0: ([1, 2, 3], [3.0, 2.0, 1.0]), 2: ([1, 2], [3.0, 3.0])})
    assert set(re.findall(r"var\(--run-\d\)", svg)) == {"var(--run-1)", "var(--run-3)"}
    assert "var(--run-3)" in line_sample(2)
    assert line_sample(len(RUNS)) == line_sample(0)
    assert len({line_sample(run).split("stroke-dasharray")[1] for run in range(len(DASHES))}) == len(RUNS)


def test_letters_are_no_smaller_than_14_pixels_where_a_plot_is_narrowest() -> None:
    svg = curve([1, 2], [1e-3, 1.0])
    assert 'viewBox="0 0 300 150"' in svg
    assert set(re.findall(r"font-size: (\d+)px", svg)) == {"14"}
