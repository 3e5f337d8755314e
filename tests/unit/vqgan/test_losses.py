"""Adversarial losses, r1 and LeCam against closed forms and the official values."""

import numpy as np
import pytest
import torch
from torch import Tensor

from magvit_scale.vqgan.losses import LeCam, compute_discriminator_loss, compute_generator_loss, compute_r1_penalty

REAL, FAKE = torch.tensor([[1.5], [-0.3], [40.0]]), torch.tensor([[0.2], [-2.0], [-35.0]])


def softplus(x: Tensor) -> np.ndarray:
    return np.logaddexp(0, x.double().numpy())


def test_adversarial_losses_are_non_saturating() -> None:
    assert compute_generator_loss(FAKE).item() == pytest.approx(softplus(-FAKE).mean(), rel=1e-6)
    expected = softplus(-REAL).mean() + softplus(FAKE).mean()
    assert compute_discriminator_loss(REAL, FAKE).item() == pytest.approx(expected, rel=1e-6)


def test_adversarial_gradients_push_logits_the_right_way() -> None:
    real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    (to_fake,) = torch.autograd.grad(compute_generator_loss(fake), fake)
    assert (to_fake < 0).all()  # descending raises D(fake)
    to_real, to_fake = torch.autograd.grad(compute_discriminator_loss(real, fake), [real, fake])
    assert (to_real <= 0).all()
    assert (to_fake >= 0).all()
    torch.testing.assert_close(to_fake, torch.sigmoid(FAKE) / 3)


def test_r1_of_a_square_is_four_times_the_squared_norm() -> None:
    clip = torch.randn(3, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = clip.square().sum(dim=(1, 2, 3, 4))[:, None]  # gradient 2 x
    expected = 4 * clip.detach().double().square().sum().item() / 3
    assert compute_r1_penalty(logits, clip).item() == pytest.approx(expected, rel=1e-5)


def test_r1_of_per_frame_logits_sums_over_frames() -> None:
    clip = torch.ones(2, 3, 5, 2, 2, requires_grad=True)
    per_frame = 3 * clip.sum(dim=(1, 3, 4))[..., None]  # 'b t 1', gradient 3 everywhere
    assert compute_r1_penalty(per_frame, clip).item() == pytest.approx(9 * 3 * 5 * 2 * 2)


def test_r1_reaches_the_discriminators_parameters() -> None:
    slope = torch.tensor(1.5, requires_grad=True)
    clip = torch.ones(2, 1, 2, 3, 3, requires_grad=True)
    compute_r1_penalty(slope * clip.sum(dim=(1, 2, 3, 4)), clip).backward()
    assert slope.grad.item() == pytest.approx(2 * 1.5 * 18)  # penalty = slope^2 * 18 pixels


def lecam_of(real: float, fake: float, real_mean: float, fake_mean: float) -> float:
    lecam = LeCam(0.999)
    lecam.real_mean.fill_(real_mean)
    lecam.fake_mean.fill_(fake_mean)
    return lecam(torch.tensor([[real - 1], [real + 1]]), torch.tensor([[fake + 2], [fake - 2]])).item()


def test_lecam_of_the_specifications_example() -> None:
    assert lecam_of(0.8, -0.5, 0.3, 0.1) == pytest.approx(1.13, rel=1e-5)


def test_lecam_is_one_sided() -> None:
    assert lecam_of(0.0, 1.0, 0.5, 0.5) == 0.0
    assert lecam_of(0.0, -1.0, 0.5, 0.5) == pytest.approx(1.5**2)
    assert lecam_of(2.0, 1.0, 0.5, 0.5) == pytest.approx(1.5**2)


def test_lecam_averages_start_at_zero_move_by_the_decay_and_are_in_the_checkpoint() -> None:
    lecam = LeCam(0.9)
    assert {name: t.item() for name, t in lecam.state_dict().items()} == {"real_mean": 0.0, "fake_mean": 0.0}
    for _ in range(2):
        lecam.update(torch.tensor(1.0, requires_grad=True), torch.tensor(-2.0))
    assert lecam.real_mean.item() == pytest.approx(0.19)
    assert lecam.fake_mean.item() == pytest.approx(-0.38)
    assert not lecam.real_mean.requires_grad


def test_lecam_gradient_stops_at_the_averages() -> None:
    lecam, real = LeCam(0.9), torch.tensor([[1.0], [3.0]], requires_grad=True)
    lecam(real, torch.zeros(2, 1)).backward()
    assert real.grad.flatten().tolist() == pytest.approx([2.0, 2.0])  # d relu(2 - 0)^2 = 4, a half to each
    assert not list(lecam.parameters())
