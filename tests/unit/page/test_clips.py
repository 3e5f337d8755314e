"""Clips of generate and judge: what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from magvit_scale.config import Refusal
from magvit_scale.page.clips import read_samples
from tests.toy_record import clips, write_samples


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"FP/real": clips(1)}, "condition, generated and real of FP have shapes"),
        ({"FP/real": clips(2).astype(np.float32)}, r"FP/real is float32 \(2, 3, 8, 8, 3\), expected uint8"),
        ({"FP/condition": None}, "FP/condition is missing"),
        ({"FP/label": np.array([0, 2])}, "FP/label is missing or not below the number of classes, 2"),
        ({"trajectory/FP/fixed": np.ones((3, 2, 2, 2), bool)}, "not one `t h w` grid per step"),
        ({"classes": None}, "no array classes"),
        ({"classes": np.array(["a", None], dtype=object)}, "not a readable npz"),
    ],
)
def test_wrong_samples_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_samples(tmp_path, **changes)
    with pytest.raises(Refusal, match=message):
        read_samples(tmp_path / "samples.npz")
