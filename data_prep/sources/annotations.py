"""Annotation files that others wrote: read whole, but never larger, deeper or further away than they may be."""

import csv
import io
import json
from pathlib import Path, PurePosixPath
from typing import Any

from magvit_scale.config import Refusal

# Something-Something's largest JSON has 40 MB, the largest Kinetics CSV too.
MAX_JSON_BYTES = 128 << 20
MAX_TEXT_BYTES = 1 << 30


def read_text(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """A text file, UTF-8 with or without a byte order mark, lines ending in any way.

    Raises:
        Refusal: missing, too large, or not text.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise Refusal(f"annotations {path}: {error.strerror}; expected the file as it was published") from error
    if len(data) > max_bytes:
        raise Refusal(f"annotations {path}: larger than {max_bytes >> 20} MiB, more than any data set's; give another")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refusal(f"annotations {path}: not UTF-8 text ({error.reason}); expected the published file") from error


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        Refusal: missing, too large, nested too deep, or not JSON.
    """
    try:
        return json.loads(read_text(path, MAX_JSON_BYTES))
    except RecursionError as error:
        raise Refusal(f"annotations {path}: JSON nested too deep; expected the published file") from error
    except json.JSONDecodeError as error:
        raise Refusal(f"annotations {path}: not JSON ({error}); expected the published file") from error
    except ValueError as error:
        # A number with more digits than Python reads; a Refusal is a ValueError too and goes on as it is.
        raise error if isinstance(error, Refusal) else Refusal(f"annotations {path}: {error}") from error


def read_csv(path: Path, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> list[tuple[str, dict[str, str]]]:
    """The rows of a CSV file with a header line, each with "FILE line N" before it; other columns are left out.

    Raises:
        Refusal: missing, not CSV, a column of `required` or a value is missing.
    """
    try:
        rows = list(csv.reader(io.StringIO(read_text(path), newline=""), strict=True))
    except csv.Error as error:
        raise Refusal(
            f"annotations {path}: not CSV ({error}); expected a line of columns and a line per video"
        ) from error
    columns = [name.strip() for name in rows[0]] if rows else []
    absent = [name for name in required if name not in columns]
    if absent:
        raise Refusal(
            f"annotations {path}: no column {', '.join(absent)}; expected the columns"
            f" {', '.join((*required, *optional))}, found {' '.join(', '.join(columns)[:80].split()) or 'nothing'}"
        )
    wanted = {name: columns.index(name) for name in (*required, *optional) if name in columns}
    return [
        (where, _row(where, row, columns, wanted))
        for where, row in ((f"annotations {path} row {number}", row) for number, row in enumerate(rows[1:], 2))
        if row
    ]


def path_inside(path: str, where: str) -> str:
    """The relative path that an annotation gives, in its plain form.

    Raises:
        Refusal: it is absolute, leaves its folder, or is no path.
    """
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or any(letter < " " for letter in path):
        raise Refusal(
            f"{where}: path {path[:80]!r}; expected one below the folder of videos, without '..' or control characters"
        )
    return "/".join(parts)


def _row(where: str, row: list[str], columns: list[str], wanted: dict[str, int]) -> dict[str, str]:
    if len(row) != len(columns):
        raise Refusal(f"{where}: {len(row)} values, expected {len(columns)} as in the first line")
    return {name: row[number].strip() for name, number in wanted.items()}
