"""The building blocks against plain versions of their definitions."""

from math import sqrt

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magvit_scale.config import Padding
from magvit_scale.vqgan.blocks import ResidualBlock, group_norm
from magvit_scale.vqgan.convolution import convolution
from tests import tiny_models
from tests.fake_gpu import fake_gpu

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
def test_residual_block_is_its_definition(ndim: int, padding: str, channels_out: int) -> None:
    block = ResidualBlock(ndim, 8, channels_out, num_groups=4, padding=padding)
    for index, parameter in enumerate(block.parameters()):
        parameter.data = randn(*parameter.shape, seed=index) * 0.3 + (parameter.ndim == 1)
    x = randn(2, 8, *SIDES[ndim], seed=99)
    h = plain_conv3(swish(plain_group_norm(x, 4, block.norm1.weight, block.norm1.bias)), block.conv1.weight, padding)
    h = plain_conv3(swish(plain_group_norm(h, 4, block.norm2.weight, block.norm2.bias)), block.conv2.weight, padding)
    # The shortcut sees the raw input; a 1x1 kernel is a matrix over channels.
    raw = x if channels_out == 8 else torch.einsum("oi,bi...->bo...", block.shortcut.weight.flatten(1), x)
    torch.testing.assert_close(block(x), raw + h, rtol=1e-4, atol=1e-4)  # sums of up to 324 float32 products


def test_residual_block_has_no_biases() -> None:
    names = {name for name, _ in ResidualBlock(3, 8, 16, num_groups=4, padding="zeros").named_parameters()}
    assert {name for name in names if name.endswith("bias")} == {"norm1.bias", "norm2.bias"}
    assert "shortcut.weight" in names


def test_group_norm_statistics_run_over_time() -> None:
    x = torch.cat([torch.zeros(1, 4, 1, 2, 2), torch.ones(1, 4, 1, 2, 2)], dim=2)
    # Half zeros, half ones over the clip: mean 1/2, deviation 1/2; per frame it would be 0 everywhere.
    torch.testing.assert_close(group_norm(4, 4)(x), 2 * x - 1, rtol=0, atol=1e-5)  # eps 1e-6 against variance 1/4
    assert group_norm(4, 4).eps == 1e-6


@pytest.mark.parametrize("kernel", [1, 3])
def test_convolution_starts_lecun_normal_with_zero_bias(kernel: int) -> None:
    torch.manual_seed(0)
    layer = convolution(3, 64, 128, kernel)
    deviation = sqrt(1 / (64 * kernel**3))
    assert layer.weight.std().item() == pytest.approx(deviation, rel=0.03)  # at least 8192 draws
    # Cut at two deviations of the uncut normal.
    assert layer.weight.abs().max().item() <= 2 * deviation / 0.87962566 * 1.0001
    assert not layer.bias.any()


@pytest.mark.parametrize("name", ["vqgan", "discriminator"])
def test_on_a_gpu_every_3d_convolution_answers_channels_last(name: str) -> None:
    with torch.device("meta"):
        model = getattr(tiny_models, name)()
    found: dict[str, bool] = {}
    for layer, module in model.named_modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(lambda _, __, x, layer=layer: found.update({layer: is_channels_last(x)}))
    with fake_gpu():
        model.to_empty(device="cuda")(torch.empty(2, 3, *tiny_models.SHAPE, device="cuda"))
    assert len(found) > 5
    assert all(found.values()), found


def is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_compiled_convolution_is_the_same_convolution(
    kernel: int, padding: Padding, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, clip = convolution(3, 5, 7, kernel, padding=padding), torch.rand(2, 5, 3, 4, 6)
    expected = layer(clip)
    monkeypatch.setattr(torch.compiler, "is_dynamo_compiling", lambda: True)
    found = layer(clip)
    torch.testing.assert_close(found, expected)
    assert is_channels_last(found) or kernel == 1  # which torch multiplies otherwise
