"""What ffmpeg is called with, for any file: SOURCE and TARGET stand for its name. No torch.

ffmpeg-python takes a millisecond to write this down, a hundredth of what sharding a short video takes, so it is kept.
"""

from functools import lru_cache
from typing import Any

import ffmpeg

SOURCE, TARGET = "SOURCE", "TARGET"  # stand for files in arguments
CRF, GOP = 18, 16
X264 = {"preset": "veryfast", "tune": "fastdecode", "bf": 0}
_SCALE = {"flags": "bicubic+accurate_rnd+full_chroma_int+bitexact"}
# The matrix of small pictures, written down so that every player and PyAV take the same one.
_TO_COLOURS = {**_SCALE, "out_color_matrix": "smpte170m", "out_range": "tv"}
_COLOURS = {"color_range": "tv", "colorspace": "smpte170m", "color_primaries": "smpte170m", "color_trc": "smpte170m"}


@lru_cache
def probing() -> tuple[str, ...]:
    """Decodes a whole file for nothing but counters and log."""
    output = _constant_rate(_input(), None).output("pipe:", format="null", fps_mode="passthrough")
    return _arguments(output.global_args("-progress", "pipe:1", "-nostats"), loglevel="level+info")


@lru_cache
def decoding(size_px: int, keep_aspect: bool, fps: float | None, max_frames: int | None) -> tuple[str, ...]:
    """A file to RGB on standard output; see `video.decode`."""
    rate = _constant_rate(_input(), fps)
    resized = _resized(rate, "rgb24", size_px=size_px, keep_aspect=keep_aspect, scale=_SCALE)
    output = resized.output("pipe:", format="rawvideo", pix_fmt="rgb24", fps_mode="passthrough", **_limit(max_frames))
    return _arguments(output, loglevel="level+info")


@lru_cache
def transcoding(size_px: int, keep_aspect: bool, fps: float | None, max_frames: int | None) -> tuple[str, ...]:
    """A file to an mp4; see `video.transcode`."""
    rate = _constant_rate(_input(), fps)
    resized = _resized(rate, "yuv420p", size_px=size_px, keep_aspect=keep_aspect, scale=_TO_COLOURS)
    return _h264(resized.filter("setsar", 1).filter("setpts", "PTS-STARTPTS"), _limit(max_frames))


def encoding(width: int, height: int, fps: float, crf: int, gop: int) -> tuple[str, ...]:
    """RGB on standard input to an mp4; see `video.mp4_bytes`."""
    source = ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", framerate=fps)
    return _h264(source.filter("scale", **_TO_COLOURS), {"crf": crf, "g": gop}, is_fed=True)


def _input() -> Any:
    # The whitelist keeps a playlist off the network. Of several streams the first is taken, not the largest, and never
    # a cover picture (`V`).
    return ffmpeg.input(SOURCE, threads=1, protocol_whitelist="file,pipe")["V:0"]


def _constant_rate(stream: Any, fps: float | None) -> Any:
    return stream.filter("fps", fps="source_fps" if fps is None else fps)


def _resized(stream: Any, pixels: str, *, size_px: int, keep_aspect: bool, scale: dict[str, str]) -> Any:
    short = "min(iw*sar,ih)"
    sides = [f"{side}*{size_px}/{short}" for side in ("iw*sar", "ih")]
    if keep_aspect:
        sides = [f"2*round({side}/2)" for side in sides]
    width, height = (f"max({size_px},round({side}))" for side in sides)
    whole = stream.filter("scale", w=width, h=height, **scale).filter("format", pixels)
    return whole if keep_aspect else whole.filter("crop", size_px, size_px)


def _limit(max_frames: int | None) -> dict[str, int]:
    return {} if max_frames is None else {"frames:v": max_frames}


def _h264(stream: Any, options: dict[str, int], *, is_fed: bool = False) -> tuple[str, ...]:
    output = stream.output(
        TARGET,
        format="mp4",
        pix_fmt="yuv420p",
        fps_mode="passthrough",
        map_metadata=-1,
        movflags="+faststart",
        fflags="+bitexact",
        **{"flags:v": "+bitexact", "bsf:v": "filter_units=remove_types=6"},  # 6: the note with x264's version
        **{"c:v": "libx264", "crf": CRF, "g": GOP, "threads": 1, **X264, **_COLOURS, **options},
    )
    output = output.overwrite_output().global_args("-progress", "pipe:1", "-nostats")
    return _arguments(output, loglevel="level+error", is_fed=is_fed)


def _arguments(output: Any, *, loglevel: str, is_fed: bool = False) -> tuple[str, ...]:
    command = output.global_args("-hide_banner", "-loglevel", loglevel, "-filter_complex_threads", "1")
    return tuple((command if is_fed else command.global_args("-nostdin")).get_args())
