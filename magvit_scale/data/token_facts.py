"""What a folder of token shards says of itself: source.json from the first moment, dataset.json at the end. No torch.

<folder>/source.json           which tokenizer, clips, canvases and views; other ones are refused
<folder>/tokens-000000.tar     a shard, see token_tar.py; what has this name is complete and never changes
<folder>/tokens-000000.json    its count, size and checksum
<folder>/dataset.json          last: what source.json says, the list of the shards, the codebook's use
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from magvit_scale.config import Precision, Refusal

MOST_CODES = 1 << 16
"""An id is a uint16."""
MOST_MANIFEST_BYTES = 1 << 28
"""A million shards; a larger file is not read into memory."""


@dataclass(frozen=True, kw_only=True)
class TokenFacts:
    """All that decides the tokens of a folder.

    Attributes:
        tokenizer_hash: of the tokenizer's weights.
        tokenizer: its configuration.
        clips_hash: of the clip shards.
        clips: how clips are cut from them; `split` among others.
        canvases: names along the canvas axis; the first is the clip itself.
        rules: by canvas, the fingerprint of the rule that makes it from a clip.
        views: augmentation views per video.
        seed: of the views.
        latent_shape: (t, h, w).
        codebook_size: ids are below it.
        classes: names by class id.
        num_shards: as many as the split has clip shards.
        precision: in which the tokenizer computed.
    """

    tokenizer_hash: str
    tokenizer: dict[str, Any]
    clips_hash: str
    clips: dict[str, Any]
    canvases: tuple[str, ...]
    rules: dict[str, str]
    views: int
    seed: int
    latent_shape: tuple[int, int, int]
    codebook_size: int
    classes: tuple[str, ...]
    num_shards: int
    precision: str = "fp32"

    @property
    def split(self) -> str:
        """Of the clip shards."""
        return str(self.clips["split"])

    @property
    def num_classes(self) -> int:
        """Number of class names."""
        return len(self.classes)

    @property
    def clip_shape(self) -> tuple[int, ...]:
        """(views, canvases, t, h, w): what a shard holds of one video."""
        return self.views, len(self.canvases), *self.latent_shape

    def as_json(self) -> dict[str, Any]:
        """The facts as JSON has them: lists for tuples."""
        return dict(json.loads(json.dumps({item.name: asdict(self)[item.name] for item in fields(TokenFacts)})))


def with_defaults(content: Mapping[str, Any]) -> dict[str, Any]:
    """A file's content, and what was always so before it could be chosen."""
    return {item.name: item.default for item in fields(TokenFacts) if item.default is not MISSING} | dict(content)


def first_difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, Any, Any]:
    """The first key that differs, dotted, and its two values."""
    key = next(key for key in [*wanted, *found] if found.get(key) != wanted.get(key))
    was, now = found.get(key), wanted.get(key)
    if isinstance(was, dict) and isinstance(now, dict):
        inner, was, now = first_difference(was, now)
        return f"{key}.{inner}", was, now
    return key, was, now


def hash_of(content: Mapping[str, Any]) -> str:
    """Checksum of a dataset.json, but for the checksum in it."""
    text = json.dumps({key: value for key, value in content.items() if key != "hash"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_dataset(folder: Path) -> dict[str, Any]:
    """Reads and checks dataset.json.

    Returns:
        the facts by name, `shards` (name, count, bytes, sha256 each), `num_clips`, `codebook`, `hash`.

    Raises:
        Refusal: missing, damaged, of another program, or not a list of all the shards.
    """
    path = folder / "dataset.json"
    if not path.exists():
        raise Refusal(f"{folder}: no dataset.json of token shards; `magvit precompute-tokens` makes it (written last)")
    content = _read_json(path)
    if "tokenizer_hash" not in content:
        raise Refusal(f"{path}: not a data set of tokens; expected the output folder of `magvit precompute-tokens`")
    if wrong := [name for name, is_valid in _VALID.items() if not is_valid(content.get(name))]:
        raise Refusal(f"{path}: no valid {wrong[0]}, other than this version writes; {_AGAIN} into another folder")
    if content.get("hash") != hash_of(content):
        raise Refusal(f"{path}: changed after it was written (its hash does not fit); delete it and {_AGAIN}")
    names = [line["name"] for line in content["shards"]]
    if names != [token_shard_name(number) for number in range(content["num_shards"])]:
        raise Refusal(f"{path}: lists {len(names)} shards, expected all {content['num_shards']} in turn; {_AGAIN}")
    return content


def facts_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of TokenFacts in a checked dataset.json."""
    facts = {item.name: with_defaults(content)[item.name] for item in fields(TokenFacts)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}


def token_shard_name(number: int) -> str:
    """File name of token shard `number`."""
    return f"tokens-{number:06d}.tar"


_AGAIN = "run magvit precompute-tokens again"


def _read_json(path: Path) -> dict[str, Any]:
    if (size := path.stat().st_size) > MOST_MANIFEST_BYTES:
        raise Refusal(f"{path}: {size} bytes, expected at most {MOST_MANIFEST_BYTES}; delete it and {_AGAIN}")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Refusal(f"{path}: not JSON ({error}); delete it and {_AGAIN}") from error
    if not isinstance(content, dict):
        raise Refusal(f"{path}: holds a {type(content).__name__}, expected an object; delete it and {_AGAIN}")
    return content


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_shard(line: Any) -> bool:
    names, counts = ("name", "sha256"), ("count", "bytes")
    return isinstance(line, dict) and all(isinstance(line.get(k), str) for k in names) and all(
        _is_count(line.get(k)) for k in counts
    )  # fmt: skip


_VALID = {
    "tokenizer_hash": lambda value: isinstance(value, str),
    "tokenizer": lambda value: isinstance(value, dict),
    "clips_hash": lambda value: isinstance(value, str),
    "clips": lambda value: isinstance(value, dict) and "split" in value,
    "canvases": lambda value: _is_names(value) and len(value) > 0,
    "rules": lambda value: isinstance(value, dict),
    "views": lambda value: _is_count(value) and value > 0,
    "seed": lambda value: isinstance(value, int),
    "latent_shape": lambda value: isinstance(value, list) and len(value) == 3 and all(map(_is_count, value)),
    "codebook_size": lambda value: _is_count(value) and value <= MOST_CODES,
    "classes": _is_names,
    "num_shards": _is_count,
    "precision": lambda value: value is None or value in get_args(Precision),  # none in files of before
    "shards": lambda value: isinstance(value, list) and all(map(_is_shard, value)),
}
