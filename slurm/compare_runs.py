"""A table of what training runs logged last, the best first: the end of a sweep.

python -m slurm.compare_runs 'runs=[runs/a,runs/b]' output=runs/table.md
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from magvit_scale.config import CompareRunsConfig, parse, refusals_end_the_program
from slurm.progress import LOSSES, read_metrics

SHOWN = ("loss/", "validation/", "codebook/perplexity")


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the table and shows it. A run that has logged nothing is listed as such."""
    config = parse(CompareRunsConfig, argv)
    table = tabulate({Path(run).name: read_metrics(Path(run)) or {} for run in config.runs})
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(table)
    sys.stdout.write(table)


def tabulate(runs: dict[str, dict[str, float]]) -> str:
    """Markdown: a row for each run, columns for the metrics that any of them has, by the first loss of LOSSES."""
    names = sorted({name for metrics in runs.values() for name in metrics if name.startswith(SHOWN)})
    order = next((name for name in LOSSES if name in names), None)
    ranked = sorted(runs, key=lambda run: runs[run].get(order or "", float("inf")))
    columns = [*([order] if order else []), *(name for name in names if name != order)]
    lines = [["run", "step", *columns], ["---"] * (len(columns) + 2)]
    for run in ranked:
        metrics = runs[run]
        step = f"{metrics['step']:.0f}" if metrics else "nothing logged"
        lines.append([run, step, *(f"{metrics[name]:.4g}" if name in metrics else "" for name in columns)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    with refusals_end_the_program("slurm.compare_runs"):
        main()
