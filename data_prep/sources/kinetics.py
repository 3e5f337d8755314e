"""Kinetics-400, -600 and -700: annotation CSV and a folder of clips, of which YouTube has taken many away.

A clip is found by its name alone, so ids that start with '-' or hold '/' mean nothing:
`<id>_<start>_<end>.mp4` with six digits each, or `<id>.mp4`, in any sub-folder and in any video format.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from data_prep.sources.annotations import read_csv
from data_prep.sources.listing import VIDEO_EXTENSIONS, Item, Listing, by_stem, files_below, held_out, split_named
from magvit_scale.config import ListVideosConfig, Refusal


def list_kinetics(config: ListVideosConfig, folder: Path) -> Listing:
    """The clips that are there; class ids number the labels of the annotations in ASCII order.

    Raises:
        Refusal: no annotations, a column or a label is missing, a time is no number.
    """
    # The path of an item is its name in the annotations until its file is found.
    rows, notes = held_out(list(_rows(Path(str(config.annotations)))))
    on_disk = by_stem(files_below(folder, VIDEO_EXTENSIONS))
    items: dict[str, Item] = {}
    missing: dict[str, str] = {}
    for row in rows:
        path = _locate(row, on_disk)
        if path is None:
            missing[row.path] = "not on disk"
        elif path in items:
            missing[row.path] = f"its file {path} belongs to an earlier row"
        else:
            items[path] = Item(path, row.label, row.split)
    return Listing(list(items.values()), missing, sorted({str(row.label) for row in rows}), notes=notes)


def _rows(annotations: Path) -> Iterator[Item]:
    files = sorted(annotations.glob("*.csv")) if annotations.is_dir() else [annotations]
    if not files:
        raise Refusal(f"annotations={annotations}: no .csv in it; expected the published train.csv and validate.csv")
    rows = [
        row for file in files for row in read_csv(file, ("youtube_id", "time_start", "time_end", "split"), ("label",))
    ]
    splits = [split_named(row["split"], where) for where, row in rows]
    # The published test.csv has no labels; it does no harm beside a validation split.
    is_test_unused = "validation" in splits
    for (where, row), split in zip(rows, splits, strict=True):
        if not row.get("label") and not (split == "test" and is_test_unused):
            raise Refusal(f"{where}: no label, expected the class of {row['youtube_id'][:40]!r}; give labelled splits")
        yield Item(_name(where, row), row.get("label"), split)
    if not rows:
        raise Refusal(f"annotations={annotations}: no videos in it; expected a line per video")


def _name(where: str, row: Mapping[str, str]) -> str:
    try:
        start, end = (int(float(row[key])) for key in ("time_start", "time_end"))
    except (ValueError, OverflowError) as error:
        times = f"{row['time_start'][:20]!r} to {row['time_end'][:20]!r}"
        raise Refusal(f"{where}: time {times}; expected seconds") from error
    return f"{row['youtube_id']}_{start:06d}_{end:06d}"


def _locate(row: Item, on_disk: Mapping[str, Sequence[str]]) -> str | None:
    found = on_disk.get(row.path) or on_disk.get(row.path.rsplit("_", 2)[0]) or ()
    # A clip may lie in several class folders, or once for each split.
    folders = {str(row.label), str(row.label).replace(" ", "_")}
    return next((path for path in found if folders & set(PurePosixPath(path).parts)), next(iter(found), None))
