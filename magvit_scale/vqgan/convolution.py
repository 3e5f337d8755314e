"""Convolutions of stride 1 for `ndim` 2 and 3, as the paper starts them and as a GPU wants them."""

from collections.abc import Mapping
from math import sqrt

import torch.nn.functional as F
from torch import Tensor, nn

from magvit_scale.config import Padding
from magvit_scale.vqgan.layout import gains_by_layout, laid_out
from magvit_scale.vqgan.reflection import reflect
from magvit_scale.vqgan.resampling import Layer, convolve_and_pool, pool, repeat_and_convolve
from magvit_scale.vqgan.windows import Sides


class Convolution2d(nn.Conv2d):
    """`nn.Conv2d`, that can be told what is done to its input or result."""

    def forward(self, x: Tensor, *, repeated: Sides = (), pooled: Sides = ()) -> Tensor:
        """'b channels_in h w' -> 'b channels_out h w'; see `_resampled`."""
        return _resampled(self, x, repeated, pooled) if repeated or pooled else super().forward(x)


class Convolution3d(nn.Conv3d):
    """The same in 3D; on a GPU, and compiled, with the channels of a cell side by side in memory: inductor sees to it
    by itself in 2D alone.
    """

    def forward(self, x: Tensor, *, repeated: Sides = (), pooled: Sides = ()) -> Tensor:
        """'b channels_in t h w' -> 'b channels_out t h w'; see `_resampled`."""
        if repeated or pooled:
            return _resampled(self, x, repeated, pooled)
        if not gains_by_layout(x):
            return super().forward(x)
        padding = self.padding
        if self.padding_mode == "reflect" and self.kernel_size[0] > 1:
            x, padding = reflect(x), (0, 0, 0)
        return F.conv3d(laid_out(x), laid_out(self.weight), self.bias, padding=padding)


def _resampled(layer: Layer, x: Tensor, repeated: Sides, pooled: Sides) -> Tensor:
    """Every cell twice along `repeated` before the convolution; the mean of every two along `pooled` behind it."""
    return pool(repeat_and_convolve(layer, x, repeated), pooled) if repeated else convolve_and_pool(layer, x, pooled)


CONVOLUTION: dict[int, type[Layer]] = {2: Convolution2d, 3: Convolution3d}


def convolution(
    ndim: int, channels_in: int, channels_out: int, kernel: int, *, padding: Padding = "zeros", bias: bool = True,
    layers: Mapping[int, type[Layer]] = CONVOLUTION,
) -> Layer:  # fmt: skip
    """A stride-1 convolution that keeps h, w (and t); odd cubic kernel; LeCun-normal init as in flax (spec 1.5)."""
    layer = layers[ndim](channels_in, channels_out, kernel, padding=kernel // 2, padding_mode=padding, bias=bias)
    init_lecun_normal(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def init_lecun_normal(weight: Tensor) -> None:
    """Truncated normal of variance 1 / fan_in; the constant undoes the variance lost by cutting at two deviations."""
    std = sqrt(1.0 / weight[0].numel()) / 0.87962566103423978
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
