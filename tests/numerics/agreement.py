"""One comparison with the official code, and where a test run keeps them for the report."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch


@dataclass(frozen=True)
class Agreement:
    """What was compared and how far apart it was."""

    component: str
    what: str
    difference: float
    """Largest absolute difference; a share of the largest expected value where `is_relative`."""
    tolerance: float
    is_relative: bool
    reason: str
    """Why the tolerance is what it is."""
    test: str


AGREEMENTS = pytest.StashKey[list[Agreement]]()


def largest_difference(found: Any, expected: Any, *, relative: bool) -> float:
    """max|found - expected| in float64, divided by max|expected| where `relative`; infinite where a value is no number.

    Raises:
        AssertionError: the shapes differ, or hold nothing.
    """
    ours, theirs = (np.asarray(v.detach() if isinstance(v, torch.Tensor) else v) for v in (found, expected))
    assert ours.shape == theirs.shape, f"shape {ours.shape}, expected {theirs.shape}"
    assert theirs.size, "nothing to compare"
    difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max()
    scale = np.abs(theirs.astype(np.float64)).max() if relative else 1.0
    if np.isnan(difference):
        return float("inf")
    return float(difference / scale) if difference else 0.0
