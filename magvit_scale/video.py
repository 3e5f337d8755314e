"""Video files: probe, decode, encode, each by an ffmpeg process. Frames are uint8 `t h w c`. No torch.

They are read from frame 0 to the end and never by seeking, because headers and timestamps of real files lie (frame
counts, XviD in .avi, variable rates). What a shard stores is decoded in process, see video_bytes.py.
"""

import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from magvit_scale.ffmpeg_arguments import CRF, GOP, SOURCE, TARGET, decoding, encoding, probing, transcoding
from magvit_scale.ffmpeg_process import VideoError, file_in_memory, run_ffmpeg
from magvit_scale.files import written_aside

Frames = NDArray[np.uint8]

_STREAM = re.compile(r"Output #0.*?Stream #0:0.*?: Video: .*?, (\d+)x(\d+)[ ,].*?, ([\d.]+)(k?) fps", re.DOTALL)
_FRAMES = re.compile(r"^frame=\s*(\d+)", re.MULTILINE)


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
