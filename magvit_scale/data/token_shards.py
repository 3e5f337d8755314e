"""Token shards, written and read: per video and augmentation view, tokens of the clip and of its condition canvases.

    <folder>/tokens-000000.tar     plain WebDataset, one sample of packed arrays:
        tokens-000000.tokens.npy   uint16 '(n views canvases t h w)', canvas 0 is the clip itself (z)
        tokens-000000.labels.npy   int64 '(n)'
        tokens-000000.keys.json    n names
    <folder>/tokens-000000.json    index: counts, size, checksum; a shard is done when it exists
    <folder>/dataset.json          last: canvases, codebook, classes, which tokenizer and which clips

Packed, because a member per clip is 300 times slower to read than the memory that holds it; uncompressed, so that
the same file is streamed by WebDataset and mapped into memory here.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from webdataset import TarWriter

from magvit_scale.config import Refusal
from magvit_scale.data.shards import Order, keyed_generator
from magvit_scale.files import npy_bytes, sha256, write_json, written_aside

Tokens = NDArray[np.uint16]
Labels = NDArray[np.int64]


# ----------------------------------------------------------------------------------------------------------------------
# Writing


def token_shard_path(folder: str | Path, number: int) -> Path:
    """The file of token shard `number`."""
    return Path(folder) / f"tokens-{number:06d}.tar"


def is_token_shard_done(path: str | Path) -> bool:
    """Whether a shard and its index exist and agree in size; a restarted writer skips those."""
    path = Path(path)
    index = path.with_suffix(".json")
    return path.exists() and index.exists() and path.stat().st_size == json.loads(index.read_text())["bytes"]


def write_token_shard(path: str | Path, tokens: Tokens, labels: Labels, keys: Sequence[str]) -> None:
    """Writes one shard and its index, byte-identical for equal arrays; aside first, then renamed.

    Args:
        path: the tar, as `token_shard_path` names it.
        tokens: uint16 '(n views canvases t h w)'.
        labels: integers '(n)'.
        keys: n names.

    Raises:
        ValueError: shapes or type do not fit.
    """
    path = Path(path)
    if tokens.ndim != 6 or tokens.dtype != np.uint16 or labels.shape != (len(tokens),) or len(keys) != len(tokens):
        raise ValueError(
            f"tokens {tokens.dtype} {tokens.shape}, labels {labels.shape}, {len(keys)} keys: expected uint16 of 6 axes"
        )
    path.with_suffix(".json").unlink(missing_ok=True)
    sample = {
        "__key__": path.stem,
        "tokens.npy": npy_bytes(tokens),
        "labels.npy": npy_bytes(labels.astype(np.int64)),
        "keys.json": json.dumps(list(keys)).encode(),
    }
    # An integer mtime: by default a tar tells when it was written, in fractions that cost a kilobyte per member.
    with written_aside(path) as file, TarWriter(file, encoder=False, mtime=0) as tar:
        tar.write(sample)
    index = {"shape": list(tokens.shape), "bytes": path.stat().st_size, "sha256": sha256(path)}
    write_json(path.with_suffix(".json"), index)


def write_token_dataset(
    folder: str | Path,
    *,
    canvases: Sequence[str],
    latent_shape: Sequence[int],
    codebook_size: int,
    classes: Sequence[str],
    tokenizer_hash: str,
    clips_hash: str,
    split: str,
) -> dict[str, Any]:
    """Writes dataset.json, which makes the shards found in `folder` a data set. Called last.

    Args:
        folder: of the shards.
        canvases: names along the canvas axis; the first is the clip itself.
        latent_shape: (t, h, w) of the tokens.
        codebook_size: ids are below it.
        classes: names by class id.
        tokenizer_hash: of the tokenizer's weights.
        clips_hash: `Dataset.hash` of the clip shards.
        split: of the clip shards.

    Returns:
        What was written.

    Raises:
        Refusal: no shards, or shards of different views or another shape.
    """
    folder = Path(folder)
    shards = [
        {"name": path.name, **json.loads(path.with_suffix(".json").read_text())}
        for path in sorted(folder.glob("tokens-*.tar"))
    ]
    if not shards:
        raise Refusal(f"{folder}: no token shards to list; run magvit precompute-tokens")
    views = shards[0]["shape"][1]
    for shard in shards:
        if tuple(shard["shape"][1:]) != (views, len(canvases), *latent_shape):
            expected = [views, len(canvases), *latent_shape]
            raise Refusal(
                f"{folder / shard['name']}: shape {shard['shape'][1:]} per video, expected {expected}; empty the folder"
            )
    content = {
        "canvases": list(canvases),
        "latent_shape": list(latent_shape),
        "codebook_size": codebook_size,
        "classes": list(classes),
        "tokenizer_hash": tokenizer_hash,
        "clips_hash": clips_hash,
        "split": split,
        "views": views,
        "num_clips": sum(shard["shape"][0] for shard in shards),
        "shards": shards,
    }
    content["hash"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    write_json(folder / "dataset.json", content)
    return content


# ----------------------------------------------------------------------------------------------------------------------
# Reading


@dataclass(frozen=True, kw_only=True)
class TokenShards:
    """An opened folder of token shards.

    Attributes:
        folder: of dataset.json.
        canvases: names along the canvas axis; the first is the clip itself.
        latent_shape: (t, h, w).
        codebook_size: ids are below it.
        classes: names by class id.
        tokenizer_hash: of the tokenizer that wrote them.
        clips_hash: of the clip shards they show.
        split: of the clip shards.
        hash: of the content.
        tokens: per shard, uint16 '(n views canvases t h w)', mapped from the file.
        labels: int64 '(num_clips)'.
        keys: num_clips names.
    """

    folder: Path
    canvases: tuple[str, ...]
    latent_shape: tuple[int, int, int]
    codebook_size: int
    classes: tuple[str, ...]
    tokenizer_hash: str
    clips_hash: str
    split: str
    hash: str
    tokens: tuple[Tokens, ...]
    labels: Labels
    keys: tuple[str, ...]

    @classmethod
    def open(cls, folder: str | Path) -> "TokenShards":
        """Opens the folder that `magvit precompute-tokens` filled.

        Raises:
            Refusal: dataset.json is missing or none, or a shard is missing, truncated or of another shape.
        """
        folder = Path(folder)
        content = _read_dataset(folder)
        shards = [_open_shard(folder, line) for line in content["shards"]]
        names = ("codebook_size", "tokenizer_hash", "clips_hash", "split", "hash")
        opened = cls(
            folder=folder,
            canvases=tuple(content["canvases"]),
            latent_shape=tuple(content["latent_shape"]),
            classes=tuple(content["classes"]),
            tokens=tuple(tokens for tokens, _, _ in shards),
            labels=np.concatenate([labels for _, labels, _ in shards]),
            keys=tuple(key for _, _, keys in shards for key in keys),
            **{name: content[name] for name in names},
        )
        if opened.num_clips == 0:
            raise Refusal(
                f"{folder}: the token shards hold no clips; run magvit precompute-tokens on a split that has some"
            )
        return opened

    @property
    def num_classes(self) -> int:
        """Number of class names."""
        return len(self.classes)

    @property
    def num_clips(self) -> int:
        """Videos, each with `views` views."""
        return len(self.labels)

    @property
    def views(self) -> int:
        """Augmentation views per video."""
        return self.tokens[0].shape[1]

    def batch(self, indices: Sequence[int], views: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Gathers clips.

        Args:
            indices: b numbers in [0, num_clips).
            views: b numbers in [0, self.views).

        Returns:
            tokens int64 'b canvases t h w', labels int64 'b'.
        """
        starts = np.cumsum([0, *map(len, self.tokens)])
        shards = np.searchsorted(starts, indices, side="right") - 1
        rows = [
            self.tokens[shard][index - starts[shard], view]
            for shard, index, view in zip(shards, indices, views, strict=True)
        ]
        tokens = np.stack(rows).astype(np.int64)
        return torch.from_numpy(tokens), torch.from_numpy(self.labels[np.asarray(indices)])


def training_batches(
    shards: TokenShards, *, seed: int, global_batch_size: int, rank: int, world_size: int, start_step: int, steps: int
) -> Iterator[dict[str, Tensor]]:
    """Yields this rank's part of the global batches `start_step` to `start_step + steps - 1`.

    Global batch s holds positions [s * B, (s + 1) * B) of the seekable order; the view is drawn by (seed, position).

    Yields:
        `tokens`: int64 'b k t h w', k canvases; `label`: int64 'b'; `position`: int64 'b'.

    Raises:
        Refusal: B is not a multiple of world_size.
    """
    if global_batch_size % world_size:
        raise Refusal(
            f"global_batch_size={global_batch_size}: not a multiple of the {world_size} ranks; change one of them"
        )
    order, size = Order(shards.num_clips, seed), global_batch_size // world_size
    starts = (step * global_batch_size + rank * size for step in range(start_step, start_step + steps))
    return (_batch_at(shards, order, seed, range(start, start + size)) for start in starts)


def _batch_at(shards: TokenShards, order: Order, seed: int, positions: range) -> dict[str, Tensor]:
    views = [_view_at(shards.views, seed, position) for position in positions]
    tokens, labels = shards.batch([order.at(position) for position in positions], views)
    return {"tokens": tokens, "label": labels, "position": torch.tensor(positions, dtype=torch.int64)}


def _view_at(num_views: int, seed: int, position: int) -> int:
    return 0 if num_views == 1 else int(keyed_generator("token view", seed, position).integers(num_views))


def _read_dataset(folder: Path) -> Any:
    path = folder / "dataset.json"
    if not path.exists():
        raise Refusal(f"{folder}: no dataset.json of token shards; `magvit precompute-tokens` makes it (written last)")
    content = json.loads(path.read_text())
    if "tokenizer_hash" not in content:
        raise Refusal(f"{path}: not a data set of tokens; expected the output folder of `magvit precompute-tokens`")
    return content


def _open_shard(folder: Path, line: dict[str, Any]) -> tuple[Tokens, Labels, list[str]]:
    path = folder / Path(line["name"]).name
    found = path.stat().st_size if path.exists() else None
    if found != line["bytes"]:
        size = "missing" if found is None else f"{found} bytes"
        raise Refusal(
            f"{path}: {size}, expected {line['bytes']} bytes; delete it and run magvit precompute-tokens again"
        )
    try:
        return _map_shard(path, tuple(line["shape"]))
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise Refusal(f"{path}: damaged ({error}); delete it and run magvit precompute-tokens again") from error


def _map_shard(path: Path, shape: tuple[int, ...]) -> tuple[Tokens, Labels, list[str]]:
    with tarfile.open(path) as tar:
        member = tar.getmember(f"{path.stem}.tokens.npy")
        labels = np.load(io.BytesIO(_read_member(tar, f"{path.stem}.labels.npy")), allow_pickle=False)
        keys = json.loads(_read_member(tar, f"{path.stem}.keys.json"))
    num_bytes = 2 * int(np.prod(shape))
    if member.size < num_bytes or labels.shape != shape[:1] or len(keys) != shape[0]:
        raise ValueError(f"its members do not hold {shape[0]} clips of shape {shape[1:]}")
    # The tokens are the last bytes of the member, after the .npy header. An empty array cannot be mapped.
    start = member.offset_data + member.size - num_bytes
    tokens = (
        np.memmap(path, np.uint16, mode="r", offset=start, shape=shape) if num_bytes else np.empty(shape, np.uint16)
    )
    return tokens, labels, keys


def _read_member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    if file is None:
        raise KeyError(name)
    return file.read()
