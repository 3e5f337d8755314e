"""Padding of clips by reflection, whose gradient torch's own kernels take many passes for."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def reflect(x: Tensor) -> Tensor:
    """'b c t h w' -> the same with one more cell on each side of t, h and w, as `F.pad` in mode `reflect`; it can be
    differentiated once.
    """
    return _Reflected.apply(x)


class _Reflected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return F.pad(x, (1, 1, 1, 1, 1, 1), mode="reflect")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        folded = gradient.clone()  # not made in compiled code where, as behind a convolution, nobody reads it again
        fold(folded)
        return folded[:, :, 1:-1, 1:-1, 1:-1]


@torch.library.custom_op("magvit_scale::fold", mutates_args={"gradient"})
def fold(gradient: Tensor) -> None:
    """Makes a gradient behind `reflect` the one before it, in place: the outermost cells of each side of t, h and w are
    added to those that they mirror, and mean nothing from then on.

    'b c t+2 h+2 w+2', any float dtype; an operator, so that inductor leaves it as the few passes it is.
    """
    for dim in (2, 3, 4):
        last = gradient.shape[dim] - 1
        for outer, inner in ((0, 2), (last, last - 2)):
            gradient.select(dim, inner).add_(gradient.select(dim, outer))
