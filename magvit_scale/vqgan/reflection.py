"""Padding of clips by reflection, whose gradient torch's own kernels take many passes for."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def reflect(x: Tensor) -> Tensor:
    """'b c t h w' -> the same with one more cell on each side of t, h and w, as `F.pad` in mode `reflect`."""
    return _Reflected.apply(x)


class _Reflected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return F.pad(x, (1, 1, 1, 1, 1, 1), mode="reflect")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return fold(gradient)


@torch.library.custom_op("magvit_scale::fold", mutates_args=())
def fold(gradient: Tensor) -> Tensor:
    """The gradient of `reflect`: the outermost cells of each side are added to those that they mirror.

    'b c t+2 h+2 w+2' -> 'b c t h w', any float dtype; an operator, so that inductor leaves it as the few passes it is.
    """
    folded = gradient.clone()
    for dim in (2, 3, 4):
        last = folded.shape[dim] - 1
        for outer, inner in ((0, 2), (last, last - 2)):
            folded.select(dim, inner).add_(folded.select(dim, outer))
    return folded[:, :, 1:-1, 1:-1, 1:-1]


@fold.register_fake
def _(gradient: Tensor) -> Tensor:
    return gradient.clone()[:, :, 1:-1, 1:-1, 1:-1]
