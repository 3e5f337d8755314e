"""Random inputs, and what a function and its gradients make of them."""

from collections.abc import Callable

import torch
from torch import Tensor


def randn(*shape: int, seed: int = 0) -> Tensor:
    """float64, requires_grad."""
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=draws).requires_grad_()


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """Its result, and the gradients of `inputs` behind a random one of the result."""
    out = function(*inputs)
    return (out, *torch.autograd.grad(out, inputs, randn(*out.shape, seed=1).to(out.dtype)))
