"""The adaptive weight of VQGAN's adversarial loss (Esser et al. 2021, eq. 7); MAGVIT has none (spec section 4.4)."""

import copy
from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn

from magvit_scale.vqgan.autoencoder import VQGAN

EPSILON, LARGEST = 1e-4, 1e4


class LastLayer:
    """Weighs two gradients of a reconstruction against each other by what they do to the decoder's last weights.

    A convolution's gradient with respect to its weights depends on its input and not on them, so a copy of the layer
    gives it, and no graph of the generator is gone through.

    Args:
        generator: whose last layer is watched; before its parameters are partitioned.
        mean_over_ranks: collective.
    """

    def __init__(self, generator: VQGAN, mean_over_ranks: Callable[[Tensor], Tensor]):
        layer = generator.decoder.conv_out
        self._copy, self._mean_over_ranks = copy.deepcopy(layer), mean_over_ranks
        self._is_per_frame = generator.config.ndim == 2
        self._input = torch.empty(0)
        layer.register_forward_pre_hook(self._keep)

    def _keep(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._input = inputs[0].detach().float()

    def balance(self, reconstruction: Tensor, adversarial: Tensor) -> Tensor:
        """Norm of the first gradient over that of the second, of the whole batch's. Collective.

        Args:
            reconstruction: gradient of the other losses with respect to the last forward pass's output, 'b 3 t h w'.
            adversarial: that of the adversarial loss.
        """
        self._copy.to(self._input.device)
        output = self._copy(self._input)
        norms = []
        for gradient in (reconstruction, adversarial):
            if self._is_per_frame:
                gradient = rearrange(gradient, "b c t h w -> (b t) c h w")
            (of_weight,) = torch.autograd.grad(output, self._copy.weight, gradient, retain_graph=True)
            norms.append(self._mean_over_ranks(of_weight).norm())
        return (norms[0] / (norms[1] + EPSILON)).clamp(0, LARGEST)
