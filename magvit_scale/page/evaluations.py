"""Figures by protocol: what was measured, with its spread; beside it papers' figures where they compare."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from magvit_scale.page.tables import definitions, number, table
from magvit_scale.page.words import METRIC_WORDS, TASK_WORDS


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One figure."""

    mean: float
    spread: float | None
    """Of its folds, or as a paper prints it; null where there is none."""

    def __str__(self) -> str:
        return number(self.mean) + (f" ± {number(self.spread)}" if self.spread is not None else "")


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Figures that one model has in one place."""

    model: str
    source: str
    figures: Mapping[str, Measured]
    """`TASK/METRIC` -> as printed."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One result of `magvit evaluate`, in plain values."""

    name: str
    """Of its file."""
    protocol: str
    protocol_hash: str
    figures: Mapping[str, Measured]
    """`TASK/METRIC` -> as measured."""
    papers: Sequence[Paper]
    """Empty where no paper's figures compare."""
    reservations: Sequence[str]
    """What sets it apart from the papers' figures."""
    remarks: Sequence[str]
    """On its protocol."""
    facts: Mapping[str, Any]
    """Weights, models, seeds, machine: part -> name -> value."""


@dataclass(frozen=True, kw_only=True)
class Alike:
    """Results whose figures compare with each other."""

    evaluations: Mapping[str, Evaluation]
    """By the run's name."""
    papers: Sequence[Paper]
    """Empty unless those compare with every one."""
    reasons: Sequence[str]
    """Why they stand apart from the results before them."""


def evaluations_section(alike: Sequence[Alike]) -> str:
    """Each group of results that compare, as one table; empty without results."""
    return "".join(map(_alike, alike))


def _alike(group: Alike) -> str:
    first = next(iter(group.evaluations.values()))
    heading = f'<h3>{escape(first.protocol)} <abbr class="code">{escape(first.protocol_hash[:12])}</abbr></h3>'
    apart = "".join(f"<p>Apart from the above: {escape(reason)}.</p>" for reason in group.reasons)
    remarks = "".join(f"<br>{escape(sentence)}" for sentence in first.remarks)
    notes = f"<p>± is the deviation of the folds, or what the paper prints.{_sources(group.papers)}{remarks}</p>"
    facts = "".join(_facts(name, result) for name, result in group.evaluations.items())
    return f"{heading}{apart}{_warning(group.evaluations)}{_figures(group)}{notes}{facts}"


def _figures(group: Alike) -> str:
    results = list(group.evaluations.values())
    names = dict.fromkeys(figure for result in results for figure in result.figures)
    columns = [*(result.figures for result in results), *(paper.figures for paper in group.papers)]
    marks = _marks(group.papers)
    heads = ["", *(map(escape, group.evaluations) if len(results) > 1 else ["measured"])]
    heads += [f"{escape(paper.model)} <sup>{marks[paper.source]}</sup>" for paper in group.papers]
    rows = [[_figure_name(name), *(_cell(figures.get(name)) for figures in columns)] for name in names]
    return table(f"Figures by protocol {results[0].protocol}", heads, rows)


def _cell(figure: Measured | None) -> str:
    return number(None) if figure is None else str(figure)


def _figure_name(figure: str) -> str:
    task, _, metric = figure.partition("/")
    name, direction = METRIC_WORDS.get(metric, (metric, ""))
    words = TASK_WORDS[task][0] if task in TASK_WORDS else task.capitalize()
    return f"{escape(name)} <small>{escape(words)}{f'; {direction} is better' if direction else ''}</small>"


def _warning(evaluations: Mapping[str, Evaluation]) -> str:
    items = "".join(
        f"<li><strong>{escape(name)}</strong>: {escape(sentence)}</li>"
        for name, result in evaluations.items()
        for sentence in result.reservations
    )
    return f'<div class="warning" role="note"><ul>{items}</ul></div>' if items else ""


def _marks(papers: Sequence[Paper]) -> dict[str, int]:
    return {source: mark for mark, source in enumerate(dict.fromkeys(paper.source for paper in papers), start=1)}


def _sources(papers: Sequence[Paper]) -> str:
    return "".join(f"<br><sup>{mark}</sup> {escape(source)}" for source, mark in _marks(papers).items())


def _facts(name: str, result: Evaluation) -> str:
    return f"<details><summary>{escape(name)}: networks, models, seeds</summary>{definitions(result.facts)}</details>"
