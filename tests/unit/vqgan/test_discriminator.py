"""The discriminator: official sizes, a plain version of it, odd sides, one logit per frame in 2D."""

from math import sqrt

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from magvit_scale.config import DiscriminatorConfig
from magvit_scale.vqgan.discriminator import Discriminator

UCF, BAIR = (2, 4, 4, 4, 4), (2, 4, 4, 4)


def build(ndim: int, clip_shape: tuple[int, int, int], multipliers: tuple[int, ...] = (2, 3)) -> Discriminator:
    torch.manual_seed(0)
    model = Discriminator(
        DiscriminatorConfig(ndim=ndim, base_channels=4, channel_multipliers=multipliers, clip_shape=clip_shape)
    )
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.1)  # biases start at 0, where a missing one would not be seen
    return model


def random_clip(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def halve(x: Tensor) -> Tensor:
    """TF-SAME average of windows of 2 over the last three axes, one axis after the other.

    Right only because a box's mean is the mean of means when all its rows are equally long.
    """
    for axis in (2, 3, 4):
        x = torch.stack([part.mean(axis) for part in x.split(2, dim=axis)], dim=axis)
    return x


def plain_3d_discriminator(model: Discriminator, clip: Tensor) -> Tensor:
    def conv(x: Tensor, layer: torch.nn.Conv3d) -> Tensor:
        return F.conv3d(x, layer.weight, layer.bias, padding=layer.kernel_size[0] // 2)

    def leaky(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.2 * x)

    x = leaky(conv(clip, model.conv_in))
    for block in model.blocks:
        main = leaky(conv(halve(leaky(conv(x, block.conv1))), block.conv2))
        x = (F.conv3d(halve(x), block.skip.weight) + main) / sqrt(2)
    x = leaky(conv(x, model.conv_out))
    flat = x.permute(0, 2, 3, 4, 1).flatten(1)  # t, h, w, c: the official order
    return leaky(flat @ model.dense.weight.T + model.dense.bias) @ model.logit.weight.T + model.logit.bias


@pytest.mark.parametrize(
    ("ndim", "base_channels", "multipliers", "size_px", "parameters"),
    [
        (3, 64, UCF, 128, 15_339_457),
        (3, 128, UCF, 128, 61_341_569),
        (3, 64, BAIR, 64, 11_734_465),
        (3, 128, BAIR, 64, 46_922_625),
        (2, 64, UCF, 128, 5_972_545),
        (2, 128, UCF, 128, 23_880_833),
    ],
)
def test_parameters_are_as_many_as_the_official_ones(
    ndim: int, base_channels: int, multipliers: tuple[int, ...], size_px: int, parameters: int
) -> None:
    sides = (16, size_px, size_px)
    config = DiscriminatorConfig(
        ndim=ndim, base_channels=base_channels, channel_multipliers=multipliers, clip_shape=sides
    )
    with torch.device("meta"):
        model = Discriminator(config)
        logits = model(torch.empty(2, 3, 16, size_px, size_px))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert logits.shape == ((2, 1) if ndim == 3 else (2, 16, 1))


@torch.no_grad()
@pytest.mark.parametrize("sides", [(4, 8, 8), (5, 10, 6), (1, 7, 3), (3, 20, 5)])
def test_3d_logits_are_the_definitions_at_even_and_odd_sides(sides: tuple[int, int, int]) -> None:
    model, clip = build(3, sides), random_clip(2, 3, *sides)
    torch.testing.assert_close(model(clip), plain_3d_discriminator(model, clip), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_2d_gives_one_logit_per_frame_and_no_frame_sees_another() -> None:
    model, clip = build(2, (3, 9, 6)), random_clip(2, 3, 3, 9, 6)
    logits = model(clip)
    assert logits.shape == (2, 3, 1)
    for frame in range(3):
        alone = model(clip[:, :, frame : frame + 1])
        torch.testing.assert_close(alone[:, 0], logits[:, frame], rtol=0, atol=1e-5)
    clip[0, :, 1] = 0
    moved = (model(clip) - logits).abs() > 1e-6
    assert moved.nonzero().tolist() == [[0, 1, 0]]


def test_only_the_skip_has_no_bias_and_biases_start_at_zero() -> None:
    model = Discriminator(DiscriminatorConfig(ndim=3, base_channels=4, channel_multipliers=(2,), clip_shape=(2, 4, 4)))
    kernels = {name.removesuffix(".weight") for name, _ in model.named_parameters() if name.endswith("weight")}
    biases = {name.removesuffix(".bias") for name, _ in model.named_parameters() if name.endswith("bias")}
    assert kernels - biases == {"blocks.0.skip"}
    assert not any(parameter.any() for name, parameter in model.named_parameters() if name.endswith("bias"))


def test_kernels_start_xavier_uniform() -> None:
    torch.manual_seed(0)
    model = Discriminator(DiscriminatorConfig(ndim=3, base_channels=32, channel_multipliers=(2,), clip_shape=(2, 4, 4)))
    kernel = model.blocks[0].conv2.weight
    bound = sqrt(6 / (27 * (32 + 64)))
    assert kernel.abs().max() <= bound
    assert kernel.abs().max() > 0.99 * bound
