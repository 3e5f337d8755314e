"""Activation checkpointing: parts of a model compute their activations again in the backward pass, not keep them.

By torch's non-reentrant checkpoint, since it needs no input that requires a gradient, works with `autograd.grad` and
twice through a graph (r1), under autocast, and draws dropout again as it was. DeepSpeed's is reentrant; see
docs/benchmarks.md for both.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from magvit_scale.config import Granularity

Part = Literal["pointwise", "block", "stage"]

# Each has all parts of the one before: a stage whose blocks were kept while it is computed again would hold more at
# once than `blocks` ever does, and so would a block with its norms.
RECOMPUTED: dict[Granularity, tuple[Part, ...]] = {
    "none": (),
    "pointwise": ("pointwise",),
    "blocks": ("pointwise", "block"),
    "stages": ("pointwise", "block", "stage"),
}


class Recomputing(nn.Module):
    """A module that names the parts of its forward which may be computed again; `checkpoint_activations` decides."""

    recomputed: tuple[Part, ...] = ()

    def run_part(self, part: Part, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """`function(*inputs)`, of which only the inputs are kept for the backward pass where `part` is recomputed.

        It is computed again up to the last tensor that something keeps: a `pointwise` part ends with the convolution or
        product that keeps what the others make, and that one does not run again.
        """
        if part in self.recomputed and torch.is_grad_enabled():
            return checkpoint(function, *inputs, use_reentrant=False)
        return function(*inputs)


def checkpoint_activations(model: nn.Module, granularity: Granularity) -> None:
    """Sets what a model keeps for its backward pass; values, gradients and parameter names stay the same.

    Args:
        model: a VQGAN, Discriminator or CommitTransformer, or anything around one, such as an engine.
        granularity: `none` keeps everything; `pointwise` the input of every norm, up-sampler or GELU ahead of a
            convolution or product, and not the input of that, for no more FLOPs; `blocks` the inputs of every residual
            block, discriminator block or transformer layer, for about one more forward pass; `stages` the inputs of
            every resolution, or of every group of about sqrt(num_layers) transformer layers, for about two.
    """
    for module in model.modules():
        if isinstance(module, Recomputing):
            module.recomputed = RECOMPUTED[granularity]
