"""Padding of clips by reflection, whose gradient torch's own kernels take many passes for."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from magvit_scale.vqgan.windows import Sides, depth_to_space, space_to_depth, window_of


def reflect(x: Tensor, sides: Sides = ()) -> Tensor:
    """'b c t h w' -> the same with one more cell on each side of t, h and w, as `F.pad` in mode `reflect`, and then by
    `space_to_depth` along `sides`; it can be differentiated once.
    """
    return _Reflected.apply(x, sides)


class _Reflected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sides: Sides) -> Tensor:
        ctx.sides = sides
        return space_to_depth(F.pad(x, (1, 1, 1, 1, 1, 1), mode="reflect"), sides)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        folded = gradient.clone()  # not made in compiled code where, as behind a convolution, nobody reads it again
        fold(folded, window_of(folded.ndim, ctx.sides))
        return depth_to_space(folded, ctx.sides)[:, :, 1:-1, 1:-1, 1:-1], None


@torch.library.custom_op("magvit_scale::fold", mutates_args={"gradient"})
def fold(gradient: Tensor, window: Sequence[int]) -> None:
    """Makes a gradient behind `reflect` the one before it, in place: the outermost cells of each side of t, h and w are
    added to those that they mirror, and mean nothing from then on.

    'b (windows c) t h w', any float dtype; `window` has the cells of a window along t, h and w. An operator, so that
    inductor leaves it as the few passes it is, and of windows, so that it works on what a convolution's gradient is.
    """
    windows = gradient.unflatten(1, (*window, -1))
    for side, cells in enumerate(window):
        last, distance = gradient.shape[2 + side] - 1, 2 // cells
        for cell, outer, inner in ((0, 0, distance), (cells - 1, last, last - distance)):
            along = windows.select(1 + side, cell)
            along.select(4 + side, inner).add_(along.select(4 + side, outer))
