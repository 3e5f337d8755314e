"""manifest.jsonl -> WebDataset tars of short videos, or of images, at one size and one rate.

    python -m data_prep.write_shards manifest=FOLDER/manifest.jsonl output=FOLDER

    <output>/<split>/clips-000000.tar    <key>.mp4 (or uint8 't h w 3': .npy, .npy.zst; or .jpg) and <key>.json each
    <output>/<split>/clips-000000.json   index: where in the tar each video lies, checksum, what failed, statistics
    <output>/errors.jsonl                videos that could not be stored: key, source, stage, message
    <output>/dataset.json                last: classes, size, shards, content hash

Which video goes into which shard follows from the manifest alone, so a shard is the unit of work: it is done when
its index exists and its size agrees, and a run that is killed and started again ends with the same bytes. Workers
are threads; each drives ffmpeg processes of its own, and those do the work.
"""

import json
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tqdm import tqdm

from data_prep.list_videos import NO_CLASS, Record, read_manifest
from data_prep.shard_plan import PlannedShard, content_hash, key_of, plan
from data_prep.stored_video import EXTENSIONS, settings, store
from magvit_scale.config import Refusal, WriteShardsConfig, parse, refusals_end_the_program
from magvit_scale.files import in_own_order, sha256, tar_written_aside, write_json, write_text
from magvit_scale.progress import progress_bar
from magvit_scale.video import VideoError

MAX_FAILED_FRACTION = 0.5


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the shards that are missing, then errors.jsonl and dataset.json.

    Raises:
        Refusal: no manifest, impossible sizes, shards of other settings in `output`, or most videos failed.
    """
    config = parse(WriteShardsConfig, argv)
    manifest = read_manifest(config.manifest)
    _check(config, manifest)
    shards = plan(config, manifest)
    _write_missing(config, shards)
    _finish(config, manifest, shards)


def _check(config: WriteShardsConfig, manifest: Sequence[Record]) -> None:
    for key in ("size_px", "max_frames", "videos_per_shard", "num_workers"):
        if getattr(config, key) < 1:
            raise Refusal(f"{key}={getattr(config, key)}: expected at least 1")
    if config.fps is not None and config.fps <= 0:
        raise Refusal(f"fps={config.fps}: expected a positive rate, or null for the source's")
    if (config.encoding == "h264" or config.keep_aspect) and config.size_px % 2:
        what = "h264" if config.encoding == "h264" else "keep_aspect"
        raise Refusal(f"size_px={config.size_px}: {what} takes even sizes only; give an even one or encoding=raw")
    _refuse_twins(manifest)
    longest = max(manifest, key=lambda record: record["num_frames"])
    if config.encoding == "jpeg" and longest["num_frames"] > 1:
        raise Refusal(
            f"encoding=jpeg: {longest['path']} has {longest['num_frames']} frames, expected images only;"
            " use encoding=h264 or raw"
        )


def _refuse_twins(manifest: Sequence[Record]) -> None:
    path, count = Counter(record["path"] for record in manifest).most_common(1)[0]
    if count > 1:
        raise Refusal(f"the manifest names {path} {count} times, expected once; run data_prep.list_videos again")


def _write_missing(config: WriteShardsConfig, shards: Sequence[PlannedShard]) -> None:
    missing = [shard for shard in shards if not shard.is_done()]
    for shard in missing:
        shard.index.unlink(missing_ok=True)
    totals = [sum(len(shard.videos) for shard in part) for part in (shards, missing)]
    lock = threading.Lock()
    with (
        progress_bar("write_shards", totals[0], unit="clip", initial=totals[0] - totals[1]) as bar,
        ThreadPoolExecutor(config.num_workers) as pool,
    ):

        def count_one() -> None:
            with lock:
                bar.update(1)

        for _ in pool.map(partial(_write_shard, config, count_one), in_own_order(missing)):
            pass


def _write_shard(config: WriteShardsConfig, count_one: Callable[[], None], shard: PlannedShard) -> None:
    if shard.is_done():  # by a launch beside this one
        for _ in shard.videos:
            count_one()
        return
    samples, errors = [], []
    with tar_written_aside(shard.path) as add:
        for record in shard.videos:
            try:
                samples.append(_write_video(config, record, add))
            except VideoError as error:
                errors.append(_error(record, error))
                _tell(f"skipped {record['path']}: {error}")
            count_one()
    tar = {"count": len(samples), "bytes": shard.path.stat().st_size, "sha256": sha256(shard.path), "samples": samples}
    stats = {**_statistics(samples, errors), "encoder": settings(config)}
    write_json(shard.index, {**tar, "fingerprint": shard.fingerprint, "errors": errors, "stats": stats})


def _error(record: Record, error: VideoError) -> Record:
    return {"key": key_of(record), "source": record["path"], "stage": "write_shards", "message": str(error)}


def _statistics(samples: Sequence[Record], errors: Sequence[Record]) -> Record:
    return {
        "videos": len(samples) + len(errors),
        "stored": len(samples),
        "failed": len(errors),
        "frames": sum(sample["num_frames"] for sample in samples),
        "seconds": round(sum(sample["num_frames"] / sample["fps"] for sample in samples), 3),
        "bytes": sum(sample["size"] for sample in samples),
        "errors": dict(sorted(Counter(error["message"] for error in errors).items())),
    }


def _write_video(config: WriteShardsConfig, record: Record, add: Callable[[str, bytes], int]) -> Record:
    """Appends one video and its description to the tar; returns its line of the index."""
    stored, key = store(config, record), key_of(record)
    about = {
        "label": record["label"],
        "class_id": record["class_id"],
        "num_frames": stored.num_frames,
        "fps": config.fps or record["fps"],
        "height": stored.height,
        "width": stored.width,
        "source": record["path"],
    }
    offset = add(f"{key}.{EXTENSIONS[config.encoding]}", stored.data)
    add(f"{key}.json", json.dumps(about).encode())
    place = {"offset": offset, "size": len(stored.data)}
    return {"key": key, **about, "crc32": zlib.crc32(stored.data), **place}


def _finish(config: WriteShardsConfig, manifest: Sequence[Record], shards: Sequence[PlannedShard]) -> None:
    indexes = {shard.path: shard.read_index() for shard in shards}
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
    config: WriteShardsConfig,
    manifest: Sequence[Record],
    shards: Sequence[PlannedShard],
    indexes: Mapping[Path, Record],
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
    return {**content, "total": sum(index["count"] for index in indexes.values()), "hash": content_hash(content)}


def _tell(line: str) -> None:
    tqdm.write(line.encode(errors="backslashreplace").decode(), file=sys.stderr)


if __name__ == "__main__":
    with refusals_end_the_program("write_shards"):
        main()
