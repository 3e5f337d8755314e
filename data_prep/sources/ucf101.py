"""UCF-101 with its official split files.

Two traps: the class folder `HandstandPushups` holds `v_HandStandPushups_...` in some distributions, so files are found
without regard to case; and `unrar e` leaves no class folders, so a file may also lie anywhere under its own name.
"""

from collections.abc import Iterator
from pathlib import Path

from data_prep.sources.annotations import path_inside, read_text
from data_prep.sources.listing import VIDEO_EXTENSIONS, Item, Listing, files_below
from magvit_scale.config import ListVideosConfig, Refusal

COUNTS = {
    1: {"train": 9537, "test": 3783},
    2: {"train": 9586, "test": 3734},
    3: {"train": 9624, "test": 3696},
}


def list_ucf101(config: ListVideosConfig, folder: Path) -> Listing:
    """The videos of one official split; class ids are those of classInd.txt less one.

    Raises:
        Refusal: a list is missing or contradicts classInd.txt.
    """
    annotations = Path(str(config.annotations))
    classes = _classes(annotations / "classInd.txt")
    on_disk = {Path(path).name.lower(): path for path in files_below(folder, VIDEO_EXTENSIONS)}
    items: dict[str, Item] = {}
    missing: dict[str, str] = {}
    for split in ("train", "test"):
        for where, listed, label in _lines(annotations / f"{split}list{config.split_number:02d}.txt", classes):
            path = on_disk.get(Path(listed).name.lower())
            if path is None:
                missing[listed] = "not on disk"
            elif path in items:
                raise Refusal(f"{where}: {listed} comes twice; expected the official lists")
            else:
                items[path] = Item(path, label, split)
    return Listing(list(items.values()), missing, classes, COUNTS[config.split_number])


def _classes(path: Path) -> list[str]:
    rows = [line.split() for line in read_text(path).splitlines() if line.strip()]
    if not rows or any(len(row) != 2 or row[0] != str(number) for number, row in enumerate(rows, 1)):
        raise Refusal(f"annotations {path}: expected lines '1 ApplyEyeMakeup', '2 ...' counting up; give the official")
    return [name for _, name in rows]


def _lines(path: Path, classes: list[str]) -> Iterator[tuple[str, str, str]]:
    """(where, 'Class/file.avi', class) of each line; the lines to train on end in the class id, the others do not."""
    numbers = {name.lower(): number for number, name in enumerate(classes, 1)}
    for line_number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"annotations {path} line {line_number}"
        listed, *class_id = line.split()
        number = numbers.get(path_inside(listed, where).rpartition("/")[0].lower())
        if number is None or class_id not in ([], [str(number)]):
            raise Refusal(f"{where}: {line[:80]!r}; expected 'Class/file.avi' of classInd.txt, with its number or none")
        yield where, listed, classes[number - 1]
