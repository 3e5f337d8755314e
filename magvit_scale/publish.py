"""Models that travel: `magvit publish tokenizer=runs/x/vqgan_3d/export transformer=runs/x/commit/export output=DIR`.

Writes a folder that `MagvitPipeline.from_pretrained` and the Hugging Face hub read: the models as they are, what clips
they are for, and a card filled from the runs. Killed and started again it ends with the same bytes.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from magvit_scale import hub
from magvit_scale.card.contents import Contents, Part, gather
from magvit_scale.card.text import LIBRARY, render
from magvit_scale.config import PublishConfig, Refusal, parse
from magvit_scale.files import sha256, write_json, write_text, written_aside
from magvit_scale.metrics.results import read_result
from magvit_scale.model_index import FILE, ModelIndex, write_index
from magvit_scale.provenance import version_of
from magvit_scale.run_record import PREPROCESSOR

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


def main(argv: Sequence[str] | None = None) -> None:
    """Publishes; see the module's text."""
    config = parse(PublishConfig, argv)
    if config.push:
        hub.refuse_impossible(config.push)
    output = Path(config.output)
    results = {path: read_result(path) for path in map(Path, config.results)}
    contents = gather(config, config.push or output.resolve().name, results)
    places = _places(contents)
    _refuse_other_content(output, {place / WEIGHTS: part.sha256 for place, part in places.items()})
    written = _write(contents, places, output)
    print(output)  # noqa: T201
    if config.push:
        print(hub.upload(output, config.push, written, f"magvit_scale {version_of(LIBRARY)}"))  # noqa: T201


def _places(contents: Contents) -> dict[Path, Part]:
    """Where each model goes; a tokenizer alone is the folder itself."""
    if contents.transformer is None:
        return {Path(): contents.tokenizer}
    return {Path(role): part for role, part in contents.parts.items()}


def _refuse_other_content(output: Path, expected: dict[Path, str]) -> None:
    """A folder is written into that is empty, or holds nothing but these weights and what was written beside them."""
    files = [path for path in output.rglob("*") if path.is_file() and path.suffix != ".tmp"]
    weights = [path for path in files if path.name == WEIGHTS]
    if files and not weights:
        raise Refusal(f"{output}: holds {files[0].name} and no models; give an empty folder or another one")
    for path in weights:
        if (found := sha256(path)) != (wanted := expected.get(path.relative_to(output))):
            raise Refusal(f"{path}: holds {found}, expected {wanted or 'no weights here'}; give another folder")


def _write(contents: Contents, places: dict[Path, Part], output: Path) -> list[str]:
    """Weights first and the index last: what has an index is complete. Returns the paths under `output`."""
    for place, part in places.items():
        for name in (WEIGHTS, CONFIG):
            _copy(part.folder / name, output / place / name)
    written = [f"{place / name}" for place in places for name in (WEIGHTS, CONFIG)]
    preprocessor = next(iter(places)) / PREPROCESSOR
    write_json(output / preprocessor, _preprocessing(contents))
    write_text(output / CARD, render(contents))
    written += [f"{preprocessor}", CARD]
    if contents.transformer is not None:
        write_index(output, ModelIndex(classes=contents.classes, fps=contents.clips.fps))
        written.append(FILE)
    return written


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as original, written_aside(target) as copy:
        shutil.copyfileobj(original, copy)


def _preprocessing(contents: Contents) -> dict[str, Any]:
    return {**asdict(contents.clips), "value_range": [0, 1], "layout": "b c t h w", "dtype": "float32"}
