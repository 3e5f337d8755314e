"""Figures over seeds: mean, deviation, and what counts as a difference."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot
from statistics import mean, stdev


@dataclass(frozen=True)
class Spread:
    """Figures of several seeds, or a baseline's only one."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return mean(self.values)

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds, divisor n - 1; 0 for a baseline."""
        return stdev(self.values) if len(self.values) > 1 else 0.0

    def text(self, digits: int) -> str:
        """As tables have it: 4.63 (0.02)."""
        deviation = f" ({self.deviation:.{digits}f})" if len(self.values) > 1 else ""
        return f"{self.mean:.{digits}f}{deviation}"


def spread_of(values: Sequence[float | None]) -> Spread | None:
    """None where a seed has no figure."""
    found = tuple(value for value in values if value is not None)
    return Spread(found) if found and len(found) == len(values) else None


def differs(one: Spread, other: Spread) -> bool:
    """Whether two means are further apart than twice the deviation of the difference between two single runs.

    With three seeds on each side that is |t| > 3.46, p = 0.026 for two Gaussians of one width.
    """
    return abs(one.mean - other.mean) > 2 * hypot(one.deviation, other.deviation)


def verdict(own: Spread, first: Spread, *, is_lower_better: bool) -> str:
    """`better` or `worse` than a table's first row, or `same`: no more apart than seeds are."""
    if not differs(own, first):
        return "same"
    return "better" if (own.mean < first.mean) == is_lower_better else "worse"
