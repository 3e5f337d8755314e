"""What a source finds: items with class and split, in one order on every machine."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from magvit_scale.config import ListVideosConfig, Refusal

VIDEO_EXTENSIONS = (".avi", ".mkv", ".mov", ".mp4", ".webm")
# What data sets call their splits. Theirs is called `validation` where they hold a second one out.
SPLITS = {"train": "train", "val": "validation", "validate": "validation", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class Item:
    """One file to read.

    Attributes:
        path: below the folder of the data set, with '/'; "FILE#RECORD" inside a TFRecord file.
        label: its class; None without one.
        split: `train` or `test`; None leaves it to `test_fraction`.
    """

    path: str
    label: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Listing:
    """The files of a data set.

    Attributes:
        items: each path once.
        missing: what the annotations name and the folder lacks, path -> reason.
        classes: all labels in the order of their ids; None numbers the labels found in ASCII order.
        counts: published number of videos per split, where there is one.
        notes: what else a person should know, a line each.
    """

    items: Sequence[Item]
    missing: Mapping[str, str] = field(default_factory=dict)
    classes: Sequence[str] | None = None
    counts: Mapping[str, int] | None = None
    notes: Sequence[str] = ()


def files_below(folder: Path, extensions: Sequence[str]) -> list[str]:
    """All files below a folder with one of `extensions` (any case), as sorted relative paths.

    Raises:
        Refusal: there is none.
    """
    files = (Path(root, name) for root, _, names in os.walk(folder) for name in names)
    found = sorted(path.relative_to(folder).as_posix() for path in files if path.suffix.lower() in extensions)
    if not found:
        raise Refusal(
            f"videos={folder}: no videos in it; expected files that end in {' '.join(extensions)} (any case), or"
            " another source=, as images or bair"
        )
    return found


def by_stem(paths: Iterable[str]) -> dict[str, list[str]]:
    """File name without its extension -> the paths with it."""
    found: dict[str, list[str]] = {}
    for path in paths:
        found.setdefault(Path(path).stem, []).append(path)
    return found


def split_named(name: str, where: str) -> str:
    """`train`, `validation` or `test`, from what an annotation calls it.

    Raises:
        Refusal: no such split.
    """
    if name.strip().lower() not in SPLITS:
        raise Refusal(f"{where}: no such split {name[:40]!r}; expected {', '.join(SPLITS)}")
    return SPLITS[name.strip().lower()]


def held_out(items: Sequence[Item]) -> tuple[list[Item], list[str]]:
    """The validation items, or the test items where there are none, as split `test`; and a note on those left out.

    Papers evaluate on validation where a data set has both: the labels of its test videos are not published.
    """
    splits = {item.split for item in items}
    left_out = "test" if {"validation", "test"} <= splits else None
    kept = [item for item in items if left_out is None or item.split != left_out]
    renamed = [replace(item, split="test") if item.split == "validation" else item for item in kept]
    dropped = len(items) - len(kept)
    return renamed, [f"{dropped} videos of split test left out, split validation is held out"] if dropped else []


def refuse_other_counts(config: ListVideosConfig, listing: Listing, splits: Sequence[str | None]) -> None:
    """Compares the numbers of videos with the published ones; `missing` counts for any split.

    Raises:
        Refusal: they differ and `expect_counts` is on.
    """
    if listing.counts is None or not config.expect_counts:
        return
    found = Counter(splits)
    differences = [expected - found[split] for split, expected in listing.counts.items()]
    if min(differences) < 0 or sum(differences) != found["missing"]:
        reason = next((f"; {path}: {reason}" for path, reason in listing.missing.items()), "")
        absent = f" and {found['missing']} missing" if found["missing"] else ""
        raise Refusal(
            f"source={config.source}: {found['train']} train and {found['test']} test{absent} videos, expected"
            f" {listing.counts['train']} and {listing.counts['test']}; complete the data set, or take what is there"
            f" with expect_counts=false{reason}"
        )
