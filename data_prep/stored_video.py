"""One video of the manifest as the bytes that its shard stores."""

from pathlib import Path
from typing import Any

import zstandard

from data_prep import sources
from data_prep.images import JPEG_QUALITY, encode_jpeg
from data_prep.list_videos import Record
from magvit_scale.config import WriteShardsConfig
from magvit_scale.ffmpeg_arguments import CRF, GOP, X264
from magvit_scale.ffmpeg_process import ffmpeg_version
from magvit_scale.files import npy_bytes
from magvit_scale.video import EncodedVideo, Frames, mp4_bytes, transcode

EXTENSIONS = {"h264": "mp4", "raw": "npy", "zstd": "npy.zst", "jpeg": "jpg"}
ZSTD_LEVEL = 3


def store(config: WriteShardsConfig, record: Record) -> EncodedVideo:
    """Reads a video and encodes it; mp4 of plain video files in one ffmpeg process, which halves the CPU time.

    Raises:
        VideoError: it cannot be read.
        OSError: the machine failed, not the video.
    """
    path, fps = Path(record["folder"]) / record["path"], config.fps or record["fps"]
    if config.encoding == "h264" and sources.is_video_file(path):
        return transcode(
            path, size_px=config.size_px, keep_aspect=config.keep_aspect, fps=config.fps, max_frames=config.max_frames
        )
    frames = sources.decode(
        path, size_px=config.size_px, keep_aspect=config.keep_aspect, fps=config.fps, max_frames=config.max_frames
    )
    num_frames, height, width, _ = frames.shape
    return EncodedVideo(_encode(config, frames, fps), num_frames, height, width)


def settings(config: WriteShardsConfig) -> dict[str, Any]:
    """What the bytes of a stored video follow from, beside its source."""
    shape = {key: getattr(config, key) for key in ("encoding", "size_px", "keep_aspect", "fps", "max_frames")}
    encoders: dict[str, dict[str, Any]] = {
        "h264": {"crf": CRF, "gop": GOP, **X264},
        "raw": {},
        "zstd": {"level": ZSTD_LEVEL, "zstandard": zstandard.__version__},
        "jpeg": {"quality": JPEG_QUALITY},
    }
    return {**shape, **encoders[config.encoding], "ffmpeg": ffmpeg_version()}


def _encode(config: WriteShardsConfig, frames: Frames, fps: float) -> bytes:
    if config.encoding == "jpeg":
        return encode_jpeg(frames)
    if config.encoding == "h264":
        return mp4_bytes(frames, fps=fps)
    npy = npy_bytes(frames)
    if config.encoding == "raw":
        return npy
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True).compress(npy)
