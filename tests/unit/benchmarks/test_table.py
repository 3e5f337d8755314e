"""docs/benchmarks.md from the results' files."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks import table
from benchmarks.speed.figures import Figure

FIGURE = Figure(
    path="plain", arithmetic="fp32", batch=2, shape="16 x 128 x 128", parameters=87_300_000, rounds=3, seconds=2.0,
    lowest=1.5, highest=2.5, frames_per_second=16.0, tflop=0.5, floor_s=1.0, of_floor=0.5, of_floor_lowest=0.4,
    of_floor_highest=0.625, of_mm=1.25, reference="product", times_reference=10.0, times_reference_lowest=9.0,
    times_reference_highest=11.0, differs=0.0,
)  # fmt: skip
FAST = replace(FIGURE, path="fast", differs=0.00123)


def page(folder: Path, monkeypatch: pytest.MonkeyPatch, *devices: str) -> list[str]:
    monkeypatch.setattr(table, "ROOT", folder)
    monkeypatch.setattr(table, "OUTPUT", folder / "page.md")
    (folder / "results").mkdir()
    for device in devices:
        results = {"title": f"Speed on {device}", "command": "make bench", "machine": {}, "note": "",
                   "figures": {"Figures": {"tokenize": asdict(FIGURE), "fast": asdict(FAST)}}}  # fmt: skip
        (folder / "results" / f"speed_{device}.json").write_text(json.dumps(results))
    table.main()
    return (folder / "page.md").read_text().splitlines()


def test_a_figure_stands_beside_its_floor_and_an_empty_one_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = page(tmp_path, monkeypatch, "cpu")
    row = "2 x 16 x 128 x 128 | 2 (1.5 - 2.5) | 16 | 87.3 | 0.5 | 1 | 50% (40% - 62%) | 125% | 3"
    assert f"| tokenize | {row} |  |" in lines
    assert f"| fast | {row} | 0.001 |" in lines
    assert "| tokenize | 10,000 frames/s | not measured | not measured |" in lines


def test_nothing_is_missing_once_a_gpu_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = page(tmp_path, monkeypatch, "cuda")
    assert "## Speed on cuda" in lines
    assert not any("not measured" in line for line in lines)
