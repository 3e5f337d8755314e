"""What is wrong with one clip shard: its index, its tar, every video in it."""

import json
import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_prep.list_videos import Record
from data_prep.stored_video import EXTENSIONS
from data_prep.tar_members import ShardFault, read_members
from magvit_scale.data.frames import MAX_NPY_HEADER, decompressed, image_frames, npy_frames
from magvit_scale.data.shards import Shard
from magvit_scale.files import sha256
from magvit_scale.tar_headers import Member
from magvit_scale.video import VideoError
from magvit_scale.video_bytes import verify_mp4

MAX_METADATA_BYTES = 1 << 20
_KEY = re.compile(r"[a-z0-9-]+")
_LINE: Mapping[str, type | tuple[type, ...]] = {
    "key": str,
    "label": str,
    "class_id": int,
    "num_frames": int,
    "fps": (int, float),
    "height": int,
    "width": int,
    "source": str,
    "offset": int,
    "size": int,
}
Shape = tuple[int, int, int]


def read_index(shard: Shard) -> list[Record]:
    """The lines of a shard's index, each with the fields that write_shards gives it.

    Raises:
        ShardFault: the index is missing, damaged or of another tar, or the tar has another size.
    """
    path = shard.path.with_suffix(".json")
    if not path.exists():
        raise ShardFault(f"its index {path.name} is missing")
    if (size := path.stat().st_size) > MAX_METADATA_BYTES * (1 + shard.count):
        raise ShardFault(f"its index {path.name} has {size} bytes, too many for {shard.count} videos")
    index = _read_json(path.read_bytes(), f"its index {path.name}")
    if not isinstance(index, dict) or not isinstance(index.get("samples"), list):
        raise ShardFault(f"its index {path.name} is not one of write_shards")
    samples = index["samples"]
    found = [index.get("sha256"), index.get("bytes"), index.get("count"), len(samples)]
    if found != [shard.sha256, shard.num_bytes, shard.count, shard.count]:
        raise ShardFault(
            f"its index {path.name} describes another tar: {found[2]} videos, {found[1]} bytes, sha256"
            f" {str(found[0])[:12]}; dataset.json says {shard.count}, {shard.num_bytes}, {shard.sha256[:12]}"
        )
    for sample in samples:
        _check_line(sample)
    found_bytes = shard.path.stat().st_size if shard.path.exists() else 0
    if found_bytes != shard.num_bytes:
        raise ShardFault(f"{found_bytes} bytes, expected {shard.num_bytes}")
    return samples


def tar_faults(shard: Shard, samples: Sequence[Record], encoding: str, size_px: int) -> Iterator[str]:
    """Reads a whole tar: its checksum, its members against the index, and every video."""
    if (found := sha256(shard.path)) != shard.sha256:
        yield f"sha256 {found[:12]}, expected {shard.sha256[:12]}: the tar was changed after it was written"
    extension = EXTENSIONS[encoding]
    with shard.path.open("rb") as file:
        try:
            members = {member.name: member for member in read_members(file)}
            _check_names(list(members), [f"{line['key']}.{end}" for line in samples for end in (extension, "json")])
        except ShardFault as fault:
            yield str(fault)
            return
        for line in samples:
            try:
                video, about = (members[f"{line['key']}.{end}"] for end in (extension, "json"))
                _check_metadata(file.fileno(), about, line)
                _check_video(file.fileno(), video, line, encoding, size_px)
            except ShardFault as fault:
                yield f"{line['key']}: {fault}"


def _read_json(data: bytes, what: str) -> Any:
    # RecursionError: thousands of nested lists.
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ShardFault(f"{what} is not JSON: {error}") from error


def _check_line(line: Any) -> None:
    if not isinstance(line, dict) or not line.keys() >= _LINE.keys():
        raise ShardFault(f"its index has a line that is not one of write_shards: {str(line)[:80]}")
    wrong = [name for name, kind in _LINE.items() if not isinstance(line[name], kind) or isinstance(line[name], bool)]
    positive = [name for name in ("num_frames", "fps", "height", "width", "size") if name not in wrong]
    wrong += [name for name in positive if not 0 < line[name] < math.inf]
    if wrong or not _KEY.fullmatch(line["key"]):
        raise ShardFault(f"its index has a line with an impossible {(wrong or ['key'])[0]}: {str(line)[:80]}")


def _check_names(found: Sequence[str], expected: Sequence[str]) -> None:
    if missing := sorted(set(expected) - set(found)):
        raise ShardFault(f"member {missing[0]!r} is missing")
    if unknown := sorted(set(found) - set(expected)):
        raise ShardFault(f"member {unknown[0]!r} is not in the index")
    if list(found) != list(expected):
        raise ShardFault("the members are not in the order of the index")


def _check_metadata(file: int, member: Member, line: Record) -> None:
    if member.size > MAX_METADATA_BYTES:
        raise ShardFault(f"{member.size} bytes of metadata, expected at most {MAX_METADATA_BYTES}")
    about = _read_json(os.pread(file, member.size, member.offset), "its metadata")
    expected = {name: value for name, value in line.items() if name not in ("key", "offset", "size", "crc32")}
    if about != expected:
        raise ShardFault(f"its metadata and its line in the index differ: {str(about)[:80]}")


def _check_video(file: int, member: Member, line: Record, encoding: str, size_px: int) -> None:
    if (member.offset, member.size) != (line["offset"], line["size"]):
        raise ShardFault(f"the index says bytes {line['size']} at {line['offset']}, expected {member}")
    expected = (line["num_frames"], line["height"], line["width"])
    if min(expected[1:]) != size_px:
        raise ShardFault(f"frames of {expected[2]}x{expected[1]}, expected a short side of {size_px}")
    try:
        data = os.pread(file, member.size, member.offset)
        found = _shape(data, encoding, math.prod(expected) * 3)
    except (VideoError, ValueError, OSError) as error:
        raise ShardFault(f"does not decode: {error}") from error
    if zlib.crc32(data) != line.get("crc32", zlib.crc32(data)):
        raise ShardFault("its bytes are not those that were written")
    if found != expected:
        raise ShardFault(
            f"{found[0]} frames of {found[2]}x{found[1]}, expected {expected[0]} of {expected[2]}x{expected[1]}"
        )


def _shape(data: bytes, encoding: str, num_bytes: int) -> Shape:
    """Frames, height and width of a stored video, after decoding all of it."""
    if encoding == "h264":
        return verify_mp4(data)
    npy = decompressed(data, num_bytes + MAX_NPY_HEADER) if encoding == "zstd" else data
    num_frames, height, width, _ = (image_frames(data) if encoding == "jpeg" else npy_frames(npy)).shape
    return num_frames, height, width
