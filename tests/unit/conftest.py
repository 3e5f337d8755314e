"""What unit tests share: the reference arrays of the official code, where a machine has them."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Arrays = dict[str, np.ndarray]


@pytest.fixture
def golden() -> Callable[[str], Arrays]:
    """Reads an npz of the folder MAGVIT_GOLDEN_DIR; skips the test where there is none."""
    folder = os.environ.get("MAGVIT_GOLDEN_DIR")
    if not folder:
        pytest.skip("MAGVIT_GOLDEN_DIR is not set: no official values here")

    def read(name: str) -> Arrays:
        with np.load(Path(folder) / name, allow_pickle=False) as archive:
            return dict(archive)

    return read
