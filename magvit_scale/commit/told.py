"""The transformer with everything but the latents told to it: what `decode` asks."""

import torch
from torch import Tensor

from magvit_scale.commit.condition import Condition, build_prompt
from magvit_scale.commit.decoding import Logits, guided
from magvit_scale.commit.tasks import GENERATION
from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import Task


def told_logits(
    model: CommitTransformer, task: Task, labels: Tensor, condition: Condition, guidance_scale: float
) -> Logits:
    """Closes task, classes ('b' int64, -1: none) and condition over a transformer, with guidance away from an answer
    that knows none of them (spec section 9).
    """
    prompt = build_prompt([task] * len(labels), labels, model.config)
    no_task, no_class = torch.full_like(labels, GENERATION), torch.full_like(labels, -1)

    def given(latents: Tensor, unknown: Tensor) -> Tensor:
        return model.latent_logits(model.build_sequence(*prompt, latents, condition.before))

    def free(latents: Tensor, unknown: Tensor) -> Tensor:
        return model.latent_logits(model.build_sequence(no_task, no_class, latents, condition.before))

    return guided(given, free, condition.where, guidance_scale)
