"""Something-Something v2: labels, train and validation JSON, and a folder of `<id>.webm`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.sources.annotations import read_json
from data_prep.sources.listing import VIDEO_EXTENSIONS, Item, Listing, by_stem, files_below
from magvit_scale.config import ListVideosConfig, Refusal

COUNTS = {"train": 168_913, "test": 24_777}
# The validation split is held out: the labels of the test videos are kept back.
SPLITS = {"train": "train", "validation": "test"}


def list_ssv2(config: ListVideosConfig, folder: Path) -> Listing:
    """The videos of train and validation; class ids are those of the labels JSON.

    Raises:
        Refusal: a JSON is missing, not as published, or names a template without label.
    """
    annotations = Path(str(config.annotations))
    classes = _classes(*_read(annotations, "labels"))
    on_disk = by_stem(files_below(folder, VIDEO_EXTENSIONS))
    items: dict[str, Item] = {}
    missing: dict[str, str] = {}
    for name, split in SPLITS.items():
        for where, video_id, label in _entries(*_read(annotations, name), set(classes)):
            path = next(iter(on_disk.get(video_id, ())), None)
            if path is None:
                missing[f"{video_id}.webm"] = "not on disk"
            elif path in items:
                raise Refusal(f"{where}: id {video_id} comes twice; expected the published lists")
            else:
                items[path] = Item(path, label, split)
    return Listing(list(items.values()), missing, classes, COUNTS)


def _read(annotations: Path, name: str) -> tuple[Path, Any]:
    # Published under both names.
    paths = [annotations / f"something-something-v2-{name}.json", annotations / f"{name}.json"]
    path = next((path for path in paths if path.exists()), paths[0])
    return path, read_json(path)


def _classes(path: Path, labels: Any) -> list[str]:
    numbers = labels.values() if isinstance(labels, dict) else ()
    if not numbers or sorted(map(str, numbers)) != sorted(map(str, range(len(numbers)))):
        raise Refusal(f"annotations {path}: expected template -> id, counting from 0; give the published labels")
    return sorted(labels, key=lambda template: int(labels[template]))


def _entries(path: Path, entries: Any, classes: set[str]) -> Iterator[tuple[str, str, str]]:
    """(where, id, class) of each video; the class is the template without the brackets around its placeholders."""
    for number, entry in enumerate(entries if isinstance(entries, list) else [None]):
        where = f"annotations {path} entry {number}"
        video_id, template = (entry.get("id"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if not isinstance(video_id, str) or not isinstance(template, str):
            raise Refusal(f"{where}: expected an object with id and template; give the published lists")
        label = template.replace("[", "").replace("]", "")
        if label not in classes:
            raise Refusal(f"{where}: template {template[:80]!r} has no label; give the labels of the same release")
        yield where, video_id, label
