"""Curves of training: of one run, or of several runs over each other."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from magvit_scale.page.inputs import Run
from magvit_scale.page.plots import curve, is_logarithmic, line_sample, overlaid
from magvit_scale.page.tables import number
from magvit_scale.page.words import CURVE_WORDS, GROUP_WORDS, TASK_WORDS

OPEN_GROUPS = ("loss", "validation")
"""Those that are seen without a click."""


def training(runs: Sequence[Run]) -> str:
    """Small multiples of every curve, run by run."""
    return "".join(f"<h3>{escape(run.name)}</h3>{_groups(run)}" for run in runs if run.curves)


def overlaid_training(kinds: Mapping[str, Mapping[str, Run]]) -> str:
    """Curves of the same name in one plot.

    Args:
        kinds: what was trained -> label of the run -> run.
    """
    return "".join(f"<h3>{escape(kind)}</h3>{_legend(runs)}{_overlaid_groups(runs)}" for kind, runs in kinds.items())


def _groups(run: Run) -> str:
    return "".join(
        _group(group, [_curve(key, *run.curves[key]) for key in keys]) for group, keys in _by_group(run.curves).items()
    )


def _curve(key: str, steps: Sequence[int], values: Sequence[float]) -> str:
    return _figure(key, number(values[-1]), is_logarithmic(values), curve(steps, values))


def _legend(runs: Mapping[str, Run]) -> str:
    items = (f"<li>{line_sample(index)} {escape(label)}</li>" for index, label in enumerate(runs))
    return f'<ul class="legend">{"".join(items)}</ul>'


def _overlaid_groups(runs: Mapping[str, Run]) -> str:
    keys = dict.fromkeys(key for run in runs.values() for key in run.curves)
    return "".join(
        _group(group, [_overlaid(key, list(runs.values())) for key in names])
        for group, names in _by_group(keys).items()
    )


def _overlaid(key: str, runs: Sequence[Run]) -> str:
    curves = {index: run.curves[key] for index, run in enumerate(runs) if key in run.curves}
    last = " · ".join(f"{line_sample(index)} {number(values[-1])}" for index, (_, values) in curves.items())
    everything = [value for _, values in curves.values() for value in values]
    return _figure(key, last, is_logarithmic(everything), overlaid(curves))


def _by_group(keys: Iterable[str]) -> dict[str, list[str]]:
    """In the order of `GROUP_WORDS`; groups that it lacks come last."""
    found: dict[str, list[str]] = {}
    for key in keys:
        found.setdefault(key.split("/")[0], []).append(key)
    order = [group for group in GROUP_WORDS if group in found]
    return {group: found[group] for group in [*order, *sorted(found.keys() - set(order))]}


def _group(group: str, figures: Sequence[str]) -> str:
    heading = f"<summary><h4>{escape(group)}</h4>{GROUP_WORDS.get(group, '')}</summary>"
    is_open = " open" if group in OPEN_GROUPS else ""
    return f'<details class="group"{is_open}>{heading}<div class="curves">{"".join(figures)}</div></details>'


def _figure(key: str, values: str, is_log: bool, svg: str) -> str:
    name = key.split("/", 1)[1]
    word = TASK_WORDS[name][0] if name in TASK_WORDS else CURVE_WORDS.get(key, "")
    scale = " · log" if is_log else ""
    caption = f"<b>{escape(name.replace('_', ' '))}</b> {values}<span>{escape(word)}{scale}</span>"
    return f"<figure><figcaption>{caption}</figcaption>{svg}</figure>"
