"""Cross-entropy of masked tokens on held-out clips, the same masks for every model and baseline."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from magvit_scale.commit.condition import build_prompt
from magvit_scale.commit.losses import token_cross_entropy
from magvit_scale.commit.masking import assign, mask_ratio, mask_share
from magvit_scale.commit.step import condition_of_batch
from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import Task


def draw_validation_masks(num_clips: int, num_tokens: int, seed: int) -> Tensor:
    """Bool 'b n': training's cosine schedule (spec section 8) at evenly spread draws: every share of masks is there."""
    progress = (torch.arange(num_clips) + 0.5) / num_clips
    rng = np.random.Generator(np.random.Philox(key=seed))
    scores = torch.from_numpy(rng.random((num_clips, num_tokens)))
    ratio = mask_ratio(progress, "cosine", num_tokens)
    return mask_share(scores, ratio, torch.ones_like(scores, dtype=torch.bool), "floor")


@torch.no_grad()
def masked_cross_entropy(
    model: CommitTransformer,
    tokens: Tensor,
    labels: Tensor,
    task: Task,
    is_masked: Tensor,
    canvases: Sequence[str],
    batch_size: int = 64,
) -> float:
    """Mean nats over the masked tokens of all clips that the model does not take as given, NaN where that is none;
    dropout off.

    Args:
        model: the transformer; its mode is put back.
        tokens: 'b canvases t h w' int64.
        labels: 'b' int64.
        task: whose condition, token and class the model sees.
        is_masked: 'b n' bool.
        canvases: names along the canvas axis.
        batch_size: clips per forward pass.
    """
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for part in _parts(tokens, labels, is_masked, batch_size):
        tasks, targets = [task] * len(part.labels), rearrange(part.tokens[:, 0], "b t h w -> b (t h w)")
        condition = condition_of_batch(part.tokens, tasks, canvases, model.config)
        assignment = assign(targets, condition, part.is_masked)
        prompt = build_prompt(tasks, part.labels, model.config)
        logits = model.latent_logits(model.build_sequence(*prompt, assignment.inputs, condition.before))
        predicted = assignment.refine | assignment.mask
        total += token_cross_entropy(logits, targets)[predicted].sum().item()
        count += int(predicted.sum())
    model.train(was_training)
    return total / count if count else nan


@dataclass(frozen=True)
class _Part:
    tokens: Tensor
    labels: Tensor
    is_masked: Tensor


def _parts(tokens: Tensor, labels: Tensor, is_masked: Tensor, batch_size: int) -> Iterator[_Part]:
    for part in zip(*(t.split(batch_size) for t in (tokens, labels, is_masked)), strict=True):
        yield _Part(*part)
