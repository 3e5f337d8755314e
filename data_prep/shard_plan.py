"""Which video goes into which shard, under which key: a function of the manifest alone.

So a shard is the unit of work: it is done when its index exists and its size agrees.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.list_videos import Record
from magvit_scale.config import Refusal, WriteShardsConfig


@dataclass(frozen=True)
class PlannedShard:
    """One unit of work.

    Attributes:
        split: `train` or `test`.
        path: of the tar.
        videos: manifest lines, in the order of the shard.
        fingerprint: hash of everything the tar's bytes follow from.
    """

    split: str
    path: Path
    videos: tuple[Record, ...]
    fingerprint: str

    @property
    def index(self) -> Path:
        """The JSON file beside the tar, written after it."""
        return self.path.with_suffix(".json")

    def is_done(self) -> bool:
        """Whether tar and index are whole.

        Raises:
            Refusal: they are of another manifest or of other settings, or the index is damaged.
        """
        if not self.index.exists():
            return False
        index = self.read_index()
        if index["fingerprint"] != self.fingerprint:
            other = "another manifest or with other settings"
            raise Refusal(f"{self.path} was written from {other}; give another output or delete it")
        return self.path.exists() and self.path.stat().st_size == index["bytes"]

    def read_index(self) -> Record:
        """The content of the index.

        Raises:
            Refusal: it is not what write_shards writes.
        """
        try:
            index = json.loads(self.index.read_text())
            index["fingerprint"], index["bytes"], index["samples"], index["errors"]
        except (ValueError, RecursionError, TypeError, KeyError) as error:
            raise Refusal(f"{self.index}: not an index of write_shards ({error!r}); delete it and run again") from error
        return index


def plan(config: WriteShardsConfig, manifest: Sequence[Record]) -> list[PlannedShard]:
    """The shards of all splits, those of one split in the order of their numbers."""
    shards = []
    for split in sorted({record["split"] for record in manifest}):
        videos = _shuffled([record for record in manifest if record["split"] == split])
        for number, start in enumerate(range(0, len(videos), config.videos_per_shard)):
            part = tuple(videos[start : start + config.videos_per_shard])
            path = Path(config.output) / split / f"clips-{number:06d}.tar"
            shards.append(PlannedShard(split, path, part, _fingerprint(config, part)))
    return shards


def key_of(record: Record) -> str:
    """A name that is unique and safe in any file system; a dot would end it for WebDataset."""
    readable = re.sub(r"[^a-z0-9]+", "-", Path(record["path"]).stem.lower()).strip("-")[:40]
    return f"{readable or 'video'}-{hashlib.sha256(os.fsencode(record['path'])).hexdigest()[:12]}"


def content_hash(content: Any) -> str:
    """Hexadecimal checksum of JSON content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _shuffled(videos: Sequence[Record]) -> list[Record]:
    """Mixes the classes; by name, so that the order is the same on every machine."""
    return sorted(videos, key=lambda record: hashlib.sha256(os.fsencode(record["path"])).digest())


def _fingerprint(config: WriteShardsConfig, videos: Sequence[Record]) -> str:
    settings = [config.size_px, config.keep_aspect, config.fps, config.max_frames, config.encoding]
    sources = [[record[key] for key in ("path", "sha256", "label", "class_id")] for record in videos]
    return content_hash([settings, sources])
