"""A result: figures with everything that must agree before they may be compared; and the comparison. No torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from magvit_scale.config import DecodingConfig, Refusal, load
from magvit_scale.files import write_json
from magvit_scale.metrics.protocol import Protocol
from magvit_scale.provenance import git_state, machine
from magvit_scale.weights import WEIGHTS

RANDOM = "random"
"""In place of the sha256 of an untrained network."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure over its folds."""

    mean: float
    spread: float
    """Deviation of the folds from their mean, with their number as divisor; 0 for one fold."""
    folds: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a result file holds."""

    protocol: str
    protocol_hash: str
    conditions: dict[str, Any]
    """`Protocol.conditions`, so that the file explains itself."""
    comparable: bool
    """With papers; false where a network is untrained or is not the protocol's."""
    weights: dict[str, str]
    """sha256 of each frozen network's file, or `random`: `feature_network`, `classifier`, `perceptual`."""
    models: dict[str, str]
    """sha256 of each model folder's weights: `tokenizer`, `transformer`."""
    decoding: dict[str, Any]
    """Fields of the `DecodingConfig` that was used; empty for reconstructions."""
    seeds: dict[str, int]
    data: dict[str, Any]
    """Fingerprint of the clip shards, their encoding and the short side of their frames."""
    figures: dict[str, Figure]
    """`TASK/METRIC`: FVD, decibels, or as the metric has it."""
    git: dict[str, Any]
    machine: dict[str, str]

    def __post_init__(self) -> None:
        """Refuses untrained networks under the stamp of published ones."""
        if self.comparable and RANDOM in self.weights.values():
            raise Refusal(
                f"result of {self.protocol}: comparable is true with weights {self.weights}, but `random` compares "
                "with no paper; evaluate again"
            )


def build_result(
    protocol: Protocol,
    *,
    folds: Mapping[str, Sequence[float]],
    weights: Mapping[str, str],
    models: Mapping[str, str],
    decoding: DecodingConfig | None,
    seeds: Mapping[str, int],
    data: Mapping[str, Any],
    device: str,
) -> Result:
    """The record of a finished evaluation. One rank.

    Args:
        protocol: by which it was made.
        folds: `TASK/METRIC` -> a value of each fold, or one value.
        weights: see `Result`.
        models: see `Result`.
        decoding: the one that was used; null for reconstructions.
        seeds: of the clips and of the generation, by name.
        data: see `Result`.
        device: in words.

    Raises:
        ValueError: a figure's task is none of the protocol's.
    """
    if strange := sorted(name for name in folds if name.split("/")[0] not in protocol.tasks):
        raise ValueError(f"figures {strange} of protocol {protocol.name}, which has tasks {protocol.tasks}")
    return Result(
        protocol=protocol.name,
        protocol_hash=protocol.hash,
        conditions=protocol.conditions(),
        comparable=not unlike_published(protocol, weights),
        weights=dict(weights),
        models=dict(models),
        decoding=asdict(decoding) if decoding else {},
        seeds=dict(seeds),
        data=dict(data),
        figures={name: _figure(values) for name, values in folds.items()},
        git=git_state(),
        machine=machine(device),
    )


def unlike_published(protocol: Protocol | None, weights: Mapping[str, str]) -> list[str]:
    """What forbids to put figures beside a paper's: networks that are untrained or other ones than the protocol's."""
    wanted = {"feature_network": protocol.feature_network, "classifier": protocol.classifier or ""} if protocol else {}
    reasons = []
    for role, found in sorted(weights.items()):
        published = WEIGHTS.get(wanted.get(role, ""))
        if found == RANDOM:
            reasons.append(f"{role} is untrained")
        elif published and published.sha256 and found != published.sha256:
            reasons.append(f"{role} has sha256 {found}, expected {published.sha256} ({wanted[role]})")
    return reasons


def write_result(path: Path, result: Result) -> None:
    """Writes JSON, aside and then renamed."""
    write_json(path, asdict(result))


def read_result(path: Path) -> Result:
    """Reads what `write_result` wrote.

    Raises:
        Refusal: it is missing, or no result of a protocol.
    """
    try:
        values = json.loads(path.read_text())
        result = load(Result, [values]) if isinstance(values, dict) else None
    except (OSError, ValueError) as error:  # also of the encoding, and refusals
        raise Refusal(f"{path}: {error}; expected a result of magvit evaluate with a protocol") from error
    if result is None:
        raise Refusal(f"{path}: no JSON object; expected a result of magvit evaluate with a protocol")
    # JSON's lists, not the tuples of `conditions`; and not what OmegaConf made of them.
    return replace(result, conditions=values["conditions"])


def refuse_unlike(ours: Result, theirs: Result) -> None:
    """Refuses results whose figures do not compare.

    Raises:
        Refusal: protocols or weights differ, or there is no common figure.
    """
    if ours.protocol_hash != theirs.protocol_hash:
        found = (f"{result.protocol} {result.protocol_hash[:12]}" for result in (ours, theirs))
        raise Refusal(f"results of unlike protocols: {' and '.join(found)}{_first_difference(ours, theirs)}")
    for name in sorted(ours.weights.keys() & theirs.weights.keys()):
        if ours.weights[name] != theirs.weights[name]:
            raise Refusal(
                f"results by unlike weights of {name}: {ours.weights[name]} and {theirs.weights[name]}; evaluate both "
                "by the same"
            )
    if not ours.figures.keys() & theirs.figures.keys():
        raise Refusal(f"no common figure: {', '.join(ours.figures)} and {', '.join(theirs.figures)}")


def _first_difference(ours: Result, theirs: Result) -> str:
    for key in sorted(ours.conditions.keys() | theirs.conditions.keys()):
        one, other = ours.conditions.get(key), theirs.conditions.get(key)
        if key != "name" and json.dumps(one) != json.dumps(other):
            return f" ({key}: {json.dumps(one)} and {json.dumps(other)}); evaluate both by one protocol"
    return "; evaluate both by one protocol"


def _figure(values: Sequence[float]) -> Figure:
    folds = np.asarray(values, dtype=np.float64)
    return Figure(mean=float(folds.mean()), spread=float(folds.std()), folds=tuple(folds.tolist()))
