"""Exponential moving average of a model's parameters (spec section 4.4)."""

import copy

import torch
from torch import Tensor, nn


class ExponentialMovingAverage(nn.Module):
    """A float32 copy of a model that follows it: average = decay * average + (1 - decay) * model, no bias correction.

    Every rank holds the whole average; ZeRO stages 0 to 2 keep whole parameters on every rank, so the copies stay
    equal.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__()
        self.decay = decay
        self.average = copy.deepcopy(model).float().eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards `model`, once per optimiser step."""
        averages: list[Tensor] = list(self.average.parameters())
        values = [parameter.float() for parameter in model.parameters()]
        torch._foreach_lerp_(averages, values, 1 - self.decay)
