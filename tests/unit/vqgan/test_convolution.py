"""Convolutions as the paper starts them, and as a GPU sees them."""

from math import sqrt

import pytest
import torch
from torch import Tensor, nn

from magvit_scale.config import Padding
from magvit_scale.vqgan.convolution import convolution
from tests import tiny_models
from tests.fake_gpu import fake_gpu


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
