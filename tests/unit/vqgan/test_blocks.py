"""The building blocks against plain versions of their definitions."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from magvit_scale.config import Padding
from magvit_scale.vqgan.blocks import ResidualBlock, group_norm

SIDES = {2: (6, 4), 3: (3, 6, 4)}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_group_norm(x: Tensor, num_groups: int, scale: Tensor, bias: Tensor) -> Tensor:
    groups = x.reshape(x.shape[0], num_groups, -1)
    mean, variance = groups.mean(2, keepdim=True), groups.var(2, keepdim=True, unbiased=False)
    normal = ((groups - mean) / torch.sqrt(variance + 1e-6)).reshape(x.shape)
    per_channel = (1, -1, *[1] * (x.ndim - 2))
    return normal * scale.reshape(per_channel) + bias.reshape(per_channel)


def plain_conv3(x: Tensor, weight: Tensor, padding: str) -> Tensor:
    mode = "constant" if padding == "zeros" else "reflect"
    padded = F.pad(x, (1, 1) * (x.ndim - 2), mode=mode)
    return F.conv2d(padded, weight) if x.ndim == 4 else F.conv3d(padded, weight)


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("padding", ["zeros", "reflect"])
@pytest.mark.parametrize("channels_out", [8, 12])
@pytest.mark.parametrize("pooled", [(), (2, 3), (3,)])
def test_residual_block_is_its_definition(
    ndim: int, padding: Padding, channels_out: int, pooled: tuple[int, ...]
) -> None:
    sides = tuple(dim + ndim - 2 for dim in pooled)  # of h and w
    block = ResidualBlock(ndim, 8, channels_out, num_groups=4, padding=padding, pooled=sides)
    for index, parameter in enumerate(block.parameters()):
        parameter.data = randn(*parameter.shape, seed=index) * 0.3 + (parameter.ndim == 1)
    x = randn(2, 8, *SIDES[ndim], seed=99)
    h = plain_conv3(swish(plain_group_norm(x, 4, block.norm1.weight, block.norm1.bias)), block.conv1.weight, padding)
    h = plain_conv3(swish(plain_group_norm(h, 4, block.norm2.weight, block.norm2.bias)), block.conv2.weight, padding)
    # The shortcut sees the raw input; a 1x1 kernel is a matrix over channels.
    raw = x if channels_out == 8 else torch.einsum("oi,bi...->bo...", block.shortcut.weight.flatten(1), x)
    expected = raw + h
    for dim in sides:
        expected = expected.unflatten(dim, (-1, 2)).mean(dim + 1)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)  # sums of up to 324 float32 products


def test_residual_block_has_no_biases() -> None:
    names = {name for name, _ in ResidualBlock(3, 8, 16, num_groups=4, padding="zeros").named_parameters()}
    assert {name for name in names if name.endswith("bias")} == {"norm1.bias", "norm2.bias"}
    assert "shortcut.weight" in names


def test_group_norm_statistics_run_over_time() -> None:
    x = torch.cat([torch.zeros(1, 4, 1, 2, 2), torch.ones(1, 4, 1, 2, 2)], dim=2)
    # Half zeros, half ones over the clip: mean 1/2, deviation 1/2; per frame it would be 0 everywhere.
    torch.testing.assert_close(group_norm(4, 4)(x), 2 * x - 1, rtol=0, atol=1e-5)  # eps 1e-6 against variance 1/4
    assert group_norm(4, 4).eps == 1e-6
