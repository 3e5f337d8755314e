"""COMMIT's cross-entropy and its three parts (MAGVIT eq. 4-5; spec sections 6, 7)."""

from dataclasses import dataclass

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from magvit_scale.commit.masking import Assignment
from magvit_scale.config import CommitLossConfig


@dataclass(frozen=True)
class CommitLoss:
    """The training loss and the mean cross-entropy of each part, nats per token; a part without tokens is 0."""

    total: Tensor
    refine: Tensor
    mask: Tensor
    reconstruct: Tensor


def token_cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """'b n k' logits over the codebook, 'b n' ids -> 'b n' nats. The normaliser runs over the codebook only (spec
    section 6).
    """
    flat = F.cross_entropy(
        rearrange(logits, "b n k -> (b n) k"),
        rearrange(targets, "b n -> (b n)"),
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return rearrange(flat, "(b n) -> b n", b=targets.shape[0])


def compute_commit_loss(
    logits: Tensor, targets: Tensor, assignment: Assignment, config: CommitLossConfig
) -> CommitLoss:
    """Per-clip weighted mean over the latent tokens, then the mean over clips (MAGVIT eq. 4-5; spec section 6)."""
    cross_entropy = token_cross_entropy(logits, targets, config.label_smoothing)
    weights = token_weights(assignment, config)
    per_clip = (weights * cross_entropy).sum(1) / (weights.sum(1) + 1e-8)
    return CommitLoss(
        total=per_clip.mean(),
        refine=_mean_where(cross_entropy, assignment.refine),
        mask=_mean_where(cross_entropy, assignment.mask),
        reconstruct=_mean_where(cross_entropy, assignment.reconstruct),
    )


def token_weights(assignment: Assignment, config: CommitLossConfig) -> Tensor:
    """'b n' float32: the weight of each token's part, 0 where a condition is fixed (spec section 7)."""
    return (
        config.refine_weight * assignment.refine.float()
        + config.mask_weight * assignment.mask
        + config.reconstruct_weight * assignment.reconstruct
    )


def mean_share(hits: Tensor, among: Tensor) -> Tensor:
    """Each clip's share of `hits` among the tokens `among` (both 'b n' bool), the mean over clips; a clip without any
    of them counts as 0.
    """
    return ((hits & among).sum(1) / among.sum(1).clamp(min=1)).mean()


def _mean_where(values: Tensor, where: Tensor) -> Tensor:
    return (values.detach() * where).sum() / where.sum().clamp(min=1)
