"""COMMIT's cross-entropy, its parts and weights, against float64 numpy."""

import numpy as np
import pytest
import torch
from torch import Tensor

from magvit_scale.commit.condition import Condition
from magvit_scale.commit.losses import compute_commit_loss, mean_share, token_cross_entropy
from magvit_scale.commit.masking import Assignment, assign
from magvit_scale.config import CommitLossConfig


def plain_cross_entropy(logits: np.ndarray, targets: np.ndarray, smoothing: float) -> np.ndarray:
    logits = logits.astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    size = logits.shape[-1]
    wanted = (1 - smoothing) * np.eye(size)[targets] + smoothing / size
    return -(wanted * log_p).sum(-1)


def example() -> tuple[Tensor, Tensor, Assignment]:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(3, 12, 7, generator=generator), torch.randint(0, 7, (3, 12), generator=generator)
    condition, is_masked = torch.rand(3, 12, generator=generator) < 0.5, torch.rand(3, 12, generator=generator) < 0.6
    is_masked[2] = False  # one clip without any masked token: its parts are empty
    return logits, targets, parts(targets, condition, is_masked)


def parts(targets: Tensor, condition: Tensor, is_masked: Tensor) -> Assignment:
    nowhere = torch.zeros_like(condition)
    return assign(targets, Condition(targets, condition, nowhere, before=targets[:, :0]), is_masked)


@pytest.mark.parametrize("smoothing", [0.0, 1e-4, 0.3])
def test_cross_entropy_is_the_definition(smoothing: float) -> None:
    logits, targets, _ = example()
    expected = plain_cross_entropy(logits.numpy(), targets.numpy(), smoothing)
    found = token_cross_entropy(logits, targets, smoothing)
    assert found.shape == (3, 12)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (2.0, 0.5, 0.25), (1.0, 1.0, 0.0)])
def test_the_total_is_the_weighted_mean_per_clip_and_then_over_clips(weights: tuple[float, float, float]) -> None:
    logits, targets, parts = example()
    refine, mask, reconstruct = weights
    config = CommitLossConfig(
        refine_weight=refine, mask_weight=mask, reconstruct_weight=reconstruct, label_smoothing=0.1
    )
    losses = plain_cross_entropy(logits.numpy(), targets.numpy(), 0.1)
    w = refine * parts.refine.numpy() + mask * parts.mask.numpy() + reconstruct * parts.reconstruct.numpy()
    expected = ((w * losses).sum(1) / (w.sum(1) + 1e-8)).mean()
    assert compute_commit_loss(logits, targets, parts, config).total.item() == pytest.approx(expected, rel=1e-5)


def test_equal_weights_are_the_plain_mean_over_all_tokens() -> None:
    logits, targets, parts = example()
    total = compute_commit_loss(logits, targets, parts, CommitLossConfig(label_smoothing=0.0)).total
    expected = plain_cross_entropy(logits.numpy(), targets.numpy(), 0.0).mean()
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_parts_are_means_over_their_own_tokens_and_unweighted() -> None:
    logits, targets, parts = example()
    loss = compute_commit_loss(logits, targets, parts, CommitLossConfig(refine_weight=9.0, label_smoothing=0.1))
    losses = plain_cross_entropy(logits.numpy(), targets.numpy(), 0.1)
    for name in ("refine", "mask", "reconstruct"):
        expected = losses[getattr(parts, name).numpy()].mean()
        assert getattr(loss, name).item() == pytest.approx(expected, rel=1e-5), name
        assert not getattr(loss, name).requires_grad


def test_a_part_without_tokens_is_zero() -> None:
    logits, targets, _ = example()
    nothing = torch.zeros(3, 12, dtype=torch.bool)
    loss = compute_commit_loss(logits, targets, parts(targets, nothing, nothing), CommitLossConfig())
    assert loss.refine.item() == loss.mask.item() == 0.0
    assert loss.reconstruct.item() > 0


def test_a_weight_of_zero_takes_the_gradient_away() -> None:
    logits, targets, parts = example()
    logits.requires_grad_()
    compute_commit_loss(logits, targets, parts, CommitLossConfig(reconstruct_weight=0.0)).total.backward()
    assert not logits.grad[parts.reconstruct].any()
    assert logits.grad[parts.refine].abs().sum(-1).min() > 0
    assert torch.isfinite(logits.grad).all()  # also in the clip whose weights are all 0


def test_a_share_is_one_of_each_clip_so_that_no_division_of_the_batch_changes_it() -> None:
    hits = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]], dtype=torch.bool)
    among = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    assert mean_share(hits, among).item() == pytest.approx((1 / 3 + 1 + 0) / 3)
    parts = torch.stack([mean_share(hits[row : row + 1], among[row : row + 1]) for row in range(3)])
    assert parts.mean().item() == pytest.approx(mean_share(hits, among).item())
