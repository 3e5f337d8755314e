"""A table of what training runs logged last, the best first: the end of a sweep.

python -m slurm.compare_runs 'runs=[runs/a,runs/b]' output=runs/table.md
"""

import os
import sys
from collections.abc import Sequence
from math import inf, isnan
from pathlib import Path

from magvit_scale.config import CompareRunsConfig, parse, refusals_end_the_program
from magvit_scale.files import write_text
from slurm.progress import LOSSES, read_metrics

SHOWN = ("loss/", "validation/", "codebook/perplexity")


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the table and shows it. A run that has logged nothing is listed as such."""
    config = parse(CompareRunsConfig, argv)
    folders = [Path(run).absolute() for run in config.runs]
    shared = os.path.commonpath([folder.parent for folder in folders])
    table = tabulate({str(folder.relative_to(shared)): read_metrics(folder) or {} for folder in folders})
    write_text(Path(config.output), table)
    sys.stdout.write(table)


def tabulate(runs: dict[str, dict[str, float]]) -> str:
    """Markdown: a row for each run, columns for the metrics that any of them has, by the first loss of LOSSES."""
    names = sorted({name for metrics in runs.values() for name in metrics if name.startswith(SHOWN)})
    order = next((name for name in LOSSES if name in names), None)
    losses = {run: metrics.get(order or "", inf) for run, metrics in runs.items()}
    ranked = sorted(runs, key=lambda run: inf if isnan(losses[run]) else losses[run])
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
