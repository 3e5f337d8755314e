"""Mask schedules and COMMIT's three-way token assignment (MAGVIT eq. 3; spec sections 7, 8). Integers only."""

from dataclasses import dataclass
from math import log2, pi
from typing import Literal

import torch
from torch import Tensor

from magvit_scale.commit.condition import Condition
from magvit_scale.commit.tasks import MASK_TOKEN
from magvit_scale.config import read_schedule

SMALLEST_RATIO = 1e-6


def mask_ratio(progress: Tensor, schedule: str, num_tokens: int) -> Tensor:
    """Share of masked tokens for progress in [0, 1]; falls from 1 towards 0, clipped to [1e-6, 1] (spec section 8).

    Args:
        progress: float tensor of any shape: a uniform draw in training, (step + 1) / num_steps in decoding.
        schedule: as in DecodingConfig; `cosine` is what the paper trains with.
        num_tokens: sequence length, which `exp` and `log` depend on.

    Raises:
        Refusal: an unknown schedule.
    """
    bits = log2(num_tokens)
    name, numbers = read_schedule(schedule)
    ratio = torch.zeros_like(progress)
    match name:
        case "cosine":
            ratio = torch.cos(progress * (pi / 2))
        case "uniform":
            ratio = 1 - progress
        case "exp":
            ratio = 1 - 2 ** (-bits * (1 - progress))
        case "log":
            ratio = -torch.log2(progress) / bits
        case "pow":
            ratio = 1 - progress ** numbers[0]
        case "poly":
            for number in numbers:
                ratio = ratio * progress + number
    return ratio.clamp(SMALLEST_RATIO, 1.0)


def count_masked(ratio: Tensor, num_tokens: Tensor | int, rounding: Literal["floor", "ceil"]) -> Tensor:
    """int64 number of masked tokens of `num_tokens`, at least 1 of any; `floor` is the released code, `ceil` the paper
    (spec section 7).
    """
    count = ratio * num_tokens
    return (count.floor() if rounding == "floor" else count.ceil()).long().clamp(min=1).clamp(max=num_tokens)


def choose_masked(scores: Tensor, count: Tensor) -> Tensor:
    """Bool 'b n': the `count` ('b') lowest scores ('b n') of each row, of equal ones the first."""
    # By rank and not by a cut-off: sure tokens tie at a log-probability of exactly 0.
    return scores.argsort(dim=1, stable=True).argsort(dim=1) < count[:, None]


def mask_share(scores: Tensor, ratio: Tensor, is_maskable: Tensor, rounding: Literal["floor", "ceil"]) -> Tensor:
    """Bool 'b n': in each row the lowest scores ('b n') of the maskable tokens ('b n' bool), a share `ratio` ('b') of
    them (MAGVIT eq. 3; spec section 7).
    """
    count = count_masked(ratio, is_maskable.sum(1), rounding)
    return choose_masked(scores.masked_fill(~is_maskable, torch.inf), count)


@dataclass(frozen=True)
class Assignment:
    """COMMIT's view of a batch, all 'b n'; the three boolean parts are disjoint and cover all that is not fixed."""

    inputs: Tensor
    """int64: the token, its condition's token, or MASK_TOKEN."""
    refine: Tensor
    """Masked and inside the condition: the condition's token is shown, the true one asked for."""
    mask: Tensor
    """Masked and outside the condition: MASK is shown."""
    reconstruct: Tensor
    """Not masked: the true token is shown."""


def assign(tokens: Tensor, condition: Condition, is_masked: Tensor) -> Assignment:
    """Builds the transformer's latent tokens (MAGVIT eq. 3; spec section 7).

    Args:
        tokens: 'b n' int64 of the clip.
        condition: of the batch.
        is_masked: 'b n' bool, the tokens drawn for masking; those at fixed positions do not count.
    """
    is_masked = is_masked & ~condition.is_fixed
    refine, mask = is_masked & condition.where, is_masked & ~condition.where
    inputs = torch.where(refine | condition.is_fixed, condition.tokens, tokens).masked_fill(mask, MASK_TOKEN)
    return Assignment(inputs, refine, mask, reconstruct=~is_masked & ~condition.is_fixed)
