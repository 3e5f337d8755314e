"""Results of one protocol beside each other and beside what papers print: `magvit compare-results OURS.json
[THEIRS.json]`.

Ends with a refusal where protocols or weights differ: such figures do not compare.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from magvit_scale.config import CompareResultsConfig, Refusal, parse
from magvit_scale.metrics.protocol import Published
from magvit_scale.metrics.protocols import PROTOCOLS
from magvit_scale.metrics.results import Figure, Result, read_result, refuse_unlike, unlike_published
from magvit_scale.progress import aligned

NAMES = ("ours", "theirs")


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    files = [word for word in arguments if word.endswith(".json") and "=" not in word]
    if len(files) > len(NAMES):
        raise Refusal(f"{len(files)} results, expected one or two; compare them pair by pair")
    named = [f"{name}={file}" for name, file in zip(NAMES, files, strict=False)]
    config = parse(CompareResultsConfig, [*(word for word in arguments if word not in files), *named])
    results = {path: read_result(Path(path)) for path in (config.ours, config.theirs) if path is not None}
    sys.stdout.write(compare(results))


def compare(results: dict[str, Result]) -> str:
    """The table of one or two results, by the names that the reader knows them by.

    Raises:
        Refusal: see `refuse_unlike`.
    """
    ours, *others = results.values()
    for theirs in others:
        refuse_unlike(ours, theirs)
    return "".join(f"{line}\n" for line in _lines(results))


def _lines(results: dict[str, Result]) -> Iterator[str]:
    ours = next(iter(results.values()))
    yield f"protocol {ours.protocol} {ours.protocol_hash[:12]}"
    yield from (f"{name}: {sha}" for name, sha in sorted(ours.weights.items()))
    yield ""
    names = [name for name in ours.figures if all(name in result.figures for result in results.values())]
    yield from aligned([row for name in names for row in _rows(results, name)])
    yield ""
    yield from (f"{path}: {words}" for path, result in results.items() for words in reservations(result))
    yield from (words for theirs in results.values() for words in unlike_data(ours, theirs))
    yield from remarks(ours)


def unlike_data(ours: Result, theirs: Result) -> Iterator[str]:
    """In what the real clips of two results differ that one protocol took: the copy of the data set, how it is stored,
    the seed of the choice.
    """
    for name in sorted(ours.data.keys() | theirs.data.keys()):
        if (one := ours.data.get(name)) != (other := theirs.data.get(name)):
            yield f"the real clips are not the same ({name} {one} and {other}): a difference may be theirs"
    if (one := ours.seeds.get("clips")) != (other := theirs.seeds.get("clips")):
        yield f"the real clips are not the same (seed {one} and {other}): a difference may be theirs"


def _rows(results: dict[str, Result], name: str) -> Iterator[tuple[str, str, str]]:
    """Figure, value, whose it is."""
    figures = [result.figures[name] for result in results.values()]
    yield from ((name, _show(figure), path) for path, figure in zip(results, figures, strict=True))
    if len(figures) > 1:
        yield "", f"{figures[1].mean - figures[0].mean:+.4g}", "difference"
    for entry in published(list(results.values()), name):
        value = f"{entry.value:g}" + (f" +- {entry.spread:g}" if entry.spread is not None else "")
        yield "", value, f"{entry.model} ({entry.source})"


def _show(figure: Figure) -> str:
    return f"{figure.mean:.5g}" + (f" +- {figure.spread:.2g}" if len(figure.folds) > 1 else "")


def published(results: Sequence[Result], name: str) -> list[Published]:
    """What papers print of a figure, where every one of the results, of one protocol, may stand beside it."""
    if not all(_is_known(result) and result.comparable for result in results):
        return []
    return [entry for entry in PROTOCOLS[results[0].protocol].published if entry.figure == name]


def reservations(result: Result) -> Iterator[str]:
    """What sets a result apart from the paper's."""
    if not result.comparable:
        reasons = unlike_published(PROTOCOLS.get(result.protocol), result.weights) or ["the file says so"]
        yield f"NOT COMPARABLE with any paper: {'; '.join(reasons)}"
    if not _is_known(result):
        return
    protocol = PROTOCOLS[result.protocol]
    if changes := _differences(result.decoding, asdict(protocol.decoding) if protocol.decoding else {}):
        yield f"decoding is not the paper's: {', '.join(changes)}"


def remarks(result: Result) -> Iterator[str]:
    """What must be said of every result of this protocol."""
    if not _is_known(result):
        yield f"this version has no protocol {result.protocol} {result.protocol_hash[:12]}: no published figures"
    elif PROTOCOLS[result.protocol].assumptions:
        yield f"assumed by this protocol: {PROTOCOLS[result.protocol].assumptions}"


def _is_known(result: Result) -> bool:
    return result.protocol in PROTOCOLS and PROTOCOLS[result.protocol].hash == result.protocol_hash


def _differences(found: dict[str, Any], paper: dict[str, Any]) -> list[str]:
    return [f"{key} {found[key]} for {value}" for key, value in paper.items() if found.get(key, value) != value]
