"""Mask schedules and COMMIT's three-way token assignment (MAGVIT eq. 3; spec sections 7, 8). Integers only."""

from dataclasses import dataclass
from math import log2, pi
from typing import Literal

import torch
from torch import Tensor

from magvit_scale.commit.tasks import MASK_TOKEN

Schedule = Literal["cosine", "uniform", "exp", "log"]
SMALLEST_RATIO = 1e-6


def mask_ratio(progress: Tensor, schedule: Schedule, num_tokens: int) -> Tensor:
    """Share of masked tokens for progress in [0, 1]; falls from 1 towards 0, clipped to [1e-6, 1] (spec section 8).

    Args:
        progress: float tensor of any shape: a uniform draw in training, (step + 1) / num_steps in decoding.
        schedule: `cosine` is what the paper trains with.
        num_tokens: sequence length, which `exp` and `log` depend on.
    """
    bits = log2(num_tokens)
    match schedule:
        case "cosine":
            ratio = torch.cos(progress * (pi / 2))
        case "uniform":
            ratio = 1 - progress
        case "exp":
            ratio = 1 - 2 ** (-bits * (1 - progress))
        case "log":
            ratio = -torch.log2(progress) / bits
    return ratio.clamp(SMALLEST_RATIO, 1.0)


def count_masked(ratio: Tensor, num_tokens: int, rounding: Literal["floor", "ceil"]) -> Tensor:
    """int64 number of masked tokens, at least 1; `floor` is the released code, `ceil` the paper."""
    count = ratio * num_tokens
    return (count.floor() if rounding == "floor" else count.ceil()).long().clamp(1, num_tokens)


def choose_masked(scores: Tensor, count: Tensor) -> Tensor:
    """Bool 'b n': the `count` ('b') lowest scores ('b n') of each row, ties with the cut-off included."""
    cutoff = scores.sort(dim=1).values.gather(1, count[:, None] - 1)
    return scores <= cutoff


@dataclass(frozen=True)
class Assignment:
    """COMMIT's view of a batch, all 'b n'; the three boolean parts are disjoint and cover everything."""

    inputs: Tensor
    """int64: the token, its condition canvas's token, or MASK_TOKEN."""
    refine: Tensor
    """Masked and inside the condition: the canvas's token is shown, the true one asked for."""
    mask: Tensor
    """Masked and outside the condition: MASK is shown."""
    reconstruct: Tensor
    """Not masked: the true token is shown."""


def assign(tokens: Tensor, condition_tokens: Tensor, condition: Tensor, is_masked: Tensor) -> Assignment:
    """Builds the transformer's input (MAGVIT eq. 3, `cond->input`).

    Args:
        tokens: 'b n' int64 of the clip.
        condition_tokens: 'b n' int64 of the condition canvas (anything where `condition` is False).
        condition: 'b n' bool, the latent condition mask.
        is_masked: 'b n' bool, the tokens drawn for masking; condition positions take part.
    """
    refine, mask = is_masked & condition, is_masked & ~condition
    inputs = torch.where(refine, condition_tokens, tokens).masked_fill(mask, MASK_TOKEN)
    return Assignment(inputs=inputs, refine=refine, mask=mask, reconstruct=~is_masked)
