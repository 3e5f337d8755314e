"""Small shards, made by the programs of data_prep, and foreign tars, made by hand."""

import io
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep import list_videos, moving_shapes, write_shards
from magvit_scale.config import ClipsConfig
from magvit_scale.files import npy_bytes
from magvit_scale.video import Frames, encode_mp4

Clips = Callable[..., ClipsConfig]


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    moving_shapes.main([f"output={folder / 'videos'}", "videos_per_class=3", "num_frames=20", "size_px=16"])
    list_videos.main([f"videos={folder / 'videos'}", f"output={folder}"])
    for encoding in ("raw", "h264"):
        arguments = [f"manifest={folder / 'manifest.jsonl'}", f"output={folder / encoding}", "size_px=16"]
        write_shards.main([*arguments, f"encoding={encoding}", "videos_per_shard=7"])
    return folder


@pytest.fixture(scope="session")
def clips(shards: Path) -> Clips:
    def make(encoding: str = "raw", **changes: Any) -> ClipsConfig:
        defaults = {"shards": str(shards / encoding), "size_px": 16, "num_frames": 8, "num_workers": 0}
        return ClipsConfig(**{**defaults, **changes})

    return make


def video(number: int, num_frames: int = 12, height: int = 16, width: int = 24) -> Frames:
    """Frames that tell their video and their place, uint8 't h w 3'."""
    frames = np.full((num_frames, height, width, 3), 20 * number, np.uint8)
    frames[..., 1] = (np.arange(num_frames) * 10)[:, None, None]
    frames[..., 2] = (np.arange(width) * 5)[None, None]
    return frames


def npy(number: int, **shape: int) -> bytes:
    return npy_bytes(video(number, **shape))


def mp4(number: int, folder: Path, **shape: int) -> bytes:
    encode_mp4(video(number, **shape), folder / "clip.mp4", fps=8)
    return (folder / "clip.mp4").read_bytes()


def write_tar(path: Path, members: Iterable[tuple[str, bytes] | tarfile.TarInfo]) -> Path:
    """A tar of contents by name, and of headers as they are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            header = tarfile.TarInfo(member[0])
            header.size = len(member[1])
            tar.addfile(header, io.BytesIO(member[1]))
    return path
