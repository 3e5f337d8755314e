"""The page that sets several RUN folders side by side: figures, curves, samples, and where their settings differ."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from magvit_scale.page import side_by_side
from magvit_scale.page.curves import overlaid_training
from magvit_scale.page.document import Section, document
from magvit_scale.page.evaluations import Alike, evaluations_section
from magvit_scale.page.inputs import Run, Settings
from magvit_scale.page.record import Record
from magvit_scale.page.sections import warning


def render(records: Sequence[Record], links: Sequence[str], alike: Sequence[Alike]) -> str:
    """The page's HTML; the same inputs give the same bytes.

    Args:
        records: two or more.
        links: address of each one's own page, seen from this one.
        alike: their results by protocol, those that compare together.
    """
    names = names_of(records)
    named = dict(zip(names, records, strict=True))
    pages = ", ".join(f'<a href="{escape(link)}">{escape(name)}</a>' for name, link in zip(names, links, strict=True))
    results = {name: record.results for name, record in named.items() if record.results}
    kinds = runs_by_kind(named)
    return document(
        f"{len(records)} runs compared",
        f"The same things of every run beside each other. Each run's own page: {pages}.",
        warning(
            [run for record in records for run in record.runs],
            [evaluation for record in records for evaluation in record.evaluations],
        ),
        [
            Section(
                "figures",
                "Figures",
                "Of held-out clips. Bold is the best of a row; figures that were taken in different ways stand apart.",
                side_by_side.figures(results),
            ),
            Section(
                "protocols",
                "Figures by protocol",
                "Figures of one protocol by the same weights share a table; others stand apart, with the reason.",
                evaluations_section(alike),
            ),
            Section(
                "tasks",
                "Samples",
                "Left what the networks were given, right what really happened, between them what each run made of it.",
                side_by_side.samples({name: record.samples for name, record in named.items() if record.samples}),
            ),
            Section(
                "training",
                "Training",
                "Thin: as logged. Thick: smoothed. The numbers are the last values.",
                overlaid_training(kinds),
            ),
            Section(
                "differences",
                "What differs",
                "Keys of the configurations with unlike values; RUN is the run's own folder.",
                side_by_side.differences(_settings(named, kinds)),
            ),
        ],
    )


def names_of(records: Sequence[Record]) -> list[str]:
    """The folders' names, with as many of the folders around them as it takes to tell them apart."""
    paths = [record.folder.resolve() for record in records]
    for depth in range(1, max(len(path.parts) for path in paths)):
        names = [str(Path(*path.parts[-depth:])) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def runs_by_kind(records: Mapping[str, Record]) -> dict[str, dict[str, Run]]:
    """What was trained -> label -> run; the label is the record's, and the run's where it has several."""
    kinds: dict[str, dict[str, Run]] = {}
    for name, record in records.items():
        of_kind = [run.kind for run in record.runs]
        for run in record.runs:
            label = name if of_kind.count(run.kind) == 1 else f"{name}/{run.name}"
            kinds.setdefault(run.kind, {})[label] = run
    return kinds


def _settings(records: Mapping[str, Record], kinds: Mapping[str, Mapping[str, Run]]) -> dict[str, dict[str, Settings]]:
    parts: dict[str, dict[str, Any]] = {
        kind: {label: run.settings for label, run in runs.items() if run.settings} for kind, runs in kinds.items()
    }
    for name, record in records.items():
        for verb, settings in record.settings.items():
            if settings:
                parts.setdefault(verb, {})[name] = settings
    return parts
