"""Clip shards: where each stored video lies, how its frames are read, and the seekable order of training. No torch.

A shard is a plain WebDataset tar with an index beside it; with the index a sample is one `pread` away, so any order
costs the same and a run starts at any step at once.
"""

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from magvit_scale.config import Refusal
from magvit_scale.data.order import Order as Order
from magvit_scale.data.order import keyed_generator as keyed_generator
from magvit_scale.video import Frames, VideoError, decode_mp4


@dataclass(frozen=True)
class Shard:
    """One tar of a split.

    Attributes:
        path: of the tar; its index has the same name with .json.
        count: samples.
        num_bytes: size of the tar.
        sha256: of the tar.
    """

    path: Path
    count: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Sample:
    """One stored video.

    Attributes:
        key: unique name.
        label: name of the class.
        class_id: in [0, number of classes), or -1 where the data have no classes.
        num_frames: stored frames.
        fps: frames per second.
        shard: the tar.
        offset: first byte of the video in the tar.
        size: bytes of the video.
    """

    key: str
    label: str
    class_id: int
    num_frames: int
    fps: float
    shard: Path
    offset: int
    size: int


@dataclass(frozen=True)
class Dataset:
    """What write_shards wrote.

    Attributes:
        folder: of dataset.json.
        classes: names by class id.
        size_px: side of the frames.
        fps: common rate; None when each video keeps its own.
        encoding: of the stored frames, see WriteShardsConfig.
        hash: of the content.
        splits: shards by split.
    """

    folder: Path
    classes: tuple[str, ...]
    size_px: int
    fps: float | None
    encoding: Literal["h264", "raw", "jpeg"]
    hash: str
    splits: Mapping[str, tuple[Shard, ...]]

    def samples(self, split: str) -> tuple[Sample, ...]:
        """All videos of a split in the order of the shards.

        Raises:
            Refusal: no such split, no videos in it, or a shard that is missing or damaged.
        """
        samples = tuple(sample for shard in self.shards(split) for sample in self.shard_samples(shard))
        if not samples:
            raise Refusal(f"{self.folder}: split {split} holds no videos; run data_prep.write_shards again")
        return samples

    def shards(self, split: str) -> tuple[Shard, ...]:
        """The shards of a split.

        Raises:
            Refusal: no such split.
        """
        if split not in self.splits:
            raise Refusal(f"{self.folder}: no split {split}, it has {', '.join(self.splits)}")
        return self.splits[split]

    def shard_samples(self, shard: Shard) -> tuple[Sample, ...]:
        """The videos of one shard.

        Raises:
            Refusal: the shard or its index is missing, or its size is not the recorded one.
        """
        found = shard.path.stat().st_size if shard.path.exists() else None
        if found != shard.num_bytes:
            size = "missing" if found is None else f"{found} bytes"
            raise Refusal(f"{shard.path}: {size}, expected {shard.num_bytes} bytes; run data_prep.write_shards again")
        index = _read_json(shard.path.with_suffix(".json"))
        names = ("key", "label", "class_id", "num_frames", "fps", "offset", "size")
        return tuple(Sample(**{name: line[name] for name in names}, shard=shard.path) for line in index["samples"])

    def read_video(self, sample: Sample, start: int, stop: int, stride: int = 1) -> Frames:
        """Frames start, start + stride, ... below `stop` of a stored video.

        Returns:
            uint8 't h w 3', RGB.

        Raises:
            VideoError: the range is not inside the video, or its bytes do not decode.
        """
        if not 0 <= start < stop <= sample.num_frames:
            raise VideoError(f"{sample.key}: frames [{start}, {stop}) of {sample.num_frames}")
        if self.encoding == "raw":
            return np.ascontiguousarray(self._raw_frames(sample)[start:stop:stride])
        if self.encoding == "jpeg":
            return _decode_jpeg(_read_bytes(sample))
        return decode_mp4(_read_bytes(sample), start, stop)[::stride]

    def _raw_frames(self, sample: Sample) -> Frames:
        """The frames as a memory map: only what is sliced is read. They are the last bytes of the .npy."""
        shape = (sample.num_frames, self.size_px, self.size_px, 3)
        num_bytes = int(np.prod(shape))
        if sample.size < num_bytes:
            raise VideoError(f"{sample.key}: {sample.size} bytes, expected at least {num_bytes}")
        return np.memmap(sample.shard, np.uint8, mode="r", offset=sample.offset + sample.size - num_bytes, shape=shape)


def load_dataset(folder: str | Path) -> Dataset:
    """Reads the dataset.json of write_shards.

    Raises:
        Refusal: it is missing or no such file.
    """
    folder = Path(folder)
    if not (folder / "dataset.json").exists():
        command = f"`python -m data_prep.write_shards manifest=MANIFEST output={folder}`"
        raise Refusal(f"shards={folder}: no dataset.json; {command} makes it, and continues where it was cut short")
    content = _read_json(folder / "dataset.json")
    try:
        return Dataset(
            folder=folder,
            classes=tuple(content["classes"]),
            size_px=content["size_px"],
            fps=content["fps"],
            encoding=content["encoding"],
            hash=content["hash"],
            splits={
                split: tuple(_shard(folder / split, line) for line in lines)
                for split, lines in content["splits"].items()
            },
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise Refusal(
            f"{folder / 'dataset.json'}: not written by data_prep.write_shards ({error!r}); expected clip shards"
        ) from error


def _shard(folder: Path, line: Mapping[str, Any]) -> Shard:
    if Path(line["name"]).name != line["name"]:
        raise Refusal(f"{folder}: shard name {line['name']!r} leaves its folder; expected a plain file name")
    return Shard(folder / line["name"], line["count"], line["bytes"], line["sha256"])


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise Refusal(f"{path}: missing; run data_prep.write_shards again") from error
    except ValueError as error:
        raise Refusal(f"{path}: not JSON ({error}); delete it and run data_prep.write_shards again") from error


def _decode_jpeg(data: bytes) -> Frames:
    """The bytes of one image -> one frame, uint8 '1 h w 3', RGB."""
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            return np.asarray(image.convert("RGB"))[None]
    except OSError as error:
        raise VideoError(f"unreadable jpeg: {error}") from error


def _read_bytes(sample: Sample) -> bytes:
    with sample.shard.open("rb") as file:
        data = os.pread(file.fileno(), sample.size, sample.offset)
    if len(data) != sample.size:
        raise VideoError(f"{sample.key}: {len(data)} of {sample.size} bytes in {sample.shard}")
    return data
