"""What every test shares."""

import os
from collections.abc import Iterator

# Two threads per operation on two busy cores only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


@pytest.fixture(autouse=True)
def _onednn_stays_as_it_was() -> Iterator[None]:
    """A run in bfloat16 on a CPU switches it off for the whole process, see `compute_in`."""
    before = torch.backends.mkldnn.enabled
    yield
    torch.backends.mkldnn.enabled = before
