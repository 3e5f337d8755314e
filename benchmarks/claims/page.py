"""benchmarks/results/claims/*.json -> the tables of docs/claims.md and its plots: `python -m benchmarks.claims.page`.

The page's words are written by hand; what stands between `<!-- NAME -->` and `<!-- /NAME -->` is written anew.
"""

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.claims.plots import draw_curves, draw_rows
from benchmarks.claims.tables import (
    Figures,
    Measure,
    Rows,
    at_step,
    baseline_rows,
    cross_entropy,
    from_clip,
    generated,
    rows_by,
    steps_to,
    table,
)
from magvit_scale.config import Refusal

RESULTS = Path(__file__).parents[1] / "results" / "claims"
PAGE = Path(__file__).parents[2] / "docs" / "claims.md"
PLOTS = PAGE.with_suffix("")
NAMES = {
    "commit": "COMMIT",
    "canvas": "canvas tokens, fixed",
    "latent": "latent masking",
    "prefix": "prefix",
    "mask": "L_mask",
    "mask_reconstruct": "L_mask + L_recons",
    "only_FP": "trained on FP only",
    "only_CG": "trained on CG only",
}


def main() -> None:
    """Writes tables and plots."""
    found = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in SECTIONS}
    text = PAGE.read_text()
    for name, section in SECTIONS.items():
        lines = [*facts(found[name]), "", *section(found[name]), "", f"![{name}: every seed](claims/{name}.svg)"]
        text = replace_part(text, name, lines)
    PAGE.write_text(replace_part(text, "total", total(list(found.values()))))


def replace_part(text: str, name: str, lines: Sequence[str]) -> str:
    """The page with new lines between the marks of a name.

    Raises:
        Refusal: the page lacks them.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if not re.search(f"{re.escape(begin)}.*{re.escape(end)}", text, re.DOTALL):
        raise Refusal(f"{PAGE}: no part from {begin} to {end}; put both in, each on a line of its own")
    before, rest = text.split(begin, 1)
    return before + "\n".join([begin, *lines, end]) + rest.split(end, 1)[1]


def facts(results: Figures) -> list[str]:
    """Command, machine and cost of one claim."""
    machine = ", ".join(f"{key} {value}" for key, value in results["machine"].items() if key != "load")
    spent = sum(point["cpu_s"] for point in results["figures"].values()) / 60
    return [f"`{results['command']}`; {machine}, {results['note']}; {spent:.0f} CPU minutes"]


def total(results: Sequence[Figures]) -> list[str]:
    """Cost of all points, those that claims share once."""
    spent = {name: point["cpu_s"] for found in results for name, point in found["figures"].items()}
    return [f"{len(spent)} points, {sum(spent.values()) / 60:.0f} CPU minutes of one core."]


def conditioning(results: Figures) -> list[str]:
    """Ways of telling the condition."""
    asked = conditional_tasks(results)
    measures = [
        cross_entropy("all", ["FP"], "CE at first, FP"),
        cross_entropy("all", asked, f"CE at first, {'+'.join(asked)}"),
        *(generated("frechet", [task], f"Frechet, {task}") for task in asked),
        generated("frechet", asked, f"Frechet, {'+'.join(asked)}"),
        generated("psnr_moving", asked, "PSNR, moving"),
    ]
    rows = variant_rows(results)
    rows[NAMES["latent"] + ", shown the true clip"] = from_clip(rows[NAMES["latent"]])
    draw_rows(PLOTS / "conditioning.svg", rows, [measures[1], *measures[-2:]])
    kept = results["figures"]["baselines"]["figures"]["tokens_kept"].items()
    shares = ", ".join(f"{task} {share:.0%}" for task, share in kept)
    words = f"Tokens of the condition that are the same in the task's canvas and in the true clip: {shares}."
    return [*table(rows, measures, baseline_rows(results)), "", words]


def losses(results: Figures) -> list[str]:
    """Subsets of the losses."""
    asked = conditional_tasks(results)
    measures = [
        cross_entropy("all", asked, f"CE at first, {'+'.join(asked)}"),
        cross_entropy("trained", asked, f"CE, {'+'.join(asked)}"),
        cross_entropy("trained", ["CG"], "CE, CG"),
        generated("frechet", ["FP"], "Frechet, FP"),
        generated("frechet", asked, f"Frechet, {'+'.join(asked)}"),
        generated("frechet", ["CG"], "Frechet, CG"),
        generated("psnr_moving", asked, "PSNR, moving"),
    ]
    rows = variant_rows(results)
    draw_rows(PLOTS / "losses.svg", rows, [measures[1], measures[4], measures[6]])
    return table(rows, measures, baseline_rows(results))


def tasks(results: Figures) -> list[str]:
    """One transformer for all tasks, or for one."""
    asked = results["figures"]["baselines"]["settings"]["asked"]
    entropies = [cross_entropy("all", [task], f"CE at first, {task}") for task in asked]
    distances = [generated("frechet", [task], f"Frechet, {task}") for task in asked]
    means = [cross_entropy("all", asked, "CE at first, mean"), generated("frechet", asked, "Frechet, mean")]
    rows = {name.replace("COMMIT", "all tasks"): found for name, found in variant_rows(results).items()}
    draw_rows(PLOTS / "tasks.svg", rows, [distances[0], distances[-1], means[1]])
    baselines = baseline_rows(results)
    return [*table(rows, [*entropies, means[0]], baselines), "", *table(rows, [*distances, means[1]], baselines)]


def decoding(results: Figures) -> list[str]:
    """Numbers of decoding steps; the first row is the paper's twelve."""
    asked = results["figures"]["baselines"]["settings"]["asked"]
    measures = [
        *(generated("frechet", [task], f"Frechet, {task}") for task in asked),
        generated("frechet", asked, "Frechet, mean"),
        generated("psnr_moving", conditional_tasks(results), "PSNR, moving"),
        Measure("CPU ms per clip", 1, True, lambda figures: figures.get("cpu_ms_per_clip")),
    ]
    rows = rows_by(results, lambda settings: str(settings["steps"]) if "steps" in settings else None)
    draw_curves(
        PLOTS / "decoding.svg",
        {measure.name: {measure.name: rows} for measure in measures[-3:]},
        {measure.name: measure for measure in measures[-3:]},
    )
    twelve_first = {"12 steps": rows["12"]} | {
        f"{steps} step" + "s" * (steps != "1"): found for steps, found in rows.items()
    }
    return [*table(twelve_first, measures, baseline_rows(results)), "", *cost(rows)]


def cost(rows: Rows) -> list[str]:
    """What one step costs: the slope between the fewest and the most."""
    times = {int(steps): _mean_cost(found) for steps, found in rows.items()}
    fewest, most = min(times), max(times)
    slope = (times[most] - times[fewest]) / (most - fewest)
    rest = times[fewest] - slope * fewest
    return [f"A step costs {slope:.2f} CPU ms per clip; tokenizing the condition and detokenizing, {rest:.1f} ms."]


def _mean_cost(found: Sequence[Figures]) -> float:
    return float(sum(figures["cpu_ms_per_clip"] for figures in found) / len(found))


def inflation(results: Figures) -> list[str]:
    """Modes, a table for each learning rate; the first row is the paper's mode."""
    target = results["figures"]["mean_image"]["figures"]["psnr_moving"]
    settings = [point["settings"] for point in results["figures"].values()]
    lines: list[str] = []
    for rate in dict.fromkeys(own["rate"] for own in settings if "rate" in own):
        rows = rows_by(results, partial(mode_at, rate))
        lines += ["", f"Learning rate {rate:g}:", "", *table(rows, inflation_measures(rows, target))]
    draw_inflation(results, target)
    return lines[1:]


def mode_at(rate: float, settings: Figures) -> str | None:
    """The mode of a point that was trained at this rate."""
    return settings["mode"] if settings.get("rate") == rate else None


def inflation_measures(rows: Rows, target: float) -> list[Measure]:
    """Steps to the mean image's PSNR, and PSNR at the start, half-way and at the end."""
    last = max(map(int, next(iter(rows.values()))[0]["by_step"]))
    return [
        steps_to(target, f"steps to {target:.1f} dB, moving"),
        *(at_step(step, "psnr_moving", f"PSNR, moving, step {step}") for step in (0, last // 2, last)),
        at_step(last, "psnr", f"PSNR, step {last}"),
    ]


def draw_inflation(results: Figures, target: float) -> None:
    """A panel for every rate, a curve for every mode."""
    panels: dict[str, dict[str, Rows]] = {}
    for point in results["figures"].values():
        if "mode" not in (settings := point["settings"]):
            continue
        curve = panels.setdefault(f"learning rate {settings['rate']:g}", {}).setdefault(settings["mode"], {})
        for step, scores in point["figures"]["by_step"].items():
            curve.setdefault(step, []).append(scores)
    moving = Measure("PSNR, moving", 2, False, lambda scores: scores["psnr_moving"])
    draw_curves(PLOTS / "inflation.svg", panels, dict.fromkeys(panels, moving), level=target)


def variant_rows(results: Figures) -> Rows:
    """A row for every variant of training."""
    return rows_by(results, lambda settings: NAMES.get(settings.get("variant", "")))


def conditional_tasks(results: Figures) -> list[str]:
    """The tasks that give something."""
    return [task for task, found in results["figures"]["baselines"]["figures"]["canvas"].items() if found]


SECTIONS: dict[str, Callable[[Any], list[str]]] = {
    "inflation": inflation,
    "conditioning": conditioning,
    "losses": losses,
    "tasks": tasks,
    "decoding": decoding,
}

if __name__ == "__main__":
    main()
