"""The index beside a shard: JSON whose `samples` describe one stored video each. No torch.

Whoever wants one video pays for one: where the lines begin is found five times faster than all of them are parsed, and
their text takes less memory than what it stands for.
"""

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from magvit_scale.config import Refusal

_BETWEEN_OBJECTS = re.compile(r'\}\s*,\s*(?=\{\s*")')
_END_OF_LIST = re.compile(r"\]\s*[,}]")
_DECODER = json.JSONDecoder()


class IndexLines(Sequence[Any]):
    """The lines of an index that is held as text; each is parsed whenever it is asked for."""

    def __init__(self, path: Path, text: str, places: list[int]) -> None:
        """Takes an index and where its lines begin in it."""
        self._path, self._text, self._places = path, text, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: Any) -> Any:
        """The content of one line.

        Raises:
            Refusal: it is damaged.
        """
        try:
            return _DECODER.raw_decode(self._text, self._places[number])[0]
        except (ValueError, RecursionError) as error:
            raise _not_json(self._path, error) from error


def open_lines(path: Path, count: int) -> Sequence[Any]:
    """The lines of an index; those that nobody asks for are not looked at.

    Args:
        path: of the index.
        count: expected lines.

    Raises:
        Refusal: the index is missing, has another number of lines, or is no JSON beside its lines.
    """
    text = _read(path)
    places = _places(text, count)
    return IndexLines(path, text, places) if places else read_lines(path, count)


def read_lines(path: Path, count: int) -> list[Any]:
    """The lines of an index, all of them parsed.

    Args:
        path: of the index.
        count: expected lines.

    Raises:
        Refusal: the index is missing, no JSON, or has another number of lines.
    """
    index = read_json(path)
    lines = index.get("samples") if isinstance(index, dict) else None
    if not isinstance(lines, list) or len(lines) != count:
        found = f"{len(lines)} samples" if isinstance(lines, list) else "no samples"
        raise Refusal(f"{path}: {found}, expected {count}; delete it and run data_prep.write_shards again")
    return lines


def read_json(path: Path) -> Any:
    """The content of a file that data_prep.write_shards wrote.

    Raises:
        Refusal: it is missing or no JSON.
    """
    try:
        return json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise _not_json(path, error) from error


def _places(text: str, count: int) -> list[int]:
    """Where the lines begin; nothing where that cannot be told without parsing all.

    In JSON, `}, {"` stands between two objects of a list and nowhere else: within a string its quote would be escaped.
    So these are the lines if there are as many as there should be, no list ends among them, and without them the rest
    is an index of no lines.
    """
    first = text.find("{", max(0, text.find('"samples"')))
    borders = itertools.islice(_BETWEEN_OBJECTS.finditer(text, max(0, first)), max(0, count - 1))
    places = [first, *(border.end() for border in borders)]
    try:
        _, end = _DECODER.raw_decode(text, places[-1])
        rest = json.loads(text[:first] + text[end:])
    except (ValueError, RecursionError):
        return []
    are_all = isinstance(rest, dict) and rest.get("samples") == [] and len(places) == count
    return places if are_all and not _END_OF_LIST.search(text, first, end) else []


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError as error:
        raise Refusal(f"{path}: missing; run data_prep.write_shards again") from error
    except ValueError as error:
        raise _not_json(path, error) from error


def _not_json(path: Path, error: Exception) -> Refusal:
    return Refusal(f"{path}: not JSON ({error}); delete it and run data_prep.write_shards again")
