"""Pooling and the convolutions that resample, against plain versions of their definitions."""

from collections.abc import Callable
from math import ceil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from magvit_scale.config import Padding
from magvit_scale.vqgan.convolution import convolution
from magvit_scale.vqgan.layout import LAST
from magvit_scale.vqgan.resampling import _pool_whole, pool
from magvit_scale.vqgan.windows import depth_to_space, space_to_depth
from tests.gradients import gradients, randn

SIDES = [(2, (2, 3)), (3, (2, 3, 4)), (3, (3, 4))]
PADDING_MODES = {"reflect": "reflect", "zeros": "constant"}
CONVOLVE = {2: F.conv2d, 3: F.conv3d}


def tf_same_average(x: np.ndarray, window: tuple[int, ...]) -> np.ndarray:
    """TensorFlow's SAME average pooling with stride = window: the last cell averages what is there."""
    sides = [ceil(n / k) for n, k in zip(x.shape, window, strict=True)]
    out = np.empty(sides)
    for place in np.ndindex(*sides):
        out[place] = x[tuple(slice(i * k, (i + 1) * k) for i, k in zip(place, window, strict=True))].mean()
    return out


@pytest.mark.parametrize("sides", [(5, 6), (1, 3), (4, 4)])
def test_pool_2d_is_tf_same(sides: tuple[int, int]) -> None:
    x = randn(1, 1, *sides).detach()
    np.testing.assert_allclose(pool(x)[0, 0].numpy(), tf_same_average(x[0, 0].numpy(), (2, 2)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sides", [(5, 6, 3), (1, 4, 7), (1, 1, 1), (4, 2, 2)])
@pytest.mark.parametrize(("pooled_sides", "window"), [(None, (2, 2, 2)), ((2, 3, 4), (2, 2, 2)), ((3, 4), (1, 2, 2))])
def test_pool_3d_is_tf_same(
    sides: tuple[int, int, int], pooled_sides: tuple[int, ...] | None, window: tuple[int, int, int]
) -> None:
    x = randn(1, 1, *sides).detach()
    found = pool(x, pooled_sides)[0, 0].numpy()
    np.testing.assert_allclose(found, tf_same_average(x[0, 0].numpy(), window), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "window"),
    [((2, 3, 4, 6, 8), (2, 2, 2)), ((2, 3, 4, 6, 8), (1, 2, 2)), ((2, 3, 1, 2, 2), (1, 2, 2)), ((2, 3, 6, 8), (2, 2))],
)
def test_pooling_by_views_is_pooling(shape: tuple[int, ...], window: tuple[int, ...]) -> None:
    x, sides = randn(*shape), tuple(dim for dim, own in enumerate(window, start=2) if own == 2)
    torch.testing.assert_close(gradients(lambda x: _pool_whole(x, window), x), gradients(lambda x: pool(x, sides), x))
    assert torch.autograd.gradgradcheck(lambda x: _pool_whole(x, window), x)
    last = _pool_whole(x.to(memory_format=LAST[len(shape)]), window)
    assert last.is_contiguous(memory_format=LAST[len(shape)])


def test_space_to_depth_gathers_windows() -> None:
    x = torch.arange(2 * 3 * 2 * 4).reshape(1, 2, 3, 2, 4)
    found = space_to_depth(x, (3, 4))
    # Rows before columns, and within a cell the channels as they were.
    expected = [x[0, channel, 2, row, 2 + column] for row in (0, 1) for column in (0, 1) for channel in (0, 1)]
    assert found.shape == (1, 8, 3, 1, 2)
    assert found[0, :, 2, 0, 1].tolist() == [int(each) for each in expected]
    assert torch.equal(depth_to_space(found, (3, 4)), x)


def layer_of(ndim: int, padding: Padding, *, bias: bool = True) -> nn.Module:
    layer = convolution(ndim, 5, 7, 3, padding=padding, bias=bias).double()
    if layer.bias is not None:
        layer.bias.data = randn(7, seed=1).detach()
    return layer


def step_by_step(kind: str, layer: nn.Module, x: Tensor, sides: tuple[int, ...], padding: str) -> Tensor:
    for dim in sides if kind == "repeated" else ():
        x = x.repeat_interleave(2, dim)
    around = F.pad(x, [1, 1] * (x.ndim - 2), mode=PADDING_MODES[padding])
    out = CONVOLVE[x.ndim - 2](around, layer.weight, layer.bias)
    for dim in sides if kind == "pooled" else ():
        out = out.unflatten(dim, (-1, 2)).mean(dim + 1)
    return out


def compare(kind: str, layer: nn.Module, x: Tensor, sides: tuple[int, ...], padding: Padding) -> Tensor:
    inputs = (x, *layer.parameters())
    found = gradients(lambda x, *_: layer(x, **{kind: sides}), *inputs)
    expected = gradients(lambda x, *_: step_by_step(kind, layer, x, sides, padding), *inputs)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)
    return found[0]


@pytest.mark.parametrize("kind", ["pooled", "repeated"])
@pytest.mark.parametrize(("ndim", "sides"), SIDES)
@pytest.mark.parametrize("padding", ["reflect", "zeros"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("smallest", [False, True])
@pytest.mark.parametrize("is_compiling", [False, True])
def test_a_resampling_convolution_is_both_one_after_the_other(
    kind: str, ndim: int, sides: tuple[int, ...], padding: Padding, bias: bool, smallest: bool, is_compiling: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.compiler, "is_dynamo_compiling", lambda: is_compiling)
    x = randn(2, 5, *([2] * ndim if smallest else (4, 6, 8)[-ndim:]))
    found = compare(kind, layer_of(ndim, padding, bias=bias), x, sides, padding)
    if kind == "repeated":  # otherwise the convolution's own business
        assert found.is_contiguous(memory_format=LAST[x.ndim] if is_compiling else torch.contiguous_format)


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
def test_a_lone_cell_may_be_repeated(padding: Padding) -> None:
    compare("repeated", layer_of(3, padding), randn(1, 5, 1, 1, 1), (2, 3, 4), padding)
    if padding == "zeros":  # a lone frame has none to reflect
        compare("repeated", layer_of(3, padding), randn(1, 5, 1, 3, 2), (3, 4), padding)


def test_cells_may_be_repeated_and_pooled() -> None:
    layer, x = layer_of(3, "reflect"), randn(2, 5, 4, 6, 8)
    expected = pool(layer(x, repeated=(2, 3, 4)), (2,))
    torch.testing.assert_close(layer(x, repeated=(2, 3, 4), pooled=(2,)), expected)


@pytest.mark.parametrize("kind", ["pooled", "repeated"])
@pytest.mark.parametrize(("ndim", "sides"), SIDES)
def test_it_multiplies_two_thirds_along_each_side(kind: str, ndim: int, sides: tuple[int, ...]) -> None:
    layer, x = layer_of(ndim, "zeros"), randn(1, 5, *[32] * ndim)

    def count(function: Callable[[], Tensor]) -> int:
        with FlopCounterMode(display=False) as counter:
            function()
        return counter.get_total_flops()

    found, plain = count(lambda: layer(x, **{kind: sides})), count(lambda: step_by_step(kind, layer, x, sides, "zeros"))
    # What lies outside and is cut off: one cell in 33 of each side.
    margin = (33 / 32) ** len(sides) if kind == "repeated" else 1
    assert found / plain == pytest.approx((2 / 3) ** len(sides) * margin)
