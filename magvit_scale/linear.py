"""Linear layers at a processor's full rate.

Torch has two libraries for products on a CPU, MKL behind `F.linear` and oneDNN behind convolutions. On an AMD processor
MKL leaves the widest instructions unused and takes twice the time (docs/benchmarks.md); on others they are alike.
"""

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula


class Linear(nn.Linear):
    """`nn.Linear` through `linear`."""

    def forward(self, x: Tensor, then_gelu: bool = False) -> Tensor:
        """'... i' -> '... o'; `then_gelu`: through `linear_gelu`."""
        return (linear_gelu if then_gelu else linear)(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`, by oneDNN where it is float32 on a CPU; there it can be differentiated once, and at the end of a part
    that is recomputed it runs again, as torch learns what such a function keeps only when it is done.

    Args:
        x: '... i'.
        weight: 'o i'.
        bias: 'o'.

    Returns:
        '... o'.
    """
    return _OneDNN.apply(x, weight, bias) if _suits_onednn(x, weight) else F.linear(x, weight, bias)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU by tanh of `linear`, with its shapes. Where nothing is differentiated it is part of the product, whose plain
    results are then not written: in float32 on a CPU by oneDNN, in 16 bits on a GPU by cuBLAS.
    """
    if torch.is_grad_enabled():
        return F.gelu(linear(x, weight, bias), approximate="tanh")
    if _suits_onednn(x, weight):
        return _product(x, weight, bias, "gelu", "tanh")
    if _suits_cublas(x, weight):
        rows = torch._addmm_activation(bias, x.reshape(-1, x.shape[-1]), weight.t(), use_gelu=True)
        return rows.reshape(*x.shape[:-1], len(weight))
    return F.gelu(linear(x, weight, bias), approximate="tanh")


def _suits_cublas(x: Tensor, weight: Tensor) -> bool:
    # On other devices the operator's GELU is by erf; and autocast does not know it, so nothing may be left to convert.
    return x.device.type == "cuda" and x.dtype == weight.dtype and x.dtype.itemsize == 2


def _suits_onednn(x: Tensor, weight: Tensor) -> bool:
    # First: a compiler, which has its own products, cannot look at the rest; and what is exported shall run anywhere.
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and torch.backends.mkldnn.is_available()
        and torch._C._get_mkldnn_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none", algorithm: str = ""
) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], algorithm)


class _OneDNN(torch.autograd.Function):
    """Torch's operator has no gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            _product(gradient, weight.t()) if for_x else None,
            _product(rows.t(), x.reshape(-1, x.shape[-1]).t()) if for_weight else None,
            rows.sum(0) if for_bias else None,
        )


def _count(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * prod(x) * weight[0]


@register_flop_formula(torch.ops.aten._addmm_activation)
def _count_on_gpu(bias: torch.Size, x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * prod(x) * weight[1]


if torch.backends.mkldnn.is_available():
    register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_count)
