"""What every file of a data set holds, kept in probes.jsonl: a killed run has lost at most the files in flight."""

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep import sources
from magvit_scale.files import write_text
from magvit_scale.progress import progress
from magvit_scale.video import VideoError

Record = dict[str, Any]
"""One line of a .jsonl file."""


def probe_all(folder: Path, videos: Sequence[str], journal: Path, *, num_workers: int) -> list[Record]:
    """Decodes every file that the journal does not know, or knows with another size or time.

    Args:
        folder: of the data set.
        videos: paths below it.
        journal: probes.jsonl, grown line by line.
        num_workers: threads; each drives ffmpeg processes of its own, and those do the work.

    Returns:
        a record for each of `videos`, in their order: path, identity, and width, height, fps, num_frames, duration_s
        and sha256, or the reason why it cannot be read.
    """
    identities = {video: _identity(folder, video) for video in videos}
    known = {
        record["path"]: record for record in _read(journal) if record["identity"] == identities.get(record["path"])
    }
    # Written anew first: a killed run may have left half a line at the end.
    write_lines(journal, known.values())
    unknown = [video for video in videos if video not in known]
    with ThreadPoolExecutor(num_workers) as pool, journal.open("a") as lines:
        probed = pool.map(lambda video: _probe_one(folder, video, identities[video]), unknown)
        for record in progress(probed, "list_videos", len(unknown), unit="video"):
            lines.write(_line(record))
            lines.flush()
            known[record["path"]] = record
    return [known[video] for video in videos]


def write_lines(path: Path, records: Iterable[Record]) -> None:
    """Writes a .jsonl file, aside first."""
    write_text(path, "".join(map(_line, records)))


def _probe_one(folder: Path, video: str, identity: list[str | int]) -> Record:
    record: Record = {"path": video, "identity": identity}
    try:
        info, checksum = sources.probe(folder / video)
        return {**record, **asdict(info), "sha256": checksum}
    except VideoError as error:
        return {**record, "reason": str(error)}
    except OSError as error:
        return {**record, "reason": error.strerror or str(error)}


def _identity(folder: Path, video: str) -> list[str | int]:
    """What must be unchanged for an old probe to count; a broken link counts as an empty file."""
    path = sources.file_of(folder / video)
    if not path.exists():
        return [str(folder), 0, 0]
    status = path.stat()
    return [str(folder), status.st_size, status.st_mtime_ns]


def _read(path: Path) -> Iterator[Record]:
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"
