"""Pure frame functions: probe, decode, encode, pictures for a web page. Frames are uint8 `t h w c`. No torch.

Files are read by an ffmpeg process, from frame 0 to the end and never by seeking, because headers and timestamps of
real files lie (frame counts, XviD in .avi, variable rates). Only mp4 bytes that `encode_mp4` wrote are decoded in
process, by PyAV.
"""

import io
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache, reduce
from operator import or_
from pathlib import Path
from typing import Any

import av
import ffmpeg
import imageio_ffmpeg
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray
from PIL import Image

Frames = NDArray[np.uint8]

# Damage is told on stderr only: ffmpeg exits 0 on a truncated file or flipped bits.
_TROUBLE = re.compile(r"\[(?:error|fatal|panic)\] (.*)")
_STREAM = re.compile(r"Output #0.*?Stream #0:0.*?: Video: .*?, (\d+)x(\d+)[ ,].*?, ([\d.]+)(k?) fps", re.DOTALL)
# Symbols that carry no reason of their own; the line before them does.
_CONSEQUENCES = ("Error opening", "Error submitting", "Conversion failed", "Nothing was written")
# The matrix of small pictures, written down so that every player and PyAV take the same one.
_COLOURS = {"color_range": "tv", "colorspace": "smpte170m", "color_primaries": "smpte170m", "color_trc": "smpte170m"}
# swscale's default rounding darkens every decoded frame by one level and differs between CPUs. Asking for better needs
# PyAV 18, and so Python 3.11; with an older one the level is lost.
_FLAGS = ("BICUBIC", "ACCURATE_RND", "FULL_CHR_H_INT", "BITEXACT")
_EXACT = reduce(or_, (Interpolation[name] for name in _FLAGS if name in Interpolation.__members__))


class VideoError(ValueError):
    """A video that cannot be read, in a few words."""


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


@cache
def ffmpeg_executable() -> str:
    """The system's ffmpeg, or the one that imageio-ffmpeg brings where there is none or it is older than 5.1."""
    system = shutil.which("ffmpeg")
    return system if system and _knows_fps_mode(system) else imageio_ffmpeg.get_ffmpeg_exe()


def _knows_fps_mode(executable: str) -> bool:
    version = subprocess.run([executable, "-version"], capture_output=True, text=True, check=False).stdout
    number = re.match(r"ffmpeg version n?(\d+)\.(\d+)", version)
    # A build from git has no such number, and is newer.
    return number is None or (int(number[1]), int(number[2])) >= (5, 1)


def probe(path: str | Path) -> VideoInfo:
    """Decodes a whole video from frame 0 and says what it holds.

    Raises:
        VideoError: no readable video stream, no frame, or damage anywhere in it.
    """
    output = _constant_rate(_input(path), None).output("pipe:", format="null", fps_mode="passthrough")
    counters, log = _run(output.global_args("-progress", "pipe:1", "-nostats"), loglevel="level+info")
    num_frames = [int(value) for value in re.findall(r"^frame=\s*(\d+)", counters.decode(), re.MULTILINE)]
    stream = _STREAM.search(log)
    if stream is None or not num_frames or num_frames[-1] == 0:
        raise VideoError("no video frames")
    fps = float(stream[3]) * (1000 if stream[4] else 1)
    return VideoInfo(int(stream[1]), int(stream[2]), fps, num_frames[-1], num_frames[-1] / fps)


def decode(path: str | Path, *, size_px: int, fps: float | None = None, max_frames: int | None = None) -> Frames:
    """Decodes a video from frame 0 to square frames at a constant rate.

    Rotation and non-square pixels are applied; the short side is resized to `size_px`, the long side cropped at
    both ends.

    Args:
        path: any file that ffmpeg reads.
        size_px: side of the frames.
        fps: frames per second; None keeps the source's (nominal) rate.
        max_frames: stop after this many.

    Returns:
        uint8 't h w 3', RGB, h = w = size_px.

    Raises:
        VideoError: no readable video stream, no frame, or damage in the part that was read.
    """
    short = "min(iw*sar,ih)"
    square = (
        _constant_rate(_input(path), fps)
        .filter(
            "scale",
            w=f"max({size_px},round(iw*sar*{size_px}/{short}))",
            h=f"max({size_px},round(ih*{size_px}/{short}))",
            flags="bicubic+accurate_rnd+full_chroma_int+bitexact",
        )
        .filter("format", "rgb24")
        .filter("crop", size_px, size_px)
    )
    limit = {} if max_frames is None else {"frames:v": max_frames}
    output = square.output("pipe:", format="rawvideo", pix_fmt="rgb24", fps_mode="passthrough", **limit)
    pixels, _ = _run(output, loglevel="level+error")
    if not pixels:
        raise VideoError("no video frames")
    return np.frombuffer(pixels, np.uint8).reshape(-1, size_px, size_px, 3)


def encode_mp4(frames: Frames, path: str | Path, *, fps: float, crf: int = 18, gop: int = 16) -> None:
    """Writes an H.264 mp4 that browsers play, byte-identical for the same frames and ffmpeg; aside first, then renamed.

    Args:
        frames: uint8 't h w 3', RGB, even h and w.
        path: file to write.
        fps: frames per second.
        crf: x264's quality, 0 best, 51 worst.
        gop: a key frame every so many frames; a random frame costs at most this many decodes.

    Raises:
        VideoError: no frames, an odd size, or ffmpeg fails.
    """
    num_frames, height, width, _ = frames.shape
    if num_frames == 0 or height % 2 or width % 2:
        raise VideoError(
            f"cannot encode frames of shape {frames.shape}: expected at least one, of even height and width"
        )
    path = Path(path)
    aside = path.with_name(path.name + ".tmp")
    output = (
        ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", framerate=fps)
        .filter(
            "scale", out_color_matrix="smpte170m", out_range="tv", flags="bicubic+accurate_rnd+full_chroma_int+bitexact"
        )
        .output(
            f"file:{aside}",
            format="mp4",
            pix_fmt="yuv420p",
            fps_mode="passthrough",
            map_metadata=-1,
            movflags="+faststart",
            fflags="+bitexact",
            **{"flags:v": "+bitexact", "bsf:v": "filter_units=remove_types=6"},  # 6: the note with x264's version
            **{
                "c:v": "libx264",
                "preset": "veryfast",
                "tune": "fastdecode",
                "crf": crf,
                "g": gop,
                "bf": 0,
                "threads": 1,
            },
            **_COLOURS,
        )
        .overwrite_output()
    )
    try:
        _run(output, loglevel="level+error", pixels=np.ascontiguousarray(frames).tobytes())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def decode_mp4(data: bytes, start: int, stop: int) -> Frames:
    """Decodes frames [start, stop) of an mp4 that `encode_mp4` wrote, from the key frame before `start`.

    Returns:
        uint8 't h w 3', RGB.

    Raises:
        VideoError: unreadable bytes, or fewer frames than asked for.
    """
    try:
        with av.open(io.BytesIO(data)) as container:
            return _decode_range(container, start, stop)
    except (av.FFmpegError, IndexError) as error:
        raise VideoError(f"unreadable mp4: {error}") from error


def animated_webp(frames: Frames, fps: float, scale: int = 1) -> bytes:
    """An endlessly looping WebP for a web page.

    Args:
        frames: uint8 't h w 3'.
        fps: frames per second.
        scale: whole-number enlargement without smoothing.
    """
    first, *rest = (_picture(frame, scale) for frame in frames)
    buffer = io.BytesIO()
    first.save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=rest,
        duration=max(1, round(1000 / fps)),
        loop=0,
        lossless=True,
        method=2,
    )
    return buffer.getvalue()


def png(frame: Frames, scale: int = 1) -> bytes:
    """A PNG of one frame, uint8 'h w 3', enlarged `scale` times without smoothing."""
    buffer = io.BytesIO()
    _picture(frame, scale).save(buffer, "PNG")
    return buffer.getvalue()


def _picture(frame: Frames, scale: int) -> Image.Image:
    height, width, _ = frame.shape
    return Image.fromarray(np.ascontiguousarray(frame)).resize(
        (width * scale, height * scale), Image.Resampling.NEAREST
    )


def _input(path: str | Path) -> Any:
    # `file:` takes the meaning from '-', ':' and '%' in a name; the whitelist keeps a playlist off the network.
    return ffmpeg.input(f"file:{path}", threads=1, protocol_whitelist="file,pipe").video


def _constant_rate(stream: Any, fps: float | None) -> Any:
    return stream.filter("fps", fps="source_fps" if fps is None else fps)


def _run(output: Any, *, loglevel: str, pixels: bytes | None = None) -> tuple[bytes, str]:
    command = output.global_args("-hide_banner", "-loglevel", loglevel, "-filter_threads", "1")
    if pixels is None:
        command = command.global_args("-nostdin")
    try:
        stdout, stderr = command.run(cmd=ffmpeg_executable(), input=pixels, capture_stdout=True, capture_stderr=True)
    except ffmpeg.Error as error:
        raise VideoError(_reason(error.stderr.decode(errors="replace")) or "ffmpeg failed") from error
    log = stderr.decode(errors="replace")
    if reason := _reason(log):
        raise VideoError(reason)
    return stdout, log


def _reason(log: str) -> str:
    if "matches no streams" in log:
        return "no video stream"
    lines = [found[1].strip() for found in map(_TROUBLE.search, log.splitlines()) if found]
    causes = [line for line in lines if not line.startswith(_CONSEQUENCES)]
    return next(iter(causes or lines), "")[:200]


def _decode_range(container: Any, start: int, stop: int) -> Frames:
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
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
