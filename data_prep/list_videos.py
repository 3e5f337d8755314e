"""A folder of videos -> manifest.jsonl: every readable video with class, split, size, rate, length and checksum.

    python -m data_prep.list_videos videos=FOLDER output=FOLDER
    python -m data_prep.list_videos videos=FOLDER output=FOLDER min_frames=1    # takes images too

Every file is decoded from its first frame to its last, because headers lie. What was found is noted file by file in
probes.jsonl, so a killed run continues where it was, and a later one reads only files that are new or changed.
"""

import hashlib
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.images import IMAGE_EXTENSIONS, is_image, probe_image
from magvit_scale.config import ListVideosConfig, Refusal, parse, refusals_end_the_program
from magvit_scale.files import sha256, write_text
from magvit_scale.progress import progress
from magvit_scale.video import VideoError, probe

EXTENSIONS = (".avi", ".mkv", ".mov", ".mp4", ".webm")
CLASS_OF_LOOSE_FILES = "videos"
NO_CLASS = -1

Record = dict[str, Any]
"""One line of a .jsonl file."""


def main(argv: Sequence[str] | None = None) -> None:
    """Writes manifest.jsonl and rejects.jsonl into `output`.

    Raises:
        Refusal: no folder, no videos, too many rejects, or too few videos for two splits.
    """
    config = parse(ListVideosConfig, argv)
    _check(config)
    folder = Path(config.videos).resolve()
    found = _probe_all(config, folder, _take(config, find_videos(folder, _extensions(config))))
    accepted, rejects = _judge(config, found)
    _write_lines(Path(config.output) / "rejects.jsonl", rejects)
    _refuse_too_few(config, accepted, rejects)
    manifest = _with_classes_and_splits(config, folder, accepted)
    _write_lines(Path(config.output) / "manifest.jsonl", manifest)
    counts = Counter(record["split"] for record in manifest)
    _tell(f"list_videos: {counts['train']} train and {counts['test']} test videos, {len(rejects)} rejected")


def find_videos(folder: Path, extensions: Sequence[str]) -> list[str]:
    """All files below a folder with one of `extensions` (any case), as sorted relative paths.

    Raises:
        Refusal: the folder is missing or holds no such file.
    """
    if not folder.is_dir():
        raise Refusal(f"videos={folder}: no such folder; expected one sub-folder of videos per class")
    files = (Path(root, name) for root, _, names in os.walk(folder) for name in names)
    videos = sorted(str(path.relative_to(folder)) for path in files if path.suffix.lower() in extensions)
    if not videos:
        raise Refusal(f"videos={folder}: no videos in it; expected files that end in {' '.join(extensions)} (any case)")
    return videos


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


def _extensions(config: ListVideosConfig) -> tuple[str, ...]:
    # Only where one frame is enough: the pictures beside a folder's videos are not its data.
    return (*EXTENSIONS, *IMAGE_EXTENSIONS) if config.min_frames == 1 else EXTENSIONS


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
    luck = {video: hashlib.sha256(f"{config.seed}/{video}".encode()).digest() for video in videos}
    return sorted(sorted(videos, key=luck.__getitem__)[: config.max_videos])


def _probe_all(config: ListVideosConfig, folder: Path, videos: Sequence[str]) -> list[Record]:
    """Probes every video that probes.jsonl does not know, in the order of `videos`."""
    journal = Path(config.output) / "probes.jsonl"
    identities = {video: _identity(folder, video) for video in videos}
    known = {
        record["path"]: record
        for record in _read_journal(journal)
        if record["identity"] == identities.get(record["path"])
    }
    # Written anew first: a killed run may have left half a line at the end.
    _write_lines(journal, known.values())
    unknown = [video for video in videos if video not in known]
    with ThreadPoolExecutor(config.num_workers) as pool, journal.open("a") as lines:
        probed = pool.map(lambda video: _probe_one(folder, video, identities[video]), unknown)
        for record in progress(probed, "list_videos", len(unknown), unit="video"):
            lines.write(_line(record))
            lines.flush()
            known[record["path"]] = record
    return [known[video] for video in videos]


def _probe_one(folder: Path, video: str, identity: list[str | int]) -> Record:
    path = folder / video
    record: Record = {"path": video, "identity": identity}
    try:
        return {**record, **asdict(probe_image(path) if is_image(path) else probe(path)), "sha256": sha256(path)}
    except VideoError as error:
        return {**record, "reason": str(error)}
    except OSError as error:
        return {**record, "reason": error.strerror or str(error)}


def _identity(folder: Path, video: str) -> list[str | int]:
    """What must be unchanged for an old probe to count; a broken link counts as an empty file."""
    path = folder / video
    if not path.exists():
        return [str(folder), 0, 0]
    status = path.stat()
    return [str(folder), status.st_size, status.st_mtime_ns]


def _read_journal(path: Path) -> Iterator[Record]:
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _judge(config: ListVideosConfig, found: Iterable[Record]) -> tuple[list[Record], list[Record]]:
    accepted, rejects = [], []
    for record in found:
        reason = record.get("reason")
        if reason is None and record["num_frames"] < config.min_frames:
            reason = f"{record['num_frames']} frames, fewer than min_frames={config.min_frames}"
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


def _with_classes_and_splits(config: ListVideosConfig, folder: Path, accepted: Sequence[Record]) -> list[Record]:
    by_class: defaultdict[str, list[str]] = defaultdict(list)
    for record in accepted:
        by_class[_label(record["path"])].append(record["path"])
    held_out = {path for paths in by_class.values() for path in _held_out(config, paths)}
    if not held_out:
        raise Refusal(
            f"videos={config.videos}: {len(accepted)} readable videos and no class with two; expected a class with"
            " at least 2, one to train on and one held out; add videos"
        )
    # Without any class folder there are no classes, and a model's vocabulary has no rows for them (spec section 5).
    is_classless = set(by_class) == {CLASS_OF_LOOSE_FILES} and not (folder / CLASS_OF_LOOSE_FILES).is_dir()
    class_ids = {label: NO_CLASS if is_classless else number for number, label in enumerate(sorted(by_class))}
    return [
        {
            "folder": str(folder),
            **record,
            "split": "test" if record["path"] in held_out else "train",
            "label": _label(record["path"]),
            "class_id": class_ids[_label(record["path"])],
        }
        for record in accepted
    ]


def _held_out(config: ListVideosConfig, paths: Sequence[str]) -> list[str]:
    """The test videos of one class: those whose name hashes lowest, so that new videos hardly move old ones."""
    count = min(max(1, round(config.test_fraction * len(paths))), len(paths) - 1)
    return sorted(paths, key=lambda path: hashlib.sha256(os.fsencode(f"{config.seed}:{path}")).digest())[:count]


def _label(path: str) -> str:
    parent = Path(path).parent
    return CLASS_OF_LOOSE_FILES if parent == Path() else parent.as_posix()


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"


def _write_lines(path: Path, records: Iterable[Record]) -> None:
    write_text(path, "".join(map(_line, records)))


def _tell(line: str) -> None:
    tqdm.write(line.encode(errors="backslashreplace").decode(), file=sys.stderr)


if __name__ == "__main__":
    with refusals_end_the_program("list_videos"):
        main()
