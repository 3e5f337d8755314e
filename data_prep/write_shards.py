"""manifest.jsonl -> WebDataset tars of short square videos, or of square images, at one size and one rate.

    python -m data_prep.write_shards manifest=FOLDER/manifest.jsonl output=FOLDER

    <output>/<split>/clips-000000.tar    <key>.mp4 (or .npy, uint8 't h w 3', or .jpg) and <key>.json of each video
    <output>/<split>/clips-000000.json   index: where in the tar each video lies, checksum, what failed
    <output>/errors.jsonl                videos that could not be decoded
    <output>/dataset.json                last: classes, size, shards, content hash

Which video goes into which shard follows from the manifest alone, so a shard is the unit of work: it is done when
its index exists and its size agrees, and a run that is killed and started again ends with the same bytes. Workers
are threads; each drives ffmpeg processes of its own, and those do the work.
"""

import hashlib
import json
import os
import re
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep import sources
from data_prep.images import encode_jpeg
from data_prep.list_videos import NO_CLASS, Record, read_manifest
from magvit_scale.config import Refusal, WriteShardsConfig, parse, refusals_end_the_program
from magvit_scale.files import npy_bytes, sha256, tar_written_aside, write_json, write_text
from magvit_scale.progress import progress
from magvit_scale.video import Frames, VideoError, encode_mp4

EXTENSIONS = {"h264": "mp4", "raw": "npy", "jpeg": "jpg"}
MAX_FAILED_FRACTION = 0.5


@dataclass(frozen=True)
class _Shard:
    """One unit of work.

    Attributes:
        split: `train` or `test`.
        path: of the tar.
        videos: manifest lines, in the order of the shard.
        fingerprint: hash of everything the tar's bytes follow from.
    """

    split: str
    path: Path
    videos: tuple[Record, ...]
    fingerprint: str

    @property
    def index(self) -> Path:
        return self.path.with_suffix(".json")


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the shards that are missing, then errors.jsonl and dataset.json.

    Raises:
        Refusal: no manifest, impossible sizes, shards of other settings in `output`, or most videos failed.
    """
    config = parse(WriteShardsConfig, argv)
    manifest = read_manifest(config.manifest)
    _check(config, manifest)
    shards = _plan(config, manifest)
    missing = [shard for shard in shards if not _is_done(shard)]
    with ThreadPoolExecutor(config.num_workers) as pool:
        written = pool.map(lambda shard: _write_shard(config, shard), missing)
        for _ in progress(written, "write_shards", len(missing), unit="shard"):
            pass
    _finish(config, manifest, shards)


def _check(config: WriteShardsConfig, manifest: Sequence[Record]) -> None:
    for key in ("size_px", "max_frames", "videos_per_shard", "num_workers"):
        if getattr(config, key) < 1:
            raise Refusal(f"{key}={getattr(config, key)}: expected at least 1")
    if config.fps is not None and config.fps <= 0:
        raise Refusal(f"fps={config.fps}: expected a positive rate, or null for the source's")
    if config.encoding == "h264" and config.size_px % 2:
        raise Refusal(f"size_px={config.size_px}: h264 takes even sizes only; give an even one or encoding=raw")
    longest = max(manifest, key=lambda record: record["num_frames"])
    if config.encoding == "jpeg" and longest["num_frames"] > 1:
        raise Refusal(
            f"encoding=jpeg: {longest['path']} has {longest['num_frames']} frames, expected images only;"
            " use encoding=h264 or raw"
        )


def _plan(config: WriteShardsConfig, manifest: Sequence[Record]) -> list[_Shard]:
    shards = []
    for split in sorted({record["split"] for record in manifest}):
        videos = _shuffled([record for record in manifest if record["split"] == split])
        for number, start in enumerate(range(0, len(videos), config.videos_per_shard)):
            part = tuple(videos[start : start + config.videos_per_shard])
            path = Path(config.output) / split / f"clips-{number:06d}.tar"
            shards.append(_Shard(split, path, part, _fingerprint(config, part)))
    return shards


def _shuffled(videos: Sequence[Record]) -> list[Record]:
    """Mixes the classes; by name, so that the order is the same on every machine."""
    return sorted(videos, key=lambda record: hashlib.sha256(os.fsencode(record["path"])).digest())


def _fingerprint(config: WriteShardsConfig, videos: Sequence[Record]) -> str:
    settings = [config.size_px, config.fps, config.max_frames, config.encoding]
    sources = [[record[key] for key in ("path", "sha256", "label", "class_id")] for record in videos]
    return _hash([settings, sources])


def _is_done(shard: _Shard) -> bool:
    if not shard.index.exists():
        return False
    index = json.loads(shard.index.read_text())
    if index["fingerprint"] != shard.fingerprint:
        raise Refusal(
            f"{shard.path} was written from another manifest or with other settings; give another output or delete it"
        )
    return shard.path.exists() and shard.path.stat().st_size == index["bytes"]


def _write_shard(config: WriteShardsConfig, shard: _Shard) -> None:
    shard.index.unlink(missing_ok=True)
    samples, errors = [], []
    with tar_written_aside(shard.path) as add:
        for record in shard.videos:
            try:
                samples.append(_write_video(config, record, add))
            except VideoError as error:
                errors.append({"path": record["path"], "stage": "write_shards", "reason": str(error)})
                _tell(f"skipped {record['path']}: {error}")
    located = _locate(shard.path, samples, EXTENSIONS[config.encoding])
    write_json(shard.index, {**located, "fingerprint": shard.fingerprint, "errors": errors})


def _write_video(config: WriteShardsConfig, record: Record, add: Callable[[str, bytes], None]) -> Record:
    """Appends one video and its description to the tar; returns its line of the index."""
    path, fps = Path(record["folder"]) / record["path"], config.fps or record["fps"]
    frames = _decode(config, path)
    about = {
        "label": record["label"],
        "class_id": record["class_id"],
        "num_frames": len(frames),
        "fps": fps,
        "source": record["path"],
    }
    key = _key(record)
    add(f"{key}.{EXTENSIONS[config.encoding]}", _encode(config, frames, fps))
    add(f"{key}.json", json.dumps(about).encode())
    return {"key": key, **about}


def _decode(config: WriteShardsConfig, path: Path) -> Frames:
    return sources.decode(path, size_px=config.size_px, fps=config.fps, max_frames=config.max_frames)


def _encode(config: WriteShardsConfig, frames: Frames, fps: float) -> bytes:
    if config.encoding == "jpeg":
        return encode_jpeg(frames)
    return _mp4(frames, fps) if config.encoding == "h264" else npy_bytes(frames)


def _key(record: Record) -> str:
    """A name that is unique and safe in any file system; a dot would end it for WebDataset."""
    readable = re.sub(r"[^a-z0-9]+", "-", Path(record["path"]).stem.lower()).strip("-")[:40]
    return f"{readable or 'video'}-{hashlib.sha256(os.fsencode(record['path'])).hexdigest()[:12]}"


def _mp4(frames: Frames, fps: float) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        encode_mp4(frames, path, fps=fps)
        return path.read_bytes()


def _locate(path: Path, samples: Sequence[Record], extension: str) -> Record:
    with tarfile.open(path) as tar:
        members = {member.name: member for member in tar}
    for sample in samples:
        member = members[f"{sample['key']}.{extension}"]
        sample.update(offset=member.offset_data, size=member.size)
    return {"count": len(samples), "bytes": path.stat().st_size, "sha256": sha256(path), "samples": samples}


def _finish(config: WriteShardsConfig, manifest: Sequence[Record], shards: Sequence[_Shard]) -> None:
    indexes = {shard.path: json.loads(shard.index.read_text()) for shard in shards}
    errors = [error for index in indexes.values() for error in index["errors"]]
    write_text(Path(config.output) / "errors.jsonl", "".join(json.dumps(error) + "\n" for error in errors))
    if len(errors) > MAX_FAILED_FRACTION * len(manifest):
        raise Refusal(
            f"{config.output}: {len(errors)} of {len(manifest)} videos failed, expected at most half;"
            f" the reasons are in {Path(config.output) / 'errors.jsonl'}; were the videos moved since list_videos?"
        )
    write_json(Path(config.output) / "dataset.json", _describe(config, manifest, shards, indexes))
    _tell(f"write_shards: {len(manifest) - len(errors)} videos in {len(shards)} shards, {len(errors)} skipped")


def _describe(
    config: WriteShardsConfig, manifest: Sequence[Record], shards: Sequence[_Shard], indexes: Mapping[Path, Record]
) -> Record:
    found = {record["class_id"]: record["label"] for record in manifest if record["class_id"] != NO_CLASS}
    classes = dict(sorted(found.items()))
    splits: dict[str, list[Record]] = {shard.split: [] for shard in shards}
    for shard in shards:
        index = indexes[shard.path]
        splits[shard.split].append(
            {"name": shard.path.name, **{key: index[key] for key in ("count", "bytes", "sha256")}}
        )
    content = {
        "classes": list(classes.values()),
        "size_px": config.size_px,
        "fps": config.fps,
        "encoding": config.encoding,
        "splits": splits,
    }
    return {**content, "total": sum(index["count"] for index in indexes.values()), "hash": _hash(content)}


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _tell(line: str) -> None:
    tqdm.write(line.encode(errors="backslashreplace").decode(), file=sys.stderr)


if __name__ == "__main__":
    with refusals_end_the_program("write_shards"):
        main()
