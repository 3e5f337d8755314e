"""benchmarks/results/*.json -> docs/benchmarks.md: `python -m benchmarks.table`."""

import json
from pathlib import Path
from typing import Any

from benchmarks.speed.targets import targets

ROOT = Path(__file__).parent
OUTPUT = ROOT.parent / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Made by `python -m benchmarks.table` from `benchmarks/results/*.json`. Times are CPU times of one core, children
included: the median of the rounds in which all rows of a table took turns, and the range. The ratio is to the first
row, taken within each round; the median of those.
"""
GPU = """## Speed on a GPU

`make gpu-check`; no GPU was at hand yet.
"""


def main() -> None:
    """Writes the page."""
    parts = [_section(json.loads(path.read_text())) for path in sorted((ROOT / "results").glob("*.json"))]
    if not (ROOT / "results" / "speed_cuda.json").exists():
        parts.append("\n".join([GPU, *_figures(targets({}, peak=0.0)), ""]))
    OUTPUT.write_text("\n".join([HEAD, *parts]))


def _section(results: dict[str, Any]) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    lines = [f"## {results['title']}", "", f"`{results['command']}`; {machine}", ""]
    lines += [results["note"], ""] if results.get("note") else []
    for heading, group in results["figures"].items():
        lines += [f"### {heading}", "", *_table(group), ""]
    return "\n".join(lines)


def _table(group: dict[str, Any]) -> list[str]:
    if not all(isinstance(value, dict) for value in group.values()):
        return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in group.items())]
    if all("of_floor" in value for value in group.values()):
        return _speed(group)
    if not all("ms_per_item" in value for value in group.values()):
        return _figures(group)
    rows = [
        f"| {name} | {_digits(value['ms_per_item'])} ({_digits(value['lowest'])} - {_digits(value['highest'])}) | "
        f"{1000 / value['ms_per_item']:,.0f} | {value['ratio']:.2f} |"
        for name, value in group.items()
    ]
    return ["| | ms/item (range) | items/s/core | times the first |", "|---|---|---|---|", *rows]


def _figures(group: dict[str, Any]) -> list[str]:
    """Rows of the same figures, each with its own heading."""
    headings = list(next(iter(group.values())))
    rows = [[name, *(_number(row[heading]) for heading in headings)] for name, row in group.items()]
    lines = [["", *headings], ["---"] * (len(headings) + 1), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _speed(group: dict[str, Any]) -> list[str]:
    """Rows of benchmarks/speed/figures.py."""
    rows = [
        [
            name, f"{value['batch']} x {value['shape']}", _range(value, "seconds", "lowest", "highest"),
            f"{value['frames_per_second']:,.3g}" if value["frames_per_second"] else "",
            _digits(value["parameters"] / 1e6), _digits(value["tflop"]), _digits(value["floor_s"]),
            _range(value, "of_floor", "of_floor_lowest", "of_floor_highest", "{:.0%}".format),
            f"{value['of_mm']:.0%}", str(value["rounds"]), _difference(value),
        ]
        for name, value in group.items()
    ]  # fmt: skip
    headings = ["", "batch x t x h x w", "seconds (range)", "frames/s", "million parameters", "TFLOP", "floor, s",
                "of the ceiling (range)", "of torch.mm's rate", "rounds", "differs from plain by"]  # fmt: skip
    lines = [headings, ["---"] * len(headings), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _difference(value: dict[str, Any]) -> str:
    is_known = value["path"] != "plain" and value["differs"] is not None
    return f"{value['differs']:.1g}" if is_known else ""


def _range(value: dict[str, Any], middle: str, low: str, high: str, words: Any = None) -> str:
    words = words or _digits
    return f"{words(value[middle])} ({words(value[low])} - {words(value[high])})"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def _digits(value: float) -> str:
    return f"{value:.3g}"


if __name__ == "__main__":
    main()
