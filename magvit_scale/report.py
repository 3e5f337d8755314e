"""magvit report RUN...: run folders -> a page each that opens from disk, one that compares them, the gates' verdict.

python -m magvit_scale.report runs/demo                  # runs/demo/report.html
python -m magvit_scale.report runs/demo runs/longer      # and runs/comparison.html
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from magvit_scale.compare_results import published, remarks, reservations
from magvit_scale.config import Refusal, ReportConfig, is_override, parse, refusals_end_the_program
from magvit_scale.files import write_text
from magvit_scale.metrics.results import Result, read_result, refuse_unlike
from magvit_scale.page import comparison, single
from magvit_scale.page.evaluations import Alike, Evaluation, Measured, Paper
from magvit_scale.page.grouping import grouped
from magvit_scale.page.record import Record, read_record
from magvit_scale.page.tables import number

PAGE = "report.html"
Results = Mapping[str, Result]
"""File's name -> result of `magvit evaluate`."""


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the pages, prints a line per gate, and ends non-zero where a gate failed and `gate=fail`.

    Raises:
        Refusal: there is nothing to report on, or an input is damaged.
        SystemExit: a gate failed.
    """
    config = parse(ReportConfig, _with_runs_as_key(list(sys.argv[1:] if argv is None else argv)))
    folders = list(dict.fromkeys(map(Path, config.runs)))
    results = [_read_results(folder) for folder in folders]
    records = [read_record(folder, _evaluations(found)) for folder, found in zip(folders, results, strict=True)]
    if len(records) == 1 and config.output:
        _write(Path(config.output), single.render(records[0]))
    else:
        for record in records:
            _write(record.folder / PAGE, single.render(record))
    if len(records) > 1:
        _compare(records, results, Path(config.output or folders[0].parent / "comparison.html"))
    _judge(records, is_fatal=config.gate == "fail")


def _with_runs_as_key(arguments: list[str]) -> list[str]:
    """RUN... as `runs=[RUN, ...]`; YAML files stay what they are for every program."""
    runs = [word for word in arguments if not (is_override(word) or word.startswith("-") or word.endswith(".yaml"))]
    rest = [word for word in arguments if word not in runs]
    return [*rest, f"runs={json.dumps(runs)}"] if runs else rest


def _read_results(folder: Path) -> Results:
    """Of evaluation/*.json those that are results of a protocol, and of what a watcher left for every checkpoint the
    newest; others are named and left out.
    """
    paths = {path.stem: path for path in sorted(folder.glob("evaluation/*.json"))}
    watched = sorted([*folder.glob("evaluation/step_*/*.json"), *folder.glob("*/evaluation/step_*/*.json")])
    newest = {path.stem: path for path in watched}  # the last of a name stays
    paths |= {f"{name}, {path.parent.name}": path for name, path in newest.items()}
    results = {}
    for name, path in paths.items():
        try:
            results[name] = read_result(path)
        except Refusal as refusal:
            print(f"left out: {refusal}", file=sys.stderr)  # noqa: T201
    return results


def _evaluations(results: Results) -> list[Evaluation]:
    return [_evaluation(name, result) for name, result in results.items()]


def _evaluation(name: str, result: Result) -> Evaluation:
    facts = ("weights", "models", "decoding", "seeds", "git", "machine")
    figures = {
        key: Measured(mean=figure.mean, spread=figure.spread if len(figure.folds) > 1 else None)
        for key, figure in result.figures.items()
    }
    return Evaluation(
        name=name,
        protocol=result.protocol,
        protocol_hash=result.protocol_hash,
        figures=figures,
        papers=_papers([result]),
        reservations=list(reservations(result)),
        remarks=list(remarks(result)),
        facts={part: getattr(result, part) for part in facts},
    )


def _papers(results: Sequence[Result]) -> list[Paper]:
    figures: dict[tuple[str, str], dict[str, Measured]] = {}
    for name in dict.fromkeys(name for result in results for name in result.figures):
        for entry in published(results, name):
            figures.setdefault((entry.model, entry.source), {})[name] = Measured(mean=entry.value, spread=entry.spread)
    return [Paper(model=model, source=source, figures=found) for (model, source), found in figures.items()]


def _compare(records: Sequence[Record], results: Sequence[Results], output: Path) -> None:
    named: dict[str, Result] = {}
    for name, found in zip(comparison.names_of(records), results, strict=True):
        named |= {name if len(found) == 1 else f"{name}: {file}": result for file, result in found.items()}
    protocols = dict.fromkeys(result.protocol for result in named.values())
    groups = [
        group
        for protocol in protocols
        for group in grouped({name: each for name, each in named.items() if each.protocol == protocol}, _why_unlike)
    ]
    alike = [
        Alike(
            evaluations={name: _evaluation(name, result) for name, result in members.items()},
            papers=_papers(list(members.values())),
            reasons=reasons,
        )
        for members, reasons in groups
    ]
    links = [os.path.relpath(record.folder / PAGE, output.parent) for record in records]
    _write(output, comparison.render(records, links, alike))


def _why_unlike(ours: Result, theirs: Result) -> str:
    try:
        refuse_unlike(ours, theirs)
    except Refusal as refusal:
        return str(refusal)
    return ""


def _judge(records: Sequence[Record], *, is_fatal: bool) -> None:
    gates = [(record, gate) for record in records for gate in record.gates]
    for record, gate in gates:
        verdict = "passed" if gate["passed"] else "FAILED"
        values = f"{number(gate['value'])} against {number(gate['baseline'])} {gate.get('unit', '')}".rstrip()
        of_which = f" of {record.folder}" if len(records) > 1 else ""
        print(f"gate {gate['id']}{of_which} {verdict}: {gate['claim']}: {values}")  # noqa: T201
    failed = [(record.folder / PAGE, gate) for record, gate in gates if not gate["passed"]]
    if not failed:
        return
    claims = ", ".join(f"{gate['id']} ({gate['claim']})" for _, gate in failed)
    pages = ", ".join(dict.fromkeys(str(page) for page, _ in failed))
    message = f"report: {len(failed)} of {len(gates)} gates failed: {claims}; see {pages}"
    if is_fatal:
        raise SystemExit(message)
    print(f"warning: {message}", file=sys.stderr)  # noqa: T201


def _write(path: Path, page: str) -> None:
    write_text(path, page)
    print(f"page: {path} ({len(page.encode()) / 1e6:.1f} MB)")  # noqa: T201


if __name__ == "__main__":
    with refusals_end_the_program("report"):
        main()
