"""Videos in memory: decode, check, count and resize, in process, by PyAV. Frames are uint8 `t h w c`. No torch.

The decoder seeks in mp4 bytes that `encode_mp4` or `transcode` made and in no others.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from operator import or_
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image

from magvit_scale.ffmpeg_process import VideoError
from magvit_scale.video import Frames

# swscale's default rounding darkens every decoded frame by one level and differs between CPUs. Asking for better needs
# PyAV 18, and so Python 3.11; with an older one the level is lost.
_FLAGS = ("BICUBIC", "ACCURATE_RND", "FULL_CHR_H_INT", "BITEXACT")
# A header may claim any size; a decoder allocates what it says.
_LIMITS = {"max_pixels": str(1 << 26)}
_EXACT = reduce(or_, (Interpolation[name] for name in _FLAGS if name in Interpolation.__members__))


def verify_mp4(data: bytes) -> tuple[int, int, int]:
    """Decodes every frame of an mp4, and stops at the first damage that the decoder notices.

    Returns:
        frames, height and width that were decoded.

    Raises:
        VideoError: unreadable bytes.
    """
    with _opened(data, "mp4") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"err_detect": "explode"}
        sizes = [(frame.height, frame.width) for frame in container.decode(stream)]
    if len(set(sizes)) != 1:
        raise VideoError(f"frames of {len(set(sizes))} sizes, expected one")
    return (len(sizes), *sizes[0])


def decode_mp4(data: bytes, start: int, stop: int) -> Frames:
    """Decodes frames [start, stop) of an mp4 that `encode_mp4` or `transcode` made, from the key frame before `start`.

    Returns:
        uint8 't h w 3', RGB.

    Raises:
        VideoError: unreadable bytes, or fewer frames than asked for.
    """
    with _opened(data, "mp4") as container:
        return _decode_range(container, start, stop)


def count_frames(data: bytes) -> int:
    """Counts the frames of any video in memory by its packets, without decoding.

    Raises:
        VideoError: unreadable bytes, or no video in them.
    """
    with _opened(data) as container:
        num_packets = sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))
    if not num_packets:
        raise VideoError("no video frames")
    return num_packets


def decode_resized(data: bytes, start: int, stop: int, size_px: int | None = None) -> Frames:
    """Decodes frames [start, stop) of any video in memory, from its frame 0: seeking in such files misses frames.

    Packets may promise more frames than there are; a range beyond the end is moved back to it.

    Args:
        data: bytes of the file.
        start: first frame.
        stop: end of the range.
        size_px: short side of the frames; None keeps the video's.

    Returns:
        uint8 't h w 3', RGB, with rotation and non-square pixels applied.

    Raises:
        VideoError: unreadable bytes, or fewer frames than asked for.
    """
    frames, num_frames, reformatter = [], 0, VideoReformatter()
    with _opened(data) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        size = _square_pixels(stream, size_px)
        for frame in container.decode(stream):
            if num_frames >= start:
                frames.append(_upright(frame, reformatter, size))
            num_frames += 1
            if num_frames == stop:
                return np.stack(frames)
    if start == 0 or num_frames < stop - start:
        raise VideoError(f"{num_frames} frames where [{start}, {stop}) were asked for")
    return decode_resized(data, num_frames - (stop - start), num_frames, size_px)


def resized(frames: Frames, size_px: int | None) -> Frames:
    """Frames whose short side is `size_px`, uint8 't h w 3'; None keeps the size."""
    _, height, width, _ = frames.shape
    if size_px is None or min(height, width) == size_px:
        return frames
    size = _short_side_to(width, height, size_px)
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in frames])


@contextmanager
def _opened(data: bytes, kind: str = "video") -> Iterator[Any]:
    """The container in the bytes; what goes wrong in the block is a VideoError."""
    try:
        with av.open(io.BytesIO(data)) as container:
            context = container.streams.video[0].codec_context
            if context is None:
                raise VideoError(f"unreadable {kind}: no decoder for it")
            context.options = _LIMITS
            yield container
    except (av.FFmpegError, IndexError, MemoryError) as error:
        raise VideoError(f"unreadable {kind}: {error}") from error


def _decode_range(container: Any, start: int, stop: int) -> Frames:
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    if not stream.average_rate or not stream.time_base:
        raise VideoError("unreadable mp4: no frame rate")
    frame_ticks = 1 / (stream.average_rate * stream.time_base)
    if start:
        container.seek(round(start * frame_ticks), stream=stream, backward=True)
    reformatter, frames = VideoReformatter(), []
    for frame in container.decode(stream):
        index = round(frame.pts / frame_ticks)
        if start <= index < stop:
            frames.append(reformatter.reformat(frame, format="rgb24", interpolation=_EXACT, threads=1).to_ndarray())
        if index >= stop - 1:
            break
    if len(frames) != stop - start:
        raise VideoError(f"{len(frames)} frames where [{start}, {stop}) were asked for")
    return np.stack(frames)


def _square_pixels(stream: Any, size_px: int | None) -> tuple[int, int]:
    """Width and height of a stream's frames with square pixels and the short side `size_px`, before any rotation."""
    width, height = round(stream.width * (stream.sample_aspect_ratio or 1)), stream.height
    return (width, height) if size_px is None else _short_side_to(width, height, size_px)


def _upright(frame: Any, reformatter: VideoReformatter, size: tuple[int, int]) -> Frames:
    """One frame as RGB, 'h w 3', resized and turned as its metadata say."""
    width, height = size
    picture = reformatter.reformat(frame, width, height, format="rgb24", interpolation=_EXACT, threads=1)
    return np.rot90(picture.to_ndarray(), round(frame.rotation / 90))


def _short_side_to(width: int, height: int, size_px: int) -> tuple[int, int]:
    short = min(width, height)
    return max(size_px, round(width * size_px / short)), max(size_px, round(height * size_px / short))
