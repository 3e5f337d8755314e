"""Videos inside TFRecord files, as BAIR is published: one tf.train.Example per video, one feature per frame.

No reader library is used: `tfrecord` skips the checksums and trusts the lengths, the others are TensorFlow itself. The
format is small and documented: length (uint64), its masked CRC-32C, data, its masked CRC-32C; the data is a
protobuf message in which only length-delimited fields matter here.
"""

import hashlib
import io
import os
import re
import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO

import google_crc32c
import numpy as np
from PIL import Image

from magvit_scale.video import Frames, VideoError, VideoInfo

CAMERA = "image_aux1"
NUM_FRAMES = 30
SIZE_PX = 64
FPS = 10.0
"""No rate is published; this one is for players."""

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_RECORD = re.compile(r"(.+\.tfrecords?)#(\d+)")
# A record of BAIR has 0.8 MB.
_MAX_RECORD_BYTES = 64 << 20
_FEATURES = _FEATURE = _KEY = _BYTES_LIST = _BYTES = 1
_VALUE = 2


def is_record(path: Path) -> bool:
    """Whether the name is "FILE.tfrecords#RECORD"."""
    return _RECORD.fullmatch(str(path)) is not None


def split_record(path: Path) -> tuple[Path, int]:
    """The TFRecord file and the record's number, from "FILE#RECORD".

    Raises:
        ValueError: not such a path.
    """
    file, _, number = str(path).rpartition("#")
    return Path(file), int(number)


def count_records(file: Path) -> tuple[int, str | None]:
    """How many records a file holds before its end or its first damaged length, and that damage."""
    num_records = 0
    with file.open("rb") as stream:
        try:
            for _ in _lengths(stream):
                num_records += 1
        except VideoError as error:
            return num_records, str(error)
    return num_records, None


def probe_record(path: Path) -> tuple[VideoInfo, str]:
    """Decodes a whole video of "FILE#RECORD": what it holds, and the sha256 of its frames.

    Raises:
        VideoError: damaged, or not a video of BAIR.
    """
    frames = _frames(path)
    info = VideoInfo(SIZE_PX, SIZE_PX, FPS, NUM_FRAMES, NUM_FRAMES / FPS)
    return info, hashlib.sha256(frames.tobytes()).hexdigest()


def decode_record(path: Path, *, size_px: int) -> Frames:
    """The frames of "FILE#RECORD", as they are at 64 px, else resized.

    Returns:
        uint8 't h w 3', RGB, t = 30, h = w = size_px.

    Raises:
        VideoError: damaged, or not a video of BAIR.
    """
    frames = _frames(path)
    if size_px == SIZE_PX:
        return frames
    pictures = (Image.fromarray(frame).resize((size_px, size_px), Image.Resampling.BICUBIC) for frame in frames)
    return np.stack([np.asarray(picture) for picture in pictures])


def _frames(path: Path) -> Frames:
    features = _features(_read_record(*split_record(path)))
    return np.stack([_picture(features.get(f"{index}/{CAMERA}/encoded"), index) for index in range(NUM_FRAMES)])


def _picture(encoded: bytes | None, index: int) -> Frames:
    """One frame: published as raw bytes, in spite of its name; other copies hold PNG or JPEG."""
    if encoded is None:
        raise VideoError(f"no frame {index} of camera {CAMERA}")
    shape = (SIZE_PX, SIZE_PX, 3)
    if len(encoded) == np.prod(shape) and not encoded.startswith(b"\x89PNG"):
        return np.frombuffer(encoded, np.uint8).reshape(shape)
    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as image:
            frame = np.asarray(image.convert("RGB"))
    # Pillow tells damage in all of these; SyntaxError is its word for a broken PNG.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoError(f"frame {index} is neither raw {SIZE_PX}x{SIZE_PX} RGB nor PNG or JPEG") from error
    if frame.shape != shape:
        raise VideoError(f"frame {index} has {frame.shape[1]}x{frame.shape[0]} pixels, not {SIZE_PX}x{SIZE_PX}")
    return frame


def _read_record(file: Path, number: int) -> bytes:
    try:
        with file.open("rb") as stream:
            lengths = list(islice(_lengths(stream), number + 1))
            if len(lengths) <= number:
                raise VideoError(f"no record {number} in the file")
            data, checksum = stream.read(lengths[-1]), stream.read(_CHECKSUM.size)
    except OSError as error:
        raise VideoError(error.strerror or str(error)) from error
    if checksum != _CHECKSUM.pack(_masked_crc(data)):
        raise VideoError(f"checksum of record {number} is wrong")
    return data


def _lengths(stream: IO[bytes]) -> Iterator[int]:
    """Stands at the data of one record after the other and gives its length."""
    size, start = os.fstat(stream.fileno()).st_size, 0
    while start < size:
        stream.seek(start)
        header = stream.read(_HEADER.size)
        if len(header) < _HEADER.size:
            raise VideoError("truncated inside a record's header")
        length, checksum = _HEADER.unpack(header)
        if checksum != _masked_crc(header[:8]) or length > _MAX_RECORD_BYTES:
            raise VideoError("not a TFRecord, or a record's length is damaged")
        start += _HEADER.size + length + _CHECKSUM.size
        if start > size:
            raise VideoError("truncated inside a record")
        yield length


def _masked_crc(data: bytes) -> int:
    checksum = google_crc32c.value(data)
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _features(example: bytes) -> dict[str, bytes]:
    """The features of a tf.train.Example that hold bytes: name -> the bytes."""
    entries = [entry for features in _fields(example, _FEATURES) for entry in _fields(features, _FEATURE)]
    found = {}
    for entry in entries:
        name = b"".join(_fields(entry, _KEY)).decode(errors="replace")
        for bytes_list in _fields(b"".join(_fields(entry, _VALUE)), _BYTES_LIST):
            found[name] = b"".join(_fields(bytes_list, _BYTES))
    return found


def _fields(message: bytes, wanted: int) -> list[bytes]:
    """The length-delimited fields of a protobuf message with one number; the messages here have no others."""
    found, position = [], 0
    while position < len(message):
        tag, position = _varint(message, position)
        length, position = _varint(message, position)
        if tag & 7 != 2 or position + length > len(message):
            raise VideoError("not a tf.train.Example")
        if tag >> 3 == wanted:
            found.append(message[position : position + length])
        position += length
    return found


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(message) and shift < 64:
        byte = message[position]
        value, shift, position = value | (byte & 127) << shift, shift + 7, position + 1
        if byte < 128:
            return value, position
    raise VideoError("not a tf.train.Example")
