"""One network under DeepSpeed: precision, gradient accumulation, and updates that are made only where they are finite.

The engine keeps weights, gradients, moments and what ranks send each other in float32 at every ZeRO stage; `precision`
says in which numbers a model computes (torch.autocast). So precision and partition are independent, two engines of one
process have a loss scale each, and an average of the weights is always one of float32 masters.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from magvit_scale.config import Precision
from magvit_scale.training import engine_state
from magvit_scale.training.health import NotFiniteError
from magvit_scale.training.ranks import Ranks
from magvit_scale.training.slices import Read


class LossScale:
    """What losses are multiplied by, so that their gradients are no float16 zeros: halved where gradients overflow,
    doubled after `GROWTH_INTERVAL` updates without. 1 for other precisions.
    """

    FIRST, GROWTH_INTERVAL = 2.0**16, 2000

    def __init__(self, precision: Precision):
        self.is_dynamic = precision == "fp16"
        self.value = self.FIRST if self.is_dynamic else 1.0
        self.good_updates, self.skipped_updates = 0, 0

    def update(self, is_finite: bool) -> None:
        """After an update, or one that was not made."""
        if self.is_dynamic:
            self.good_updates = self.good_updates + 1 if is_finite else 0
            self.skipped_updates += not is_finite
            grows = is_finite and self.good_updates % self.GROWTH_INTERVAL == 0
            self.value = max(1.0, self.value * (2.0 if grows else 1.0 if is_finite else 0.5))


class Engine:
    """What a step works with: some calls of `backward`, one per micro-batch, then one of `step`.

    Args:
        name: of the network, for messages.
        deepspeed_engine: of `deepspeed.initialize`, all in float32, around a model that `compute_in` has been given.
        precision: of that model's forward pass.
        ranks: of `distributed.start`.
    """

    def __init__(self, name: str, deepspeed_engine: Any, precision: Precision, ranks: Ranks):
        self.name, self.deepspeed, self.ranks = name, deepspeed_engine, ranks
        self.scale = LossScale(precision)
        self._has_pending_micro_batch = False
        for parameter in self.module.parameters() if self.scale.is_dynamic else []:
            # Ahead of DeepSpeed's own hooks: it sees true gradients, so norms and clipping are right at any stage.
            parameter.register_hook(lambda gradient: gradient / self.scale.value)

    @property
    def module(self) -> Any:
        """The model itself: for every forward whose loss does not go to this engine's `backward`."""
        return self.deepspeed.module

    @property
    def zero_stage(self) -> int:
        """0 to 3."""
        return int(self.deepspeed.zero_optimization_stage())

    def __call__(self, *inputs: Any) -> Any:
        """A forward pass whose loss goes to `backward`."""
        return self.deepspeed(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of one micro-batch's mean loss. Collective."""
        if self._has_pending_micro_batch:
            self.deepspeed.step()  # within an accumulation this only counts
        self.deepspeed.backward(loss * self.scale.value)
        self._has_pending_micro_batch = True

    def step(self) -> Tensor:
        """Updates the weights. Collective.

        Returns:
            Global norm of the gradient before clipping, a scalar that is the same on every rank. In fp16 it may not be
            finite: then no update was made, and the loss scale is halved.

        Raises:
            NotFiniteError: a gradient is not finite on some rank; no update was made, on any.
        """
        norm = self._update_at_stage_0() if self.zero_stage == 0 else self._update()
        self._has_pending_micro_batch = False
        is_finite = bool(norm.isfinite())
        if not is_finite and not self.scale.is_dynamic:
            raise NotFiniteError(f"the gradient of the {self.name}")
        self.scale.update(is_finite)
        return norm.float()

    def _update(self) -> Tensor:
        self.deepspeed.step()  # looks itself, and leaves the weights alone where a gradient is not finite
        return torch.as_tensor(self.deepspeed.get_global_grad_norm(), device=self.ranks.device)

    def _update_at_stage_0(self) -> Tensor:
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if norm.isfinite():
            self.deepspeed.step()
        else:
            engine_state.discard_gradients(self.deepspeed)
        return norm

    def overwrite_rows(self, name: str, rows: Tensor, values: Tensor) -> None:
        """Gives rows of a weight matrix new values and no history, see `engine_state`. Collective."""
        with torch.no_grad():
            engine_state.overwrite_rows(self.deepspeed, self.ranks.rank, name, rows, values)

    def metrics(self) -> dict[str, Tensor]:
        """In fp16 the loss scale and the updates that were not made so far, scalars by TensorBoard name; else none."""
        if not self.scale.is_dynamic:
            return {}
        found = {"loss_scale": self.scale.value, "skipped_updates": self.scale.skipped_updates}
        return {f"optim/{name}_{self.name}": torch.tensor(float(value)) for name, value in found.items()}

    def set_learning_rate(self, learning_rate: float) -> None:
        """Sets the rate of the next update in every parameter group; the same on every rank."""
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate

    # ------------------------------------------------------------------------------------------------------------------
    # As a part of a checkpoint

    def owned_slices(self) -> Iterator[tuple[str, int, Tensor]]:
        """(`kind/parameter`, first element, flat float32 view) of what this rank writes."""
        return engine_state.owned_slices(self.deepspeed, self.ranks.rank, self.ranks.world_size)

    def masters(self) -> Iterator[tuple[str, int, Tensor]]:
        """Of these the weights, by parameter name."""
        prefix = f"{engine_state.MASTER}/"
        for key, first, view in self.owned_slices():
            if key.startswith(prefix):
                yield key.removeprefix(prefix), first, view

    def facts(self) -> dict[str, float]:
        """Numbers that every rank knows alike."""
        updates, scale = engine_state.num_updates(self.deepspeed), self.scale
        return {"updates": updates, "loss_scale": scale.value, "good_updates": scale.good_updates,
                "skipped_updates": scale.skipped_updates}  # fmt: skip

    def restore(self, facts: dict[str, float], read: Read) -> None:
        """Takes over another engine's `facts` and slices, of any ZeRO stage and world size. Collective."""
        engine_state.discard_gradients(self.deepspeed)
        engine_state.restore(self.deepspeed, self.ranks.rank, int(facts["updates"]), read)
        if self.scale.is_dynamic:
            self.scale.value, self.scale.good_updates = facts["loss_scale"], int(facts["good_updates"])
            self.scale.skipped_updates = int(facts["skipped_updates"])
        self._has_pending_micro_batch = False
