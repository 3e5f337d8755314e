"""Exponential moving average of a model's parameters (spec section 4.4)."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from magvit_scale.training.engine import Engine
from magvit_scale.training.slices import Read


class ExponentialMovingAverage:
    """Follows an engine's float32 master weights: average = decay * average + (1 - decay) * weight, no bias correction.

    An average of numbers is one of slices as well, so every rank follows only what it writes into a checkpoint: at any
    ZeRO stage the ranks together hold one copy, and `update` needs no communication.

    Args:
        engine: whose weights are followed.
        decay: share that stays, per optimiser step.
        start: whole tensors by parameter name; None starts from the engine's weights.
    """

    def __init__(self, engine: Engine, decay: float, start: Mapping[str, Tensor] | None = None):
        self.decay = decay
        self._names, self._weights, self._averages = [], [], []
        for name, first, weight in engine.masters():
            self._names.append((name, first))
            self._weights.append(weight)
            self._averages.append(weight.clone() if start is None else _part(start[name], first, weight))

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the weights, once per optimiser step. Every rank must call; none waits."""
        torch._foreach_lerp_(self._averages, self._weights, 1 - self.decay)

    def owned_slices(self) -> Iterator[tuple[str, int, Tensor]]:
        """(parameter, first element, flat float32 view) of what this rank writes."""
        yield from ((name, first, average) for (name, first), average in zip(self._names, self._averages, strict=True))

    def facts(self) -> dict[str, float]:
        """None."""
        return {}

    def restore(self, facts: dict[str, float], read: Read) -> None:
        """Takes over the slices of another one, of any ZeRO stage and world size. Every rank must call; none waits."""
        for name, first, average in self.owned_slices():
            average.copy_(read(name, first, average.numel()))


def _part(whole: Tensor, first: int, like: Tensor) -> Tensor:
    part = whole.flatten()[first : first + like.numel()]
    return part.to(like.device, torch.float32, copy=True)
