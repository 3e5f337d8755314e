"""Layers whose input gradient can be differentiated again without waste, as r1 does.

Convolutions at the price of ordinary ones: torch's own formula for the weight's part is a convolution with a kernel as
large as the clip, so that on an H100 r1 of one layer took six times as long at 64 px, and the more the larger the clip
(docs/benchmarks.md). A leaky ReLU and a mean that write no more than their results.
"""

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import grad

from magvit_scale.vqgan.layout import laid_out

FORWARD = {2: F.conv2d, 3: F.conv3d}
FOR_INPUT = {2: F.conv_transpose2d, 3: F.conv_transpose3d}
FOR_WEIGHT = {2: grad.conv2d_weight, 3: grad.conv3d_weight}
_has_weights_part = True


class TwiceDifferentiable2d(nn.Conv2d):
    """`nn.Conv2d` of stride 1 with zeros around, by `convolve`."""

    def forward(self, x: Tensor) -> Tensor:
        """'b i h w' -> 'b o h w'."""
        return convolve(x, self.weight, self.bias, self.kernel_size[0] // 2)


class TwiceDifferentiable3d(nn.Conv3d):
    """The same in 3D."""

    def forward(self, x: Tensor) -> Tensor:
        """'b i t h w' -> 'b o t h w'."""
        return convolve(x, self.weight, self.bias, self.kernel_size[0] // 2)


TWICE_DIFFERENTIABLE: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {
    2: TwiceDifferentiable2d,
    3: TwiceDifferentiable3d,
}


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """A convolution of stride 1; under autocast in its dtype.

    Args:
        x: 'b i [t] h w'.
        weight: 'o i [k] k k'.
        bias: 'o'.
        padding: cells of zeros on each side.

    Returns:
        'b o [t] h w'.
    """
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if device == "cuda":
        x, weight = laid_out(x), laid_out(weight)
    return _Convolution.apply(x, weight, bias, padding)


def leaky_relu(x: Tensor, slope: float) -> Tensor:
    """`F.leaky_relu` of a tensor of any shape, which it overwrites and returns; `slope` is at least 0. The gradient of
    its gradient with respect to `x` is 0: torch writes these zeros and adds them.
    """
    return _LeakyRelu.apply(x, slope)


def mean(x: Tensor, *dims: int) -> Tensor:
    """`x.mean(dims)`, whose gradient is divided before it is repeated, so that it is written once."""
    return _Mean.apply(x, dims).squeeze(dims)


def gradient_of_input(output: Tensor, x: Tensor, *, create_graph: bool = False) -> Tensor:
    """The gradient of `output` with respect to `x`, of its shape, without those of weights on the way: torch does not
    tell a function of ours that nobody asked for them.

    Args:
        output: a scalar made of `x` by a network of `convolve`s.
        x: requires_grad.
        create_graph: to differentiate the gradient again.
    """
    global _has_weights_part
    _has_weights_part = False
    try:
        return torch.autograd.grad(output, x, create_graph=create_graph)[0]
    finally:
        _has_weights_part = True


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return FORWARD[x.ndim - 2](x, weight, bias, padding=padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        ndim, (for_x, for_weight, for_bias, _) = x.ndim - 2, ctx.needs_input_grad
        return (
            FOR_INPUT[ndim](gradient, weight, padding=ctx.padding) if for_x else None,
            FOR_WEIGHT[ndim](x, weight.shape, gradient, padding=ctx.padding)
            if for_weight and _has_weights_part
            else None,
            gradient.sum([0, *range(2, x.ndim)]) if for_bias and _has_weights_part else None,
            None,
        )


class _LeakyRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        ctx.mark_dirty(x)
        ctx.slope = slope
        F.leaky_relu_(x, slope)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (out,) = ctx.saved_tensors
        # Detached: of the gradient's gradient only the part with respect to `gradient` is asked for.
        return torch.ops.aten.leaky_relu_backward(gradient, out.detach(), ctx.slope, True), None


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: tuple[int, ...]) -> Tensor:
        ctx.shape, ctx.count = x.shape, prod([x.shape[dim] for dim in dims])
        return x.mean(dims, keepdim=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return (gradient / ctx.count).expand(ctx.shape), None
