"""Results in a card: tables for people, `model-index` for the hub."""

import json
from collections.abc import Iterator
from typing import Any

from magvit_scale.card.tables import table
from magvit_scale.metrics.results import RANDOM, Figure, Result

TASK_TYPE = "video-to-video"
"""The hub's nearest name for the ten tasks."""
NO_RESULTS = "None were given."


def figures_text(results: tuple[Result, ...]) -> str:
    """One section for each result."""
    return "\n\n".join("\n\n".join(_paragraphs(result)) for result in results) or NO_RESULTS


def model_index(name: str, results: tuple[Result, ...]) -> list[dict[str, Any]]:
    """The hub's list of figures; one that compares with no paper bears that in its type, so that no board ranks it."""
    entries = [entry for result in results for entry in _entries(result)]
    return [{"name": name, "results": entries}] if entries else []


def _paragraphs(result: Result) -> Iterator[str]:
    yield f"### {result.protocol}"
    yield f"Protocol `{result.protocol}`, sha256 `{result.protocol_hash}`. {_verdict(result)}"
    yield table(["figure", "mean", "spread over folds"], [[n, *_show(figure)] for n, figure in result.figures.items()])
    conditions = {"weights of the networks": result.weights, "decoding": result.decoding, "seeds": result.seeds}
    yield table(["condition", "value"], [[name, f"`{json.dumps(value)}`"] for name, value in conditions.items()])


def _verdict(result: Result) -> str:
    if result.comparable:
        return "Comparable with figures that papers print for this protocol."
    untrained = [name for name, sha in sorted(result.weights.items()) if sha == RANDOM]
    reason = f"{', '.join(untrained)} untrained" if untrained else "the result says so"
    return f"**Not comparable with any paper: {reason}.**"


def _show(figure: Figure) -> list[str]:
    return [f"{figure.mean:.5g}", f"{figure.spread:.2g}" if len(figure.folds) > 1 else "one fold"]


def _entries(result: Result) -> Iterator[dict[str, Any]]:
    data_set = str(result.conditions.get("data_set", "unknown"))
    for name, figure in result.figures.items():
        task, _, metric = name.partition("/")
        suffix = "" if result.comparable else "_not_comparable"
        yield {
            "task": {"type": TASK_TYPE, "name": task},
            "dataset": {"type": data_set, "name": data_set},
            "metrics": [
                {
                    "type": metric.lower() + suffix,
                    "value": figure.mean,
                    "name": f"{name} by {result.protocol} {result.protocol_hash[:12]}",
                }
            ],
        }
