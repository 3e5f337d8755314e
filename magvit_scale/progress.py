"""Progress for people: a bar on a terminal, a plain line every few seconds elsewhere (log files, the launcher)."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
PLAIN_INTERVAL_S = 2.0


class _Plain(tqdm):
    """tqdm that ends each state with a newline instead of redrawing it."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        self.fp.write(f"{msg or self}\n")
        self.fp.flush()
        return True


def progress_bar(
    label: str, total: int | None, *, unit: str, initial: int = 0, is_shown: bool = True, is_scaled: bool = False
) -> Any:
    """A tqdm bar with rate and ETA, for a `with` block; call `.update(n)` and `.set_postfix(...)`.

    Args:
        label: what is counted, the first word of every line.
        total: items at the end; None where nobody knows.
        unit: of one item, as in `step`.
        initial: items done before this start.
        is_shown: False on ranks that keep silent.
        is_scaled: counts in k, M and G, for bytes.
    """
    terminal = sys.stderr.isatty()
    bar = tqdm if terminal else _Plain
    return bar(
        desc=label,
        total=total,
        unit=unit,
        initial=initial,
        ncols=None if terminal else 110,
        mininterval=0.1 if terminal else PLAIN_INTERVAL_S,
        maxinterval=PLAIN_INTERVAL_S,
        leave=True,
        ascii=None if terminal else " #",
        disable=not is_shown,
        unit_scale=is_scaled,
    )


def progress(items: Iterable[Item], label: str, total: int, *, unit: str) -> Iterator[Item]:
    """Yields the items under a progress bar."""
    with progress_bar(label, total, unit=unit) as bar:
        for item in items:
            yield item
            bar.update(1)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table whose columns begin below each other, two blanks apart; every row has as many cells."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
