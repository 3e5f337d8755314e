"""model_index.json: which model folders make a pipeline, and what its classes are called. No torch."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from magvit_scale.config import Refusal
from magvit_scale.files import write_json
from magvit_scale.provenance import version_of

FILE = "model_index.json"
KIND = "MagvitPipeline"


@dataclass(frozen=True, kw_only=True)
class ModelIndex:
    """What stands beside the model folders of a pipeline."""

    tokenizer: str = "tokenizer"
    """Sub-folder of the 3D VQGAN."""
    transformer: str = "transformer"
    classes: tuple[str, ...] = ()
    """Names by class id; empty where there are none."""
    fps: float | None = None
    """Frames per second of the clips that it was trained on; null where nobody knows."""


def write_index(folder: str | Path, index: ModelIndex) -> None:
    """Writes model_index.json, aside first, then renamed."""
    write_json(Path(folder, FILE), {"model": KIND, "version": version_of("magvit_scale"), **asdict(index)})


def read_index(folder: str | Path) -> ModelIndex:
    """Reads model_index.json; keys that this version does not know are left alone.

    Raises:
        Refusal: it is missing, no pipeline's, holds a value of another kind, or names a folder outside.
    """
    path = Path(folder, FILE)
    if not path.is_file():
        raise Refusal(
            f"{folder}: no {FILE}; expected a pipeline folder, or give the tokenizer's folder and the transformer's"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also of the encoding
        raise Refusal(f"{path}: {error}; expected a pipeline's index as JSON") from error
    if not isinstance(values, dict) or values.get("model") != KIND:
        found = values.get("model") if isinstance(values, dict) else type(values).__name__
        raise Refusal(f"{path}: is of a {found}, expected a {KIND}")
    return _checked(path, {key: values[key] for key in asdict(ModelIndex()) if key in values})


def _checked(path: Path, values: dict[str, Any]) -> ModelIndex:
    for key in ("tokenizer", "transformer"):
        name = values.get(key, key)
        if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
            raise Refusal(f"{path}: {key}={name!r}, expected the name of a sub-folder")
    classes, fps = values.get("classes", []), values.get("fps")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise Refusal(f"{path}: classes={str(classes)[:60]}, expected a list of names")
    if fps is not None and not (isinstance(fps, int | float) and 0 < fps < float("inf")):
        raise Refusal(f"{path}: fps={fps!r}, expected frames per second above 0, or null")
    return ModelIndex(**values | {"classes": tuple(classes)})
