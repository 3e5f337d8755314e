"""Several sources mixed by weight: which source a position takes, and its own position there. No torch."""

from collections.abc import Sequence

import numpy as np

PERIOD = 1000
"""The schedule repeats after so many positions; weights are rounded to this fine a share."""


class Mixture:
    """A fixed even schedule of sources: at every moment each has had its share to within about one sample."""

    def __init__(self, weights: Sequence[float]) -> None:
        """Makes the schedule.

        Raises:
            ValueError: no weights, or one that is not positive.
        """
        if not weights or not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(f"weights={list(weights)}: expected positive numbers")
        self.shares = _whole_shares(np.asarray(weights, np.float64))
        # The source that is furthest behind comes next (Webster's rule: by the middle of its next interval).
        places = [(np.arange(share) + 0.5) / share for share in self.shares]
        sources = np.repeat(np.arange(len(weights)), self.shares)
        self._schedule = sources[np.argsort(np.concatenate(places), kind="stable")]
        taken = self._schedule[:, None] == np.arange(len(weights))
        self._before = np.cumsum(taken, axis=0) - taken

    def at(self, position: int) -> tuple[int, int]:
        """The source at a position from 0, and how many earlier positions took the same source."""
        period, place = divmod(position, PERIOD)
        source = int(self._schedule[place])
        return source, period * int(self.shares[source]) + int(self._before[place, source])


def _whole_shares(weights: np.ndarray) -> np.ndarray:
    """Whole numbers of at least 1 that sum to PERIOD, as near to the weights as that allows."""
    exact = weights / weights.sum() * PERIOD
    shares = np.maximum(1, np.floor(exact)).astype(np.int64)
    while (missing := PERIOD - int(shares.sum())) != 0:
        behind = exact - shares
        shares[int(np.argmax(behind)) if missing > 0 else int(np.argmin(np.where(shares > 1, behind, np.inf)))] += (
            1 if missing > 0 else -1
        )
    return shares
