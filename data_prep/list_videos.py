"""A data set of videos -> manifest.jsonl: every readable one with class, split, size, rate, length and checksum.

    python -m data_prep.list_videos videos=FOLDER output=FOLDER                     # sub-folder = class
    python -m data_prep.list_videos source=images videos=IMAGENET output=FOLDER     # images, for the 2D stage
    python -m data_prep.list_videos source=ucf101 annotations=ucfTrainTestlist videos=UCF-101 output=FOLDER

Every file is decoded from its first frame to its last, because headers lie. What was found is noted file by file in
probes.jsonl, so a killed run continues where it was, and a later one reads only files that are new or changed. What
is not in the manifest is in rejects.jsonl with the reason; equal files are in duplicates.jsonl.
"""

import hashlib
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from data_prep import sources
from data_prep.probes import Record, probe_all, write_lines
from magvit_scale.config import ListVideosConfig, Refusal, parse, refusals_end_the_program

LABEL_WITHOUT_CLASS = "videos"
NO_CLASS = -1


def main(argv: Sequence[str] | None = None) -> None:
    """Writes rejects.jsonl, duplicates.jsonl and manifest.jsonl into `output`.

    Raises:
        Refusal: no folder, no videos, bad annotations, other numbers than the published, too many rejects, or too few
            videos for two splits.
    """
    config = parse(ListVideosConfig, argv)
    _check(config)
    folder = Path(config.videos).resolve()
    listing = sources.find(config, folder)
    _tell_all(f"list_videos: {note}" for note in listing.notes)
    items = {item.path: item for item in listing.items}
    accepted, rejects = _judge(config, _probe(config, folder, items), listing)
    write_lines(Path(config.output) / "rejects.jsonl", rejects)
    _refuse_too_few(config, accepted, rejects)
    manifest = _with_classes_and_splits(config, folder, accepted, items, listing.classes)
    if config.max_videos is None:
        sources.refuse_other_counts(config, listing, [record["split"] for record in manifest])
    duplicates = _duplicates(manifest)
    write_lines(Path(config.output) / "duplicates.jsonl", duplicates)
    write_lines(Path(config.output) / "manifest.jsonl", manifest)
    _tell_all(_summary(manifest, rejects, duplicates))


def read_manifest(path: str | Path) -> list[Record]:
    """The lines of a manifest.jsonl.

    Each has folder, path, split, label, class_id (-1 where the folder has no classes), width, height, fps, num_frames,
    duration_s and sha256.

    Raises:
        Refusal: missing, empty or not a manifest.
    """
    try:
        records = [json.loads(line) for line in Path(path).read_text().splitlines()]
    except OSError as error:
        raise Refusal(f"manifest={path}: {error.strerror}; `python -m data_prep.list_videos` writes it") from error
    except ValueError as error:
        raise Refusal(
            f"manifest={path}: not JSON lines ({error}); `python -m data_prep.list_videos` writes it"
        ) from error
    expected = {"folder", "path", "split", "label", "class_id", "num_frames", "fps", "sha256"}
    if not records or not all(isinstance(record, dict) and expected <= record.keys() for record in records):
        raise Refusal(
            f"manifest={path}: expected lines with {', '.join(sorted(expected))}; run data_prep.list_videos again"
        )
    return records


def _check(config: ListVideosConfig) -> None:
    if not 0 <= config.test_fraction < 1:
        raise Refusal(f"test_fraction={config.test_fraction}: expected a share from 0 and below 1")
    if config.num_workers < 1:
        raise Refusal(f"num_workers={config.num_workers}: expected at least 1")


def _take(config: ListVideosConfig, videos: Sequence[str]) -> list[str]:
    """At most `max_videos`, drawn by hash: a video's luck does not hang on what else is in the folder."""
    if config.max_videos is None or len(videos) <= config.max_videos:
        return list(videos)
    _tell(f"list_videos: takes {config.max_videos} of {len(videos)} videos (max_videos)")
    luck = {video: hashlib.sha256(os.fsencode(f"{config.seed}/{video}")).digest() for video in videos}
    taken = set(sorted(videos, key=luck.__getitem__)[: config.max_videos])
    return [video for video in videos if video in taken]


def _probe(config: ListVideosConfig, folder: Path, videos: Iterable[str]) -> list[Record]:
    journal = Path(config.output) / "probes.jsonl"
    return probe_all(folder, _take(config, list(videos)), journal, num_workers=config.num_workers)


def _judge(
    config: ListVideosConfig, found: Iterable[Record], listing: sources.Listing
) -> tuple[list[Record], list[Record]]:
    # What is missing says nothing of a part that was drawn from what is there.
    missing = listing.missing if config.max_videos is None else {}
    accepted, rejects = [], [{"path": path, "reason": reason} for path, reason in missing.items()]
    if rejects:
        _tell(f"list_videos: {len(rejects)} of the annotated videos are not there, as {rejects[0]['path']!r}")
    # One frame is all that an image has.
    min_frames = 1 if config.source == "images" else config.min_frames
    for record in found:
        reason = record.get("reason")
        if reason is None and record["num_frames"] < min_frames:
            reason = f"{record['num_frames']} frames, fewer than min_frames={min_frames}"
        if reason is None:
            accepted.append({key: value for key, value in record.items() if key != "identity"})
        else:
            rejects.append({"path": record["path"], "reason": reason})
            _tell(f"rejected {record['path']}: {reason}")
    return accepted, rejects


def _refuse_too_few(config: ListVideosConfig, accepted: Sequence[Record], rejects: Sequence[Record]) -> None:
    total = len(accepted) + len(rejects)
    listed = f"the reasons are in {Path(config.output) / 'rejects.jsonl'}"
    if not accepted:
        raise Refusal(f"videos={config.videos}: all {total} videos were rejected, expected readable ones; {listed}")
    if len(rejects) > config.max_reject_fraction * total:
        allowed = f"max_reject_fraction={config.max_reject_fraction}"
        raise Refusal(
            f"videos={config.videos}: {len(rejects)} of {total} videos were rejected, more than {allowed}; {listed}"
        )


def _with_classes_and_splits(
    config: ListVideosConfig,
    folder: Path,
    accepted: Sequence[Record],
    items: dict[str, sources.Item],
    classes: Sequence[str] | None,
) -> list[Record]:
    chosen = [items[record["path"]] for record in accepted]
    splits = {item.path: item.split for item in chosen} | _held_out(config, chosen)
    class_ids = _class_ids({item.label for item in chosen}, classes)
    return [
        {
            "folder": str(folder),
            **record,
            "split": splits[item.path],
            "label": item.label or LABEL_WITHOUT_CLASS,
            "class_id": class_ids[item.label],
        }
        for record, item in zip(accepted, chosen, strict=True)
    ]


def _class_ids(labels: set[str | None], classes: Sequence[str] | None) -> dict[str | None, int]:
    """Numbers the labels that occur, in the order of `classes`: ids without holes, and as published where all occur."""
    # Without any class there is none, and a model's vocabulary has no rows for them (spec section 5).
    if labels == {None}:
        return {None: NO_CLASS}
    names = sorted({label or LABEL_WITHOUT_CLASS for label in labels})
    if classes is not None:
        names = [name for name in classes if name in labels]
        if len(names) < len(classes):
            _tell(f"list_videos: {len(classes) - len(names)} of {len(classes)} classes have no video; ids skip them")
    numbers = {name: number for number, name in enumerate(names)}
    return {label: numbers[label or LABEL_WITHOUT_CLASS] for label in labels}


def _held_out(config: ListVideosConfig, items: Sequence[sources.Item]) -> dict[str, str]:
    """The split of each item that its source puts in none: path -> `train` or `test`."""
    by_class: defaultdict[str, list[str]] = defaultdict(list)
    for item in items:
        if item.split is None:
            by_class[item.label or LABEL_WITHOUT_CLASS].append(item.path)
    test = {path for paths in by_class.values() for path in _lowest_hashes(config, paths)}
    if by_class and not test:
        raise Refusal(
            f"videos={config.videos}: {len(items)} readable videos and no class with two; expected a class with"
            " at least 2, one to train on and one held out; add videos"
        )
    return {path: "test" if path in test else "train" for paths in by_class.values() for path in paths}


def _lowest_hashes(config: ListVideosConfig, paths: Sequence[str]) -> list[str]:
    """The test videos of one class: those whose name hashes lowest, so that new videos hardly move old ones."""
    count = min(max(1, round(config.test_fraction * len(paths))), len(paths) - 1)
    return sorted(paths, key=lambda path: hashlib.sha256(os.fsencode(f"{config.seed}:{path}")).digest())[:count]


def _duplicates(manifest: Sequence[Record]) -> list[Record]:
    """Videos of equal bytes, a line for each set of them."""
    by_checksum: defaultdict[str, list[Record]] = defaultdict(list)
    for record in manifest:
        by_checksum[record["sha256"]].append(record)
    return [
        {
            "sha256": checksum,
            "splits": sorted({record["split"] for record in equal}),
            "labels": sorted({record["label"] for record in equal}),
            "paths": [record["path"] for record in equal],
        }
        for checksum, equal in by_checksum.items()
        if len(equal) > 1
    ]


def _summary(manifest: Sequence[Record], rejects: Sequence[Record], duplicates: Sequence[Record]) -> Iterator[str]:
    counts = Counter(record["split"] for record in manifest)
    if duplicates:
        copies = sum(len(equal["paths"]) - 1 for equal in duplicates)
        leaks = sum(len(equal["splits"]) > 1 for equal in duplicates)
        between = f"{leaks} videos ARE IN BOTH train and test" if leaks else "none of them in both train and test"
        yield f"list_videos: {copies} files are copies of others, {between}: duplicates.jsonl"
    yield f"list_videos: {counts['train']} train and {counts['test']} test videos, {len(rejects)} rejected"


def _tell_all(lines: Iterable[str]) -> None:
    for line in lines:
        _tell(line)


def _tell(line: str) -> None:
    tqdm.write(line.encode(errors="backslashreplace").decode(), file=sys.stderr)


if __name__ == "__main__":
    with refusals_end_the_program("list_videos"):
        main()
