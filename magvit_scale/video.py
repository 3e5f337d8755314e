"""Pure frame functions: probe, decode, encode, pictures for a web page. Frames are uint8 `t h w c`. No torch.

Files are read by an ffmpeg process, from frame 0 to the end and never by seeking, because headers and timestamps of
real files lie (frame counts, XviD in .avi, variable rates). Only mp4 bytes that `encode_mp4` or `transcode` made are
decoded in process, by PyAV.
"""

import io
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray
from PIL import Image

from magvit_scale.ffmpeg_arguments import CRF, GOP, SOURCE, TARGET, decoding, encoding, probing, transcoding
from magvit_scale.ffmpeg_process import VideoError, file_in_memory, run_ffmpeg
from magvit_scale.files import written_aside

Frames = NDArray[np.uint8]

_STREAM = re.compile(r"Output #0.*?Stream #0:0.*?: Video: .*?, (\d+)x(\d+)[ ,].*?, ([\d.]+)(k?) fps", re.DOTALL)
_FRAMES = re.compile(r"^frame=\s*(\d+)", re.MULTILINE)
# swscale's default rounding darkens every decoded frame by one level and differs between CPUs. Asking for better needs
# PyAV 18, and so Python 3.11; with an older one the level is lost.
_FLAGS = ("BICUBIC", "ACCURATE_RND", "FULL_CHR_H_INT", "BITEXACT")
# A header may claim any size; a decoder allocates what it says.
_LIMITS = {"max_pixels": str(1 << 26)}
_EXACT = reduce(or_, (Interpolation[name] for name in _FLAGS if name in Interpolation.__members__))


@dataclass(frozen=True)
class VideoInfo:
    """What decoding a whole video showed.

    Attributes:
        width: pixels, after rotation.
        height: pixels, after rotation.
        fps: frames per second; of a variable rate the nominal one.
        num_frames: frames at the constant rate `fps`, as `decode(path, size_px=...)` returns them.
        duration_s: num_frames / fps.
    """

    width: int
    height: int
    fps: float
    num_frames: int
    duration_s: float


@dataclass(frozen=True)
class EncodedVideo:
    """A video as the bytes of a file, with what it holds.

    Attributes:
        data: the file.
        num_frames: frames.
        height: pixels.
        width: pixels.
    """

    data: bytes
    num_frames: int
    height: int
    width: int


def probe(path: str | Path) -> VideoInfo:
    """Decodes a whole video from frame 0 and says what it holds.

    Raises:
        VideoError: no readable video stream, no frame, or damage anywhere in it.
    """
    counters, log = run_ffmpeg(probing(), files={SOURCE: os.fspath(path)})
    stream, num_frames = _STREAM.search(log), _count_frames(counters)
    if stream is None:
        raise VideoError("no video frames")
    fps = float(stream[3]) * (1000 if stream[4] else 1)
    return VideoInfo(int(stream[1]), int(stream[2]), fps, num_frames, num_frames / fps)


def decode(
    path: str | Path,
    *,
    size_px: int,
    keep_aspect: bool = False,
    fps: float | None = None,
    max_frames: int | None = None,
) -> Frames:
    """Decodes a video from frame 0 to frames of one size at a constant rate; rotation and non-square pixels are
    applied.

    Args:
        path: any file that ffmpeg reads.
        size_px: short side of the frames.
        keep_aspect: the long side is kept, to the next even number; otherwise it is cropped at both ends to `size_px`.
        fps: frames per second; None keeps the source's (nominal) rate.
        max_frames: stop after this many.

    Returns:
        uint8 't h w 3', RGB.

    Raises:
        VideoError: no readable video stream, no frame, or damage in the part that was read.
    """
    pixels, log = run_ffmpeg(decoding(size_px, keep_aspect, fps, max_frames), files={SOURCE: os.fspath(path)})
    stream = _STREAM.search(log)
    if stream is None or not pixels:
        raise VideoError("no video frames")
    return np.frombuffer(pixels, np.uint8).reshape(-1, int(stream[2]), int(stream[1]), 3)


def transcode(
    path: str | Path,
    *,
    size_px: int,
    keep_aspect: bool = False,
    fps: float | None = None,
    max_frames: int | None = None,
) -> EncodedVideo:
    """What `decode` and then `encode_mp4` make, in one ffmpeg process and without a way through RGB: about half the
    CPU time.

    The crop begins at an even pixel, where `decode` may take the next one.

    Raises:
        VideoError: see `decode`; also an odd `size_px`.
        OSError: ffmpeg was interrupted.
    """
    if size_px % 2:
        raise VideoError(f"cannot encode size_px={size_px}: expected an even size")
    arguments = transcoding(size_px, keep_aspect, fps, max_frames)
    data, num_frames = _encode_h264(arguments, {SOURCE: os.fspath(path)})
    mp4 = EncodedVideo(data, *_read_header(data))
    if mp4.num_frames != num_frames:
        raise VideoError(f"the mp4 holds {mp4.num_frames} of {num_frames} frames")
    return mp4


def encode_mp4(frames: Frames, path: str | Path, *, fps: float, crf: int = CRF, gop: int = GOP) -> None:
    """Writes `mp4_bytes` as a file; aside first, then renamed."""
    data = mp4_bytes(frames, fps=fps, crf=crf, gop=gop)
    with written_aside(Path(path)) as file:
        file.write(data)


def mp4_bytes(frames: Frames, *, fps: float, crf: int = CRF, gop: int = GOP) -> bytes:
    """An H.264 mp4 that browsers play, byte-identical for the same frames and ffmpeg.

    Args:
        frames: uint8 't h w 3', RGB, even h and w.
        fps: frames per second.
        crf: x264's quality, 0 best, 51 worst.
        gop: a key frame every so many frames; a random frame costs at most this many decodes.

    Raises:
        VideoError: no frames, an odd size, or ffmpeg fails.
        OSError: ffmpeg was interrupted.
    """
    num_frames, height, width, _ = frames.shape
    if num_frames == 0 or height % 2 or width % 2:
        raise VideoError(
            f"cannot encode frames of shape {frames.shape}: expected at least one, of even height and width"
        )
    pixels = np.ascontiguousarray(frames).tobytes()
    return _encode_h264(encoding(width, height, fps, crf, gop), {}, pixels)[0]


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


def _encode_h264(arguments: tuple[str, ...], files: dict[str, str], pixels: bytes | None = None) -> tuple[bytes, int]:
    """The mp4 and the number of its frames. In memory, where no full disk can be mistaken for a broken video and a
    killed program leaves nothing behind; not a pipe, because an mp4's header is written last.
    """
    with file_in_memory() as file:
        files = {**files, TARGET: f"/dev/fd/{file.fileno()}"}
        counters, _ = run_ffmpeg(arguments, files=files, pixels=pixels, pass_fds=[file.fileno()])
        return file.read(), _count_frames(counters)


def _read_header(data: bytes) -> tuple[int, int, int]:
    """Frames, height and width that the header of our own mp4 tells (ISO 14496-12, 8.5.2, 8.7.3; it lies in front of
    the frames): opening the file takes PyAV most of a millisecond, a hundredth of making it.
    """
    sizes, description = data.find(b"stsz"), data.find(b"stsd")
    if min(sizes, description) < 0 or len(data) < max(sizes, description) + 48:
        raise VideoError("the mp4 has no header")
    width, height = struct.unpack_from(">HH", data, description + 44)
    return struct.unpack_from(">I", data, sizes + 12)[0], height, width


def _count_frames(counters: bytes) -> int:
    num_frames = [int(value) for value in _FRAMES.findall(counters.decode())]
    if not num_frames or num_frames[-1] == 0:
        raise VideoError("no video frames")
    return num_frames[-1]


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
