"""Convolution, norm, residual block and resampling for `ndim` 2 and 3: the only place that knows Conv2d from Conv3d.

Axes: b batch, c channels, t frames, h rows, w columns; a 2D network sees 'b c h w', a 3D network 'b c t h w'.
"""

from collections.abc import Mapping, Sequence
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magvit_scale.checkpointing import Recomputing
from magvit_scale.config import Padding
from magvit_scale.vqgan.group_norm import GroupNorm
from magvit_scale.vqgan.layout import laid_out
from magvit_scale.vqgan.reflection import reflect
from magvit_scale.vqgan.twice_differentiable import mean


class Convolution3d(nn.Conv3d):
    """`nn.Conv3d`; on a GPU, and compiled, with the channels of a cell side by side in memory: tensor cores multiply
    so, and inductor sees to it by itself in 2D alone.

    Not on a CPU that compiles nothing: there torch's GroupNorm takes the variance of such tensors as E[x^2] - E[x]^2,
    with 250 times the error.
    """

    def forward(self, x: Tensor) -> Tensor:
        """'b channels_in t h w' -> 'b channels_out t h w'."""
        if x.device.type == "cpu" and not torch.compiler.is_dynamo_compiling():
            return super().forward(x)
        padding = self.padding
        if self.padding_mode == "reflect" and self.kernel_size[0] > 1:
            x, padding = reflect(x), (0, 0, 0)
        return F.conv3d(laid_out(x), laid_out(self.weight), self.bias, padding=padding)


CONVOLUTION: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: Convolution3d}
AVERAGE_POOL = {2: F.avg_pool2d, 3: F.avg_pool3d}


def convolution(
    ndim: int, channels_in: int, channels_out: int, kernel: int, *, padding: Padding = "zeros", bias: bool = True,
    layers: Mapping[int, type[nn.Conv2d] | type[nn.Conv3d]] = CONVOLUTION,
) -> nn.Conv2d | nn.Conv3d:  # fmt: skip
    """A stride-1 convolution that keeps h, w (and t); odd cubic kernel; LeCun-normal init as in flax (spec 1.5)."""
    layer: nn.Conv2d | nn.Conv3d = layers[ndim](
        channels_in, channels_out, kernel, padding=kernel // 2, padding_mode=padding, bias=bias
    )
    init_lecun_normal(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def init_lecun_normal(weight: Tensor) -> None:
    """Truncated normal of variance 1 / fan_in; the constant undoes the variance lost by cutting at two deviations."""
    std = sqrt(1.0 / weight[0].numel()) / 0.87962566103423978
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def group_norm(num_groups: int, channels: int) -> GroupNorm:
    """GroupNorm with the official epsilon; in 3D its statistics run over time as well (spec 1.5)."""
    return GroupNorm(num_groups, channels, eps=1e-6)


def pool(x: Tensor, ndim: int, time: bool = True) -> Tensor:
    """Mean over windows of 2 in h and w, and in t where `time`; TF's SAME rule, so a lone last cell is its own mean
    (spec 1.5).
    """
    # A side of one cell is its own mean; avg_pool3d refuses a window that is larger than a side.
    window = [min(2, side) for side in x.shape[2:]]
    if ndim == 3 and not time:
        window[0] = 1
    if (x.device.type == "cuda" or torch.compiler.is_dynamo_compiling()) and _divides(window, x.shape[2:]):
        return _pool_whole(x, window)
    # Back from float32, which autocast takes for 3D on a CPU.
    return AVERAGE_POOL[ndim](x, window, ceil_mode=True, count_include_pad=False).to(x.dtype)


def _divides(window: Sequence[int], sides: Sequence[int]) -> bool:
    return all(side % own == 0 for side, own in zip(sides, window, strict=True))


def _pool_whole(x: Tensor, window: Sequence[int]) -> Tensor:
    """Torch's own 3D pooling on a GPU brings a clip into another layout and back; compiled, it leaves a clip with its
    channels apart.
    """
    cells = x.movedim(1, -1)
    for dim, own in reversed(list(enumerate(window, start=1))):
        cells = cells.unflatten(dim, (-1, own))
    return mean(cells, *range(2, cells.ndim - 1, 2)).movedim(-1, 1)


def blur(x: Tensor) -> Tensor:
    """Halves h and w of 'b c h w' with the kernel [1, 3, 3, 1] / 8 along each; TF's SAME rule of zeros (spec 4.2)."""
    taps = x.new_tensor([1.0, 3.0, 3.0, 1.0]) / 8
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, -1, -1)
    right, below = (1 + side % 2 for side in (x.shape[3], x.shape[2]))
    return F.conv2d(F.pad(x, (1, right, 1, below)), kernel, stride=2, groups=x.shape[1])


def upsample(x: Tensor, ndim: int, time: bool = True) -> Tensor:
    """Repeats every cell twice in h and w, and in t where `time` (spec 1.3)."""
    repeats = [2] * ndim if time or ndim == 2 else [1, 2, 2]
    if torch.compiler.is_dynamo_compiling():
        return _repeat(x, repeats)
    return F.interpolate(x, scale_factor=[float(each) for each in repeats], mode="nearest")


def _repeat(x: Tensor, repeats: Sequence[int]) -> Tensor:
    """Whose gradient is a sum; inductor makes that of `F.interpolate` from atomic additions, in any order."""
    for dim, repeat in enumerate(repeats, start=2):
        x = x.unsqueeze(dim + 1).expand(*x.shape[: dim + 1], repeat, *x.shape[dim + 1 :]).flatten(dim, dim + 1)
    return x


class ResidualBlock(Recomputing):
    """Pre-activation block: norm, swish, conv, norm, swish, conv, plus the raw input (spec 1.4)."""

    def __init__(self, ndim: int, channels_in: int, channels_out: int, *, num_groups: int, padding: Padding):
        super().__init__()
        self.norm1 = group_norm(num_groups, channels_in)
        self.conv1 = convolution(ndim, channels_in, channels_out, 3, padding=padding, bias=False)
        self.norm2 = group_norm(num_groups, channels_out)
        self.conv2 = convolution(ndim, channels_out, channels_out, 3, padding=padding, bias=False)
        self.shortcut = (
            nn.Identity()
            if channels_in == channels_out
            else convolution(ndim, channels_in, channels_out, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """'b channels_in ...' -> 'b channels_out ...', same t, h, w."""
        return self.run_part("block", self._compute, x)

    def _compute(self, x: Tensor) -> Tensor:
        # The shortcut first: a recomputation ends where nothing more is kept, and so does without conv2.
        shortcut = self.shortcut(x)
        h = self.run_part("pointwise", self._first, x)
        return shortcut + self.run_part("pointwise", self._second, h)

    def _first(self, x: Tensor) -> Tensor:
        return self.conv1(F.silu(self.norm1(x)))

    def _second(self, h: Tensor) -> Tensor:
        return self.conv2(F.silu(self.norm2(h)))
