"""The reference arrays of the official code, and the record of every comparison with them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.numerics.agreement import AGREEMENTS, Agreement, largest_difference

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """MAGVIT_GOLDEN_DIR; skips the test where it is not set. A file that is missing in it is a failure."""
    folder = os.environ.get("MAGVIT_GOLDEN_DIR")
    if not folder:
        pytest.skip("MAGVIT_GOLDEN_DIR is not set: no official values here")
    return Path(folder)


@pytest.fixture(scope="session")
def golden(golden_folder: Path) -> Callable[[str], Arrays]:
    """Reads one npz of the golden folder."""

    def read(name: str) -> Arrays:
        with np.load(golden_folder / name, allow_pickle=False) as archive:
            return dict(archive)

    return read


@pytest.fixture(scope="session")
def golden_json(golden_folder: Path) -> Callable[[str], Any]:
    """Reads one json of the golden folder."""
    return lambda name: json.loads((golden_folder / name).read_text())


@pytest.fixture
def agree(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Asserts that two values agree, and records by how much for `python -m tests.numerics.report`."""

    def check(
        component: str,
        what: str,
        found: Any,
        expected: Any,
        *,
        tolerance: float,
        reason: str,
        relative: bool = False,
        case: str = "",
    ) -> None:
        difference = largest_difference(found, expected, relative=relative)
        made = Agreement(component, what, difference, tolerance, relative, reason, request.node.nodeid)
        request.config.stash.setdefault(AGREEMENTS, []).append(made)
        kind = "of the largest value" if relative else "absolute"
        assert difference <= tolerance, (
            f"{component}, {what} {case}: {difference:.3g} {kind}, tolerance {tolerance:.3g}"
        )

    return check
