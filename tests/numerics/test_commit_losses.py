"""COMMIT's smoothed cross-entropy and weighted mean, against the official trainer's."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from magvit_scale.commit.losses import compute_commit_loss, token_cross_entropy
from magvit_scale.commit.masking import Assignment
from magvit_scale.config import CommitLossConfig

ROUNDING = "float32 exponentials and sums"


def test_the_loss_is_the_official_one(
    golden: Callable[[str], Mapping[str, np.ndarray]], agree: Callable[..., None]
) -> None:
    official = golden("losses.npz")
    logits, targets = torch.from_numpy(official["seqce/logits"]), torch.from_numpy(official["seqce/labels"]).long()
    # A token's weight there is 0 or 1, and all are 0 in the last row.
    weights = torch.from_numpy(official["seqce/weights"])
    parts = Assignment(inputs=targets, refine=weights < 0, mask=weights > 0, reconstruct=weights == 0)
    prefix = "trainer_token_loss/ce_ls"
    smoothings = [key.removeprefix(prefix) for key in official if key.startswith(prefix)]
    assert "0.0001" in smoothings
    for smoothing in smoothings:
        config = CommitLossConfig(reconstruct_weight=0.0, label_smoothing=float(smoothing))
        for what, key, found in (
            ("per token", "ce", token_cross_entropy(logits, targets, config.label_smoothing)),
            ("total", "loss", compute_commit_loss(logits, targets, parts, config).total),
        ):
            expected = official[f"trainer_token_loss/{key}_ls{smoothing}"]
            agree("COMMIT loss", f"{what}, smoothed", found, expected,
                  tolerance=2e-6, relative=True, reason=ROUNDING, case=f"smoothing {smoothing}")  # fmt: skip
