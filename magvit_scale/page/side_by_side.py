"""Sections of the comparison, each a function from what several runs have to HTML; empty where there is nothing."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from magvit_scale.config import Task
from magvit_scale.page.clips import Samples, TaskSamples
from magvit_scale.page.grouping import grouped
from magvit_scale.page.inputs import Settings
from magvit_scale.page.pictures import strips
from magvit_scale.page.sections import TASKS_BYTES, condition_name, task_article
from magvit_scale.page.tables import number, table
from magvit_scale.page.words import TASK_WORDS

Results = Mapping[str, Any]
"""results.json of judge."""
ABSENT = object()
RECONSTRUCTION_PATHS = {
    "PSNR, dB": ("reconstruction", "trained", "psnr"),
    "PSNR where it moves, dB": ("reconstruction", "trained", "psnr_moving"),
    "PSNR where it stands still, dB": ("reconstruction", "trained", "psnr_static"),
    "SSIM": ("reconstruction", "trained", "ssim"),
}
ENTROPY_PATHS = {words: ("cross_entropy", task, "commit") for task, (words, _) in TASK_WORDS.items()}
"""Name of a row -> where its figure is in the results."""


def figures(results: Mapping[str, Results]) -> str:
    """Figures of judge; a table for each way in which they were taken."""
    return "".join(
        f"{''.join(f'<p>Apart from the above: {escape(reason)}.</p>' for reason in reasons)}{_figures(members)}"
        for members, reasons in grouped(results, _unlike_protocols)
    )


def samples(found: Mapping[str, Samples]) -> str:
    """Clips of each task; runs that had the same conditions share a strip."""
    tasks = [task for task in TASK_WORDS if any(task in each.tasks for each in found.values())]
    share = TASKS_BYTES // max(1, len(tasks))
    fps = next((each.fps for each in found.values()), 1)
    return "".join(
        task_article(task, _task({name: each.tasks[task] for name, each in found.items() if task in each.tasks},
                                 task, fps, share))
        for task in tasks
    )  # fmt: skip


def differences(parts: Mapping[str, Mapping[str, Settings]]) -> str:
    """For each part with several columns the keys whose values are not all the same."""
    return "".join(_differences(part, columns) for part, columns in parts.items() if len(columns) > 1)


def _unlike_protocols(ours: Results, theirs: Results) -> str:
    one, other = ours["protocol"], theirs["protocol"]
    keys = [key for key in dict.fromkeys([*one, *other]) if key != "sha256" and one.get(key) != other.get(key)]
    return f"they were taken with another {', '.join(keys)}" if keys else ""


def _figures(group: Mapping[str, Results]) -> str:
    columns = list(group.values())
    tables = {
        "Claims": _gate_rows(columns),
        "Reconstruction <small>higher is better</small>": _score_rows(columns, RECONSTRUCTION_PATHS, max),
        "Masked-token cross-entropy <small>nats, lower is better</small>": _score_rows(columns, ENTROPY_PATHS, min),
    }
    names = list(map(escape, group))
    return "".join(
        table(f"Figures: {title.split(' <')[0]}", [title, *names], rows)
        for title, found in tables.items()
        if (rows := list(found))
    )


def _gate_rows(columns: Sequence[Results]) -> Iterator[list[str]]:
    by_id = [{gate["id"]: gate for gate in results["gates"]} for results in columns]
    for key, gate in {key: gate for gates in reversed(by_id) for key, gate in gates.items()}.items():
        direction = f"{'higher' if gate.get('higher_is_better') else 'lower'} is better"
        claim = f"{escape(gate['claim'])} <small>{direction}</small>"
        yield [claim, *(_gate_cell(gates.get(key)) for gates in by_id)]


def _gate_cell(gate: Mapping[str, Any] | None) -> str:
    if gate is None:
        return number(None)
    word = "passed" if gate["passed"] else "failed"
    verdict = f'<small class="{word}">{word}</small>'
    against = f"<small>against {number(gate['baseline'])} {escape(gate.get('unit', ''))}</small>"
    return f"{number(gate['value'])}{verdict}{against}"


def _score_rows(
    columns: Sequence[Results], paths: Mapping[str, Sequence[str]], best_of: Callable[[list[float]], float]
) -> Iterator[list[str]]:
    """A row for each path at which a run has a value."""
    for name, path in paths.items():
        values = [_at(results, path) for results in columns]
        known = [value for value in values if value is not None and np.isfinite(value)]
        best = best_of(known) if len(known) > 1 else None
        if known:
            yield [name, *(f"<b>{number(value)}</b>" if value == best else number(value) for value in values)]


def _at(results: Results, path: Sequence[str]) -> float | None:
    found: Any = results
    for key in path:
        found = found.get(key, {})
    return None if found == {} else found


def _task(found: Mapping[str, TaskSamples], task: Task, fps: float, max_bytes: int) -> str:
    groups = grouped(found, _unlike_questions)
    return "".join(_strips(members, task, fps, max_bytes // len(groups)) for members, _ in groups)


def _unlike_questions(ours: TaskSamples, theirs: TaskSamples) -> str:
    is_same = np.array_equal(ours.condition, theirs.condition) and np.array_equal(ours.real, theirs.real)
    return "" if is_same else "they were given other clips"


def _strips(group: Mapping[str, TaskSamples], task: Task, fps: float, max_bytes: int) -> str:
    first = next(iter(group.values()))
    made = [(name, clips.generated) for name, clips in group.items()]
    return strips([(condition_name(task), first.condition), *made, ("real", first.real)], first.names, fps, max_bytes)


def _differences(part: str, columns: Mapping[str, Settings]) -> str:
    keys = dict.fromkeys(key for settings in columns.values() for key in settings)
    rows = [
        [escape(key), *(_setting(settings.get(key, ABSENT)) for settings in columns.values())]
        for key in keys
        if len({json.dumps(settings.get(key, "absent"), default=str) for settings in columns.values()}) > 1
    ]
    shown = table(f"Differences, {part}", ["key", *map(escape, columns)], rows) if rows else "<p>No difference.</p>"
    return f"<h3>{escape(part)}</h3>{shown}"


def _setting(value: Any) -> str:
    return "not there" if value is ABSENT else escape("null" if value is None else str(value))
