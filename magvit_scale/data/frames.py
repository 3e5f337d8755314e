"""Stored bytes -> frames, for everything that a shard may hold. No torch."""

import io
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import zstandard
from PIL import Image

from magvit_scale.video import Frames, VideoError
from magvit_scale.video_bytes import count_frames, decode_mp4, decode_resized, resized

Encoding = Literal["h264", "raw", "zstd", "jpeg", "video", "npy", "image"]
"""The first four are write_shards'; `video`, `npy` and `image` are foreign: any codec, size and frame count."""
MAX_NPY_HEADER = 4096
"""Bytes that a .npy may have before its values."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One stored video.

    Attributes:
        key: unique name.
        label: name of the class.
        class_id: in [0, number of classes), or -1 where the data have no classes.
        num_frames: stored frames; 0 where only the video itself tells, see `num_frames_of`.
        fps: frames per second; 0 where only the video itself tells.
        shard: the tar.
        offset: first byte of the video in the tar.
        size: bytes of the video.
        width: of the stored frames, pixels; 0 where only the video itself tells.
        height: of the stored frames, pixels; 0 where only the video itself tells.
        encoding: of the bytes.
        crc32: of the bytes; None where it was not recorded.
    """

    key: str
    label: str
    class_id: int
    num_frames: int
    fps: float
    shard: Path
    offset: int
    size: int
    width: int
    height: int
    encoding: Encoding
    crc32: int | None = None


def num_frames_of(sample: Sample) -> int:
    """Frames of a stored video; a foreign one is opened and its packets are counted.

    Raises:
        VideoError: its bytes cannot be read.
        FileNotFoundError: the shard is not there.
    """
    return sample.num_frames or count_stored(read_bytes(sample), sample.encoding)


def count_stored(data: bytes, encoding: Encoding) -> int:
    """Frames in the bytes of a foreign video.

    Raises:
        VideoError: they cannot be read.
    """
    if encoding == "image":
        return 1
    return len(npy_frames(data)) if encoding == "npy" else count_frames(data)


def read_frames(sample: Sample, start: int, stop: int, stride: int = 1, size_px: int | None = None) -> Frames:
    """Frames start, start + stride, ... below `stop` of a stored video.

    Args:
        sample: the video.
        start: first frame.
        stop: end of the range.
        stride: stored frames from one to the next.
        size_px: short side to which frames of foreign videos are resized; None keeps theirs.

    Returns:
        uint8 't h w 3', RGB.

    Raises:
        VideoError: the range is not inside the video, or its bytes do not decode.
        FileNotFoundError: the shard is not there.
    """
    if not 0 <= start < stop or (sample.num_frames and stop > sample.num_frames):
        raise VideoError(f"{sample.key}: frames [{start}, {stop}) of {sample.num_frames}")
    if sample.encoding == "raw":
        return np.ascontiguousarray(_mapped(sample)[start:stop:stride])
    data = read_bytes(sample)
    if sample.encoding == "zstd":
        data = decompressed(data, math.prod((sample.num_frames, sample.height, sample.width, 3)) + MAX_NPY_HEADER)
    return decode_stored(data, sample.encoding, start, stop, size_px)[::stride]


def decode_stored(data: bytes, encoding: Encoding, start: int, stop: int, size_px: int | None = None) -> Frames:
    """Frames [start, stop) of the bytes of a video, uint8 't h w 3', RGB; see `read_frames`.

    Raises:
        VideoError: the range is not inside the video, or its bytes do not decode.
    """
    if encoding == "h264":
        return decode_mp4(data, start, stop)
    if encoding == "video":
        return decode_resized(data, start, stop, size_px)
    frames = image_frames(data) if encoding in ("jpeg", "image") else npy_frames(data)
    if stop > len(frames):
        raise VideoError(f"frames [{start}, {stop}) of {len(frames)}")
    return resized(frames[start:stop], size_px if encoding in ("npy", "image") else None)


def read_bytes(sample: Sample) -> bytes:
    """The bytes of a stored video, as they lie in the tar.

    Raises:
        VideoError: the tar ends before them, or they are not those that were written.
        FileNotFoundError: the shard is not there.
    """
    with sample.shard.open("rb", buffering=0) as file:
        data = os.pread(file.fileno(), sample.size, sample.offset)
    if len(data) != sample.size:
        raise VideoError(f"{sample.key}: {len(data)} of {sample.size} bytes in {sample.shard}")
    if sample.crc32 is not None and zlib.crc32(data) != sample.crc32:
        raise VideoError(f"{sample.key}: damaged bytes in {sample.shard}")
    return data


def _mapped(sample: Sample) -> Frames:
    """The frames as a memory map: only what is sliced is read. They are the last bytes of the .npy."""
    shape = (sample.num_frames, sample.height, sample.width, 3)
    num_bytes = math.prod(shape)
    if not num_bytes <= sample.size <= num_bytes + MAX_NPY_HEADER:
        raise VideoError(f"{sample.key}: {sample.size} bytes, expected at least {num_bytes}")
    try:
        offset = sample.offset + sample.size - num_bytes
        return np.memmap(sample.shard, np.uint8, mode="r", offset=offset, shape=shape)
    except ValueError as error:
        raise VideoError(f"{sample.key}: the tar {sample.shard} ends before its frames") from error


def decompressed(data: bytes, max_bytes: int) -> bytes:
    """The .npy bytes in one zstd frame; what the frame claims to become is believed only up to `max_bytes`.

    Raises:
        VideoError: no such frame, or a larger one.
    """
    try:
        if not 0 < zstandard.frame_content_size(data) <= max_bytes:
            raise VideoError(f"zstd frame of another size than its frames, at most {max_bytes} bytes")
        return zstandard.ZstdDecompressor().decompress(data)
    except zstandard.ZstdError as error:
        raise VideoError(f"unreadable zstd: {error}") from error


def npy_frames(data: bytes) -> Frames:
    """The bytes of a .npy -> uint8 't h w 3'; the header is checked before anything is allocated."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read_header(file)
    except ValueError as error:
        raise VideoError(f"unreadable npy: {error}") from error
    is_video = len(shape) == 4 and shape[-1] == 3 and dtype == np.uint8 and not is_fortran and 0 not in shape
    if not is_video or math.prod(shape) != len(data) - file.tell():
        raise VideoError(f"npy of {dtype} {shape} in {len(data)} bytes: expected uint8 't h w 3'")
    return np.frombuffer(data, np.uint8, offset=file.tell()).reshape(shape)


def image_frames(data: bytes) -> Frames:
    """The bytes of one image -> one frame, uint8 '1 h w 3', RGB."""
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG", "PNG", "WEBP"]) as image:
            return np.asarray(image.convert("RGB"))[None]
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoError(f"unreadable jpeg: {error}") from error
