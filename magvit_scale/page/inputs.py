"""Training runs and small files of a RUN folder, read and checked; a damaged one is a refusal that names it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from magvit_scale.config import Refusal

Settings = Mapping[str, Any]
"""`part.key` -> value, of a config.yaml."""
Curve = tuple[list[int], list[float]]
"""Steps, ascending, and values."""
TRANSFORMER = "Transformer"
METRICS = "metrics.jsonl"
"""The file that makes a folder a training run."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run: its curves, configuration and machine."""

    name: str
    folder: Path
    started: float
    """Time of the first record, in seconds since 1970: the order of the road."""
    curves: Mapping[str, Curve]
    """`group/name` -> steps, values."""
    config: str
    """config.yaml; empty where there is none."""
    settings: Settings
    environment: Mapping[str, Any]
    """env.json; empty where there is none."""

    @property
    def kind(self) -> str:
        """What was trained."""
        if "tokens" in self.settings:
            return TRANSFORMER
        ndim = self.settings.get("model.ndim")
        return f"{ndim}D VQGAN" if ndim else "Training run"


def read_run(folder: Path) -> Run:
    """Reads metrics.jsonl and, where they are there, config.yaml and env.json.

    Raises:
        Refusal: metrics.jsonl is missing, a line of it is not a JSON object with a step, another file is damaged.
    """
    config, environment = folder / "config.yaml", folder / "env.json"
    records = list(_records(folder / METRICS))
    return Run(
        name=folder.resolve().name,
        folder=folder,
        started=float(records[0].get("time", 0)) if records else 0.0,
        curves=_curves(records),
        config=read_text(config) if config.exists() else "",
        settings=read_settings(config, "run.folder"),
        environment=read_json(environment) if environment.exists() else {},
    )


def read_settings(path: Path, folder_key: str) -> Settings:
    """A config.yaml as `part.key` -> value; empty where there is none.

    Args:
        path: of the file.
        folder_key: of the folder that the program wrote; the folder around it is `RUN` in every value, so that two
            runs of one road differ in what matters only.

    Raises:
        Refusal: the file is no YAML mapping.
    """
    if not path.exists():
        return {}
    try:
        content = OmegaConf.to_container(OmegaConf.create(read_text(path)))
    except (ValueError, YAMLError, OmegaConfBaseException) as error:
        raise Refusal(f"{path}: not YAML ({str(error).splitlines()[0]}); write the file again") from error
    if not isinstance(content, dict):
        raise Refusal(f"{path}: expected a YAML mapping; write the file again")
    flat = dict(flattened(content))
    root = str(Path(str(flat.get(folder_key, ""))).parent)
    return {key: _below(value, root) for key, value in flat.items()}


def flattened(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings by `part.key`."""
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        Refusal: the file is missing, or something else.
    """
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise Refusal(f"{path}: not JSON ({error}); write the file again") from error
    if not isinstance(content, dict):
        raise Refusal(f"{path}: expected a JSON object; write the file again")
    return content


def read_text(path: Path) -> str:
    """UTF-8 text.

    Raises:
        Refusal: the file is missing, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise Refusal(f"{path}: not there; run the program that writes it first") from error
    except UnicodeDecodeError as error:
        raise Refusal(f"{path}: not a text file ({error.reason}); write the file again") from error


def _below(value: Any, root: str) -> Any:
    is_below = isinstance(value, str) and (value == root or value.startswith(f"{root}/"))
    return f"RUN{value[len(root) :]}" if is_below else value


def _records(path: Path) -> Iterator[dict[str, Any]]:
    lines = read_text(path).splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            yield record | {"step": int(record["step"])}
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                return  # A killed run may leave half a line at the end.
            raise Refusal(f"{path}, line {number}: not a JSON object with a step: {line[:60]!r}") from error


def _curves(records: list[dict[str, Any]]) -> dict[str, Curve]:
    by_step: dict[str, dict[int, float]] = {}
    for record in records:
        for key, value in record.items():
            if "/" in key and isinstance(value, int | float):
                by_step.setdefault(key, {})[record["step"]] = float(value)  # Of a step that was repeated, the last one.
    return {key: (sorted(values), [values[step] for step in sorted(values)]) for key, values in by_step.items()}
