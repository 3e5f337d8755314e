"""Clip shards: where each stored video lies. No torch.

A shard is a plain WebDataset tar with an index beside it; with the index a sample is one `pread` away, so any order
costs the same and a run starts at any step at once. Only the counts of a data set's shards are held; their indexes are
read where they are needed.
"""

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from magvit_scale.config import Refusal
from magvit_scale.data.frames import Encoding, Sample, num_frames_of, read_frames
from magvit_scale.data.remote import RemoteFolder, is_remote
from magvit_scale.data.shard_index import open_lines, read_json, read_lines
from magvit_scale.data.tar_index import IndexedTars, index_tars, is_tars
from magvit_scale.video import Frames

MAX_HELD_SAMPLES = 1 << 16
"""Index lines that one reader holds, about 30 MB."""
MAX_SIDE_PX = 1 << 14
_TYPES = {"key": str, "label": str, "class_id": int, "num_frames": int, "offset": int, "size": int}
_TYPES |= {"width": int, "height": int}


@dataclass(frozen=True)
class Shard:
    """One tar of a split.

    Attributes:
        path: of the tar.
        count: samples.
        num_bytes: size of the tar.
        sha256: of the tar; empty for foreign tars.
        index: of its samples.
    """

    path: Path
    count: int
    num_bytes: int
    sha256: str
    index: Path


@dataclass(frozen=True)
class Dataset:
    """What write_shards wrote, or foreign tars that were indexed.

    Attributes:
        folder: of dataset.json.
        classes: names by class id.
        size_px: short side of the stored frames; 0 where each foreign video has its own.
        fps: common rate; None when each video keeps its own.
        encoding: of the stored frames, see WriteShardsConfig; `foreign` is told by each index line.
        hash: of the content.
        splits: shards by split.
        remote: where the files come from; None for local ones.
    """

    folder: Path
    classes: tuple[str, ...]
    size_px: int
    fps: float | None
    encoding: Literal["h264", "raw", "zstd", "jpeg", "foreign"]
    hash: str
    splits: Mapping[str, tuple[Shard, ...]]
    remote: RemoteFolder | None = field(default=None, compare=False)

    def samples(self, split: str) -> tuple[Sample, ...]:
        """All videos of a split in the order of the shards: for splits of a moderate size.

        Raises:
            Refusal: no such split, no videos in it, or a shard that is missing or damaged.
        """
        return tuple(SampleTable(self, split))

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
            Refusal: the shard or its index is missing or damaged, or its size is not the recorded one.
        """
        lines = read_lines(self._present_index(shard), shard.count)
        return tuple(self.sample(shard, line) for line in lines)

    def lines(self, shard: Shard) -> Sequence[Any]:
        """What `sample` makes the videos of one shard of; a damaged line is found when it is asked for.

        Raises:
            Refusal: the shard or its index is missing, or has not the recorded size or number of videos.
        """
        return open_lines(self._present_index(shard), shard.count)

    def sample(self, shard: Shard, line: Any) -> Sample:
        """One line of a shard's index, believed only as far as it can be true.

        Raises:
            Refusal: it cannot be.
        """
        try:
            sides = {"width": self.size_px, "height": self.size_px}
            values = {name: {**sides, **line}[name] for name in (*_TYPES, "fps")}
            is_typed = all(isinstance(values[name], kind) for name, kind in _TYPES.items())
            encoding: Encoding = line["encoding"] if self.encoding == "foreign" else self.encoding
            if values["class_id"] < 0 and self.encoding == "foreign":
                values["class_id"] = self._class_ids.get(values["label"], -1)
            sample = Sample(**values, shard=shard.path, encoding=encoding, crc32=line.get("crc32"))
        except (KeyError, TypeError, AttributeError) as error:
            raise Refusal(f"{shard.index}: a sample without {error}; {_again(self)}") from error
        is_inside = is_typed and 0 <= sample.offset <= sample.offset + sample.size <= shard.num_bytes
        least = 0 if self.encoding == "foreign" else 1
        is_possible = is_inside and all(
            least <= side <= MAX_SIDE_PX for side in (sample.width, sample.height, sample.num_frames and 1)
        )
        if not is_possible:
            raise Refusal(f"{shard.index}: sample {str(sample.key)[:80]} cannot be in its tar; {_again(self)}")
        return sample

    def num_frames(self, sample: Sample) -> int:
        """Frames of a stored video.

        Raises:
            VideoError: its bytes cannot be read.
        """
        return self._read(sample, lambda: num_frames_of(sample))

    def read_video(
        self, sample: Sample, start: int, stop: int, stride: int = 1, *, size_px: int | None = None
    ) -> Frames:
        """Frames start, start + stride, ... below `stop` of a stored video.

        Returns:
            uint8 't h w 3', RGB; the short side of a foreign video is `size_px` where that is given.

        Raises:
            VideoError: the range is not inside the video, or its bytes do not decode.
        """
        return self._read(sample, lambda: read_frames(sample, start, stop, stride, size_px))

    def fetch(self, shards: Sequence[Shard]) -> None:
        """Brings remote shards here, in this order, while other work goes on; local ones are here."""
        if self.remote is not None:
            self.remote.fetch_ahead([path for shard in shards for path in (shard.index, shard.path)])

    @functools.cached_property
    def _class_ids(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes)}

    def _read(self, sample: Sample, read: Callable[[], Any]) -> Any:
        """Reads a remote sample's shard into the cache first, and again where another process has just evicted it."""
        if self.remote is None:
            try:
                return read()
            except FileNotFoundError as error:
                raise Refusal(f"{sample.shard}: missing; run data_prep.write_shards again") from error
        return self.remote.reading(sample.shard, read)

    def _present_index(self, shard: Shard) -> Path:
        """The index of a shard that is as long as recorded, or whose index has been fetched."""
        if self.remote is None:
            _check_size(shard)
        else:
            self.remote.fetch(shard.index)
        return shard.index


class SampleTable(Sequence[Sample]):
    """The videos of a split by number, in the order of the shards; holds the index lines of a few shards."""

    def __init__(self, dataset: Dataset, split: str) -> None:
        """Numbers the videos.

        Raises:
            Refusal: no such split, no videos in it, or a missing shard.
        """
        self.dataset, self.shards = dataset, dataset.shards(split)
        self.counts = [shard.count for shard in self.shards]
        self._ends = np.cumsum(self.counts)
        self._held: OrderedDict[int, Sequence[Any]] = OrderedDict()
        if not sum(self.counts):
            raise Refusal(f"{dataset.folder}: split {split} holds no videos; {_again(dataset)}")
        if dataset.remote is None:
            _refuse_missing(self.shards)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < len(self):
            raise IndexError(number)
        shard = int(np.searchsorted(self._ends, number, side="right"))
        line = self._lines(shard)[number - int(self._ends[shard])]
        return self.dataset.sample(self.shards[shard], line)

    def __iter__(self) -> Iterator[Sample]:
        return (sample for shard in self.shards for sample in self.dataset.shard_samples(shard))

    def _lines(self, number: int) -> Sequence[Any]:
        if number not in self._held:
            self._held[number] = self.dataset.lines(self.shards[number])
            while len(self._held) > 1 and sum(map(len, self._held.values())) > MAX_HELD_SAMPLES:
                self._held.popitem(last=False)
        self._held.move_to_end(number)
        return self._held[number]


def load_dataset(folder: str | Path, *, cache: str | None = None, cache_gb: float = 100) -> Dataset:
    """Opens clip shards: a folder that write_shards filled, its URL, or a folder or brace pattern of foreign tars.

    Args:
        folder: path or URL; see `ClipsConfig.shards`.
        cache: folder of copies of remote shards and of indexes where the tars' own folder is read-only.
        cache_gb: size of those copies, 10^9 bytes.

    Raises:
        Refusal: it is missing or no such data.
    """
    if is_remote(folder):
        remote = RemoteFolder(str(folder), cache, cache_gb)
        remote.fetch(remote.folder / "dataset.json", is_fresh=True)
        return _load_written(remote.folder, remote)
    if not (Path(folder) / "dataset.json").exists() and is_tars(folder):
        return _load_tars(index_tars(folder, cache))
    return _load_written(Path(folder), None)


def _load_written(folder: Path, remote: RemoteFolder | None) -> Dataset:
    if not (folder / "dataset.json").exists():
        command = f"`python -m data_prep.write_shards manifest=MANIFEST output={folder}`"
        raise Refusal(f"shards={folder}: no dataset.json; {command} makes it, and continues where it was cut short")
    source = folder / "dataset.json"
    content = read_json(source)
    if remote is not None and isinstance(content, dict):
        remote.take_version(str(content.get("hash")))
        folder = remote.folder
    try:
        dataset = Dataset(
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
            remote=remote,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise Refusal(f"{source}: not written by data_prep.write_shards ({error!r}); expected clip shards") from error
    if remote is not None:
        shards = [shard for shards in dataset.splits.values() for shard in shards]
        remote.expect({shard.path: (shard.num_bytes, shard.sha256) for shard in shards})
    return dataset


def _load_tars(tars: IndexedTars) -> Dataset:
    splits: dict[str, list[Shard]] = {}
    for tar in tars.tars:
        splits.setdefault(tar.split, []).append(Shard(tar.path, tar.count, tar.num_bytes, "", tar.index))
    return Dataset(
        folder=tars.folder,
        classes=tars.classes,
        size_px=0,
        fps=None,
        encoding="foreign",
        hash=tars.hash,
        splits={split: tuple(shards) for split, shards in splits.items()},
    )


def _shard(folder: Path, line: Mapping[str, Any]) -> Shard:
    if Path(line["name"]).name != line["name"]:
        raise Refusal(f"{folder}: shard name {line['name']!r} leaves its folder; expected a plain file name")
    path = folder / line["name"]
    return Shard(path, line["count"], line["bytes"], line["sha256"], path.with_suffix(".json"))


def _refuse_missing(shards: Sequence[Shard]) -> None:
    """One listing per folder: asking for each of 100,000 files takes minutes on a cluster's file system."""
    found = {folder: {path.name for path in folder.glob("*")} for folder in {shard.path.parent for shard in shards}}
    for shard in shards:
        if shard.path.name not in found[shard.path.parent]:
            raise Refusal(f"{shard.path}: missing, expected {shard.num_bytes} bytes; run data_prep.write_shards again")


def _check_size(shard: Shard) -> None:
    size = shard.path.stat().st_size if shard.path.exists() else None
    if size != shard.num_bytes:
        found = "missing" if size is None else f"{size} bytes"
        raise Refusal(f"{shard.path}: {found}, expected {shard.num_bytes} bytes; run data_prep.write_shards again")


def _again(dataset: Dataset) -> str:
    return "delete it and start again" if dataset.encoding == "foreign" else "run data_prep.write_shards again"
