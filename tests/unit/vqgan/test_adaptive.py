"""The adaptive weight against gradients that go through the whole generator."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from magvit_scale.config import Padding, VQGANConfig
from magvit_scale.vqgan.adaptive import EPSILON, LARGEST, LastLayer
from magvit_scale.vqgan.autoencoder import VQGAN

CLIP = torch.rand(4, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def alone(value: Tensor) -> Tensor:
    return value


def build(ndim: int = 3, padding: Padding = "reflect") -> VQGAN:
    torch.manual_seed(0)
    config = VQGANConfig(base_channels=8, channel_multipliers=(1, 2), num_res_blocks=1, temporal_downsample=(True,),
                         embedding_dim=4, codebook_size=8, num_groups=4)  # fmt: skip
    return VQGAN(replace(config, ndim=ndim, padding=padding))  # type: ignore[arg-type]


def losses(fake: Tensor, clip: Tensor) -> tuple[Tensor, Tensor]:
    """One that looks at pixels, one at differences between neighbours; both means over clips."""
    return (fake - clip).square().mean(), 0.01 * torch.nn.functional.softplus(fake.diff(dim=4) * 5).mean()


def slopes(fake: Tensor, clip: Tensor) -> list[Tensor]:
    leaf = fake.detach().requires_grad_()
    return [torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in losses(leaf, clip)]


def through_the_generator(generator: VQGAN, clip: Tensor) -> float:
    fake, _ = generator(clip)
    weight = generator.decoder.conv_out.weight
    norms = [torch.autograd.grad(loss, weight, retain_graph=True)[0].norm() for loss in losses(fake, clip)]
    return (norms[0] / (norms[1] + EPSILON)).item()


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("padding", ["reflect", "zeros"])
def test_it_is_the_ratio_of_the_gradients_of_the_last_weights(ndim: int, padding: Padding) -> None:
    generator = build(ndim, padding)
    expected = through_the_generator(generator, CLIP)
    last = LastLayer(generator, alone)
    with torch.no_grad():
        generator.decoder.conv_out.weight.add_(0.1)  # later weights than the copy's
        fake, _ = generator(CLIP)
    moved = through_the_generator(generator, CLIP)
    assert last.balance(*slopes(fake, CLIP)).item() == pytest.approx(moved, rel=1e-4)
    assert moved != pytest.approx(expected, rel=1e-2)


def test_the_generator_gets_no_gradient_and_the_weight_none_either() -> None:
    generator = build()
    last = LastLayer(generator, alone)
    fake, _ = generator(CLIP)
    weight = last.balance(*slopes(fake, CLIP))
    assert not weight.requires_grad
    assert all(parameter.grad is None for parameter in generator.parameters())
    assert len(list(generator.parameters())) == len(list(build().parameters())), "the copy is no part of it"


def test_it_is_of_all_ranks_batches_together() -> None:
    """Ranks' mean losses have the mean of their gradients: the norm is of that, not a mean of norms."""
    generator, parts = build(), CLIP.chunk(2)
    expected = through_the_generator(generator, CLIP)

    def balance(clip: Tensor, mean_over_ranks: Callable[[Tensor], Tensor]) -> Tensor:
        last = LastLayer(generator, mean_over_ranks)
        fake, _ = generator(clip)
        return last.balance(*slopes(fake, clip))

    seen: list[list[Tensor]] = []
    for part in parts:
        seen.append([])
        balance(part, lambda value: seen[-1].append(value) or value)  # type: ignore[func-returns-value]
    means = iter([torch.stack(pair).mean(dim=0) for pair in zip(*seen, strict=True)])
    assert balance(parts[0], lambda value: next(means)).item() == pytest.approx(expected, rel=1e-4)


def test_a_discriminator_without_a_slope_gives_the_largest_weight() -> None:
    generator = build()
    last = LastLayer(generator, alone)
    fake, _ = generator(CLIP)
    reconstruction, _ = slopes(fake, CLIP)
    assert last.balance(1e3 * reconstruction, torch.zeros_like(reconstruction)).item() == LARGEST
    assert last.balance(torch.zeros_like(reconstruction), reconstruction).item() == 0
