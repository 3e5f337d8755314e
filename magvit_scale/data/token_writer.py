"""Writes a folder of token shards: any number of processes, each of which may be killed at any moment. No torch.

Every process writes under a name of its own in <folder>/unfinished and links the complete file to its place; who is
first wins, so that two launches on one folder do the same work twice but never disturb each other. What stood there
when a process was killed is removed by the next one on its host.
"""

import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magvit_scale.config import Refusal
from magvit_scale.data.token_facts import TokenFacts, first_difference, hash_of, token_shard_name, with_defaults
from magvit_scale.data.token_tar import DamagedShard, Labels, Tokens, open_token_tar, write_token_tar
from magvit_scale.files import is_running, sha256, write_json


def claim_token_folder(folder: Path, facts: TokenFacts) -> None:
    """Notes in source.json what the tokens of a folder are of.

    Raises:
        Refusal: the folder has tokens of something else.
    """
    path, wanted = folder / "source.json", facts.as_json()
    _remove_remains(folder)
    if not path.exists():
        with _private(path) as private:
            write_json(private, wanted)
            _link(private, path)
    if (found := with_defaults(_read_object(path))) != wanted:
        key, was, now = first_difference(found, wanted)
        raise Refusal(f"{path} has {key}={was}, this run {key}={now}; give another output or delete it")


def is_token_shard_done(path: Path, facts: TokenFacts) -> bool:
    """Whether a shard is there, whole; a writer that starts again skips those.

    A shard whose writer was killed before the index gets its index now; a damaged one is removed.
    """
    try:
        if path.stat().st_size == _read_index(path).get("bytes"):
            return True
        open_token_tar(path, facts.clip_shape)
    except (FileNotFoundError, DamagedShard):
        for part in (path, path.with_suffix(".json")):
            part.unlink(missing_ok=True)
        return False
    _write_index(path, facts)
    return True


def write_token_shard(path: Path, facts: TokenFacts, tokens: Tokens, labels: Labels, keys: Sequence[str]) -> None:
    """Publishes one shard and its index, byte-identical for equal arrays.

    Args:
        path: the tar, as `token_shard_name` names it.
        facts: of the folder.
        tokens: uint16 '(n views canvases t h w)'.
        labels: integers '(n)'.
        keys: n names.

    Raises:
        ValueError: shapes or type do not fit.
    """
    if tokens.shape[1:] != facts.clip_shape:
        raise ValueError(f"tokens {tokens.shape}, expected (clips, *{facts.clip_shape})")
    with _private(path) as private:
        write_token_tar(private, tokens, labels, keys)
        _link(private, path)
    _write_index(path, facts)


def write_token_dataset(folder: Path, facts: TokenFacts) -> dict[str, Any]:
    """Writes dataset.json, which makes the shards of a folder a data set. Called last.

    Returns:
        What was written: the facts; `num_clips`; `codebook`: `used` codes and `perplexity` of z; `shards`; `hash`.

    Raises:
        Refusal: a shard is missing or damaged, there are no clips, or ids beyond the codebook.
    """
    paths = [folder / token_shard_name(number) for number in range(facts.num_shards)]
    if missing := [path for path in paths if not is_token_shard_done(path, facts)]:
        raise Refusal(f"{missing[0]}: missing, and {len(missing) - 1} more; run magvit precompute-tokens again")
    shards = [{"name": path.name, **_read_index(path)} for path in paths]
    if not (num_clips := sum(shard["count"] for shard in shards)):
        raise Refusal(f"{folder}: the clip shards hold no videos in split {facts.split}, so there are no tokens")
    codebook = codebook_use(_count_codes(paths, facts))
    content = {**facts.as_json(), "num_clips": num_clips, "codebook": codebook, "shards": shards}
    content["hash"] = hash_of(content)
    with _private(folder / "dataset.json") as private:
        write_json(private, content)
        os.replace(private, folder / "dataset.json")
    with suppress(OSError):  # another launch may be at work in it
        (folder / "unfinished").rmdir()
    return content


def codebook_use(counts: NDArray[np.int64]) -> dict[str, Any]:
    """`used`: how many codes occur; `perplexity`: exp of the entropy of their frequencies, 1 to the codebook's size."""
    frequencies = counts[counts > 0] / max(int(counts.sum()), 1)
    entropy = -(frequencies * np.log(frequencies)).sum()
    return {"used": len(frequencies), "perplexity": round(float(np.exp(entropy)), 3)}


def _count_codes(paths: Sequence[Path], facts: TokenFacts) -> NDArray[np.int64]:
    """How often each code occurs in z, over all clips and views."""
    counts = np.zeros(facts.codebook_size, np.int64)
    for path in paths:
        found = np.bincount(open_token_tar(path, facts.clip_shape).tokens[:, :, 0].ravel(), minlength=len(counts))
        if len(found) > len(counts):
            raise Refusal(f"{path}: id {len(found) - 1}, the codebook has {len(counts)}; delete it and run again")
        counts += found
    return counts


@contextmanager
def _private(path: Path) -> Iterator[Path]:
    """A file of this process alone, to become `path`; gone at the end of the block."""
    folder = path.parent / "unfinished" / f"{socket.gethostname()}-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder / path.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _link(private: Path, path: Path) -> None:
    with suppress(FileExistsError):  # another launch was first
        os.link(private, path)


def _remove_remains(folder: Path) -> None:
    for left in folder.glob(f"unfinished/{socket.gethostname()}-*"):
        if not is_running(left.name.rpartition("-")[2]):
            shutil.rmtree(left, ignore_errors=True)


def _read_index(path: Path) -> dict[str, Any]:
    return _read_object(path.with_suffix(".json"))


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_index(path: Path, facts: TokenFacts) -> None:
    """Of what stands there, which another launch may have written."""
    count = len(open_token_tar(path, facts.clip_shape).tokens)
    index = {"count": count, "bytes": path.stat().st_size, "sha256": sha256(path)}
    with _private(path.with_suffix(".json")) as private:
        write_json(private, index)
        os.replace(private, path.with_suffix(".json"))
