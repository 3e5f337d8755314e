"""Norm and residual block for `ndim` 2 and 3.

Axes: b batch, c channels, t frames, h rows, w columns; a 2D network sees 'b c h w', a 3D network 'b c t h w'.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from magvit_scale.checkpointing import Recomputing
from magvit_scale.config import Padding
from magvit_scale.vqgan.convolution import convolution
from magvit_scale.vqgan.group_norm import GroupNorm
from magvit_scale.vqgan.resampling import pool
from magvit_scale.vqgan.windows import Sides


def group_norm(num_groups: int, channels: int) -> GroupNorm:
    """GroupNorm with the official epsilon; in 3D its statistics run over time as well (spec 1.5)."""
    return GroupNorm(num_groups, channels, eps=1e-6)


class ResidualBlock(Recomputing):
    """Pre-activation block: norm, swish, conv, norm, swish, conv, plus the raw input (spec 1.4).

    Args:
        ndim: 2 or 3.
        channels_in: of the input.
        channels_out: of the output; where they differ a 1x1 convolution leads the input past the rest.
        num_groups: of both norms.
        padding: of both convolutions.
        pooled: sides that the block's result is pooled along, see `pool`; all even.
    """

    def __init__(
        self, ndim: int, channels_in: int, channels_out: int, *, num_groups: int, padding: Padding, pooled: Sides = ()
    ):
        super().__init__()
        self.pooled = pooled
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
        """'b channels_in ...' -> 'b channels_out ...', of the same t, h, w but for `pooled`."""
        return self.run_part("block", self._compute, x)

    def _compute(self, x: Tensor) -> Tensor:
        # The shortcut first: a recomputation ends where nothing more is kept, and so does without conv2.
        shortcut = self.shortcut(pool(x, self.pooled))
        h = self.run_part("pointwise", self._first, x)
        return shortcut + self.run_part("pointwise", self._second, h)

    def _first(self, x: Tensor) -> Tensor:
        return self.conv1(F.silu(self.norm1(x)))

    def _second(self, h: Tensor) -> Tensor:
        return self.conv2(F.silu(self.norm2(h)), pooled=self.pooled)
