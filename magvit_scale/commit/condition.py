"""What the transformer is told of a clip besides its latents: task, class, and the condition in one of four ways
(MAGVIT section 3.2; spec sections 7, 10.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from magvit_scale.commit.tasks import MASK_TOKEN, SEPARATOR, SPECS, Shape, latent_mask, task_token
from magvit_scale.config import Refusal, Task, TrainCommitConfig, TransformerConfig


@dataclass(frozen=True)
class Condition:
    """The condition of a batch, by `model.conditioning`."""

    tokens: Tensor
    """'b n' int64; anything where `where` is False."""
    where: Tensor
    """'b n' bool: positions that show the condition's token and not MASK."""
    is_fixed: Tensor
    """'b n' bool: positions that are never masked, predicted or decoded."""
    before: Tensor
    """'b m' int64: condition tokens and SEPARATOR ahead of the latents; m = 0 but for `prefix`."""

    @property
    def start(self) -> Tensor:
        """'b n' int64: what a position shows before anything is known of it (MAGVIT algorithm 1)."""
        return torch.where(self.where, self.tokens, MASK_TOKEN)


def build_prompt(tasks: Sequence[Task], labels: Tensor, model: TransformerConfig) -> tuple[Tensor, Tensor]:
    """Task tokens 'b', and `labels` ('b') with -1 where the task hides the class."""
    shows_class = torch.tensor([SPECS[task].is_class_conditional for task in tasks], device=labels.device)
    task_tokens = torch.tensor([task_token(task, model) for task in tasks], device=labels.device)
    return task_tokens, torch.where(shows_class, labels, -1)


def build_condition(tasks: Sequence[Task], tokens: Tensor, shape: Shape, model: TransformerConfig) -> Condition:
    """The condition of a batch with a task per sample.

    Args:
        tasks: b names.
        tokens: 'b n' int64 of every sample's condition: its canvas, or with `latent` conditioning the clip itself.
        shape: (t, h, w) of the latents, n = t h w.
        model: how the condition is told.

    Raises:
        Refusal: tasks of different numbers of condition tokens, ahead of the latents of one batch.
    """
    given, fixed = (
        rearrange(torch.stack([mask(task, shape, model) for task in tasks]), "b t h w -> b (t h w)").to(tokens.device)
        for mask in (latent_mask, fixed_mask)
    )
    if model.conditioning == "prefix":
        return Condition(tokens, torch.zeros_like(given), fixed, before=_put_before(tokens, given))
    return Condition(tokens, given, fixed, before=tokens[:, :0])


def fixed_mask(task: Task, shape: Shape, model: TransformerConfig) -> Tensor:
    """Bool 't h w': the latents that are never masked, predicted or decoded, for `canvas` and `latent` conditioning
    those of the condition.
    """
    is_fixed = model.conditioning in ("canvas", "latent")
    return latent_mask(task, shape, model) if is_fixed else torch.zeros(shape, dtype=torch.bool)


def _put_before(tokens: Tensor, given: Tensor) -> Tensor:
    sizes = given.sum(1).unique().tolist()
    if len(sizes) > 1:
        raise Refusal(
            f"model.conditioning=prefix: a batch with tasks of {sizes} condition tokens; set one_task_per_step=true"
        )
    shown = tokens[given].reshape(len(tokens), sizes[0])
    return torch.cat([shown, torch.full_like(shown[:, :1], SEPARATOR)], dim=1)


def room_for_conditions(config: TrainCommitConfig, shape: Shape) -> int:
    """`model.num_condition_tokens` of a transformer for all tasks: with `prefix` conditioning the most that one gives.

    Args:
        config: of the run.
        shape: (t, h, w) of the latents.

    Raises:
        Refusal: the config leaves less room, or a batch would mix tasks of different numbers.
    """
    model = config.model
    if model.conditioning != "prefix":
        return model.num_condition_tokens
    counts = sorted({int(latent_mask(task, shape, model).sum()) for task in config.tasks})
    if len(counts) > 1 and not config.one_task_per_step:
        raise Refusal(
            f"model.conditioning=prefix with one_task_per_step=false: the tasks have {counts} condition tokens, a "
            "batch needs one number; set one_task_per_step=true"
        )
    if 0 < model.num_condition_tokens < counts[-1]:
        raise Refusal(f"model.num_condition_tokens={model.num_condition_tokens}, a task has {counts[-1]}; leave it out")
    return model.num_condition_tokens or counts[-1]
