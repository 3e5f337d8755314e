"""The perceptual loss: frozen, the same every time, and a bystander to everybody else's random numbers."""

import pytest
import torch
from torch import Tensor

from magvit_scale.config import Refusal
from magvit_scale.vqgan.perceptual import PerceptualLoss


@pytest.fixture(scope="module")
def loss() -> PerceptualLoss:
    return PerceptualLoss("random")


def random_clip(seed: int) -> Tensor:
    return torch.rand(2, 3, 2, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_building_it_is_deterministic_and_leaves_the_global_generator_alone(loss: PerceptualLoss) -> None:
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = PerceptualLoss("random")
    assert torch.equal(torch.get_rng_state(), state)
    for (name, first), second in zip(loss.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(first, second), name


def test_it_is_frozen_and_the_gradient_reaches_the_fake_only(loss: PerceptualLoss) -> None:
    real, fake = random_clip(0), random_clip(1).requires_grad_()
    loss(real, fake).backward()
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    assert all(parameter.grad is None for parameter in loss.parameters())
    assert real.grad is None
    assert fake.grad.abs().sum() > 0


@torch.no_grad()
def test_it_is_zero_for_equal_clips_and_grows_with_the_difference(loss: PerceptualLoss) -> None:
    real, other = random_clip(0), random_clip(1)
    assert loss(real, real).item() == 0.0
    near, far = loss(real, real + 0.05 * (other - real)), loss(real, other)
    assert 0 < near.item() < far.item()


@torch.no_grad()
def test_it_is_the_mean_over_frames_and_repeats_exactly(loss: PerceptualLoss) -> None:
    real, fake = random_clip(0), random_clip(1)
    whole = loss(real, fake)
    assert torch.equal(whole, loss(real, fake))  # no dropout is left on
    frames = [loss(real[b : b + 1, :, t : t + 1], fake[b : b + 1, :, t : t + 1]) for b in range(2) for t in range(2)]
    assert whole.item() == pytest.approx(torch.stack(frames).mean().item(), rel=1e-5)


def test_networks_without_weights_are_refused() -> None:
    with pytest.raises(Refusal, match="perceptual=lpips_vgg") as refusal:
        PerceptualLoss("lpips_vgg")
    assert "\n" not in str(refusal.value)
