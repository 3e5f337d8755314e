"""Cross-entropy of masked tokens on held-out clips, the same masks for every model and baseline."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from magvit_scale.commit.losses import token_cross_entropy
from magvit_scale.commit.masking import choose_masked, count_masked, mask_ratio
from magvit_scale.commit.step import build_inputs
from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import Task


def draw_validation_masks(num_clips: int, num_tokens: int, seed: int) -> Tensor:
    """Bool 'b n': training's cosine schedule at evenly spread draws, so that every share of masked tokens is there."""
    progress = (torch.arange(num_clips) + 0.5) / num_clips
    rng = np.random.Generator(np.random.Philox(key=seed))
    scores = torch.from_numpy(rng.random((num_clips, num_tokens)))
    return choose_masked(scores, count_masked(mask_ratio(progress, "cosine", num_tokens), num_tokens, "floor"))


@torch.no_grad()
def masked_cross_entropy(
    model: CommitTransformer, tokens: Tensor, labels: Tensor, task: Task, is_masked: Tensor, batch_size: int = 64
) -> float:
    """Mean nats over the masked tokens of all clips; dropout off.

    Args:
        model: the transformer; its mode is put back.
        tokens: 'b canvases t h w' int64.
        labels: 'b' int64.
        task: whose condition, token and class the model sees.
        is_masked: 'b n' bool.
        batch_size: clips per forward pass.
    """
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for part in _parts(tokens, labels, is_masked, batch_size):
        tasks = [task] * len(part.labels)
        inputs = build_inputs(part.tokens, part.labels, tasks, part.is_masked, model.config.inpainting_token)
        assignment, task_tokens, shown = inputs
        logits = model.latent_logits(model.build_sequence(task_tokens, shown, assignment.inputs))
        losses = token_cross_entropy(logits, rearrange(part.tokens[:, 0], "b t h w -> b (t h w)"))
        total += losses[part.is_masked].sum().item()
        count += int(part.is_masked.sum())
    model.train(was_training)
    return total / count


@dataclass(frozen=True)
class _Part:
    tokens: Tensor
    labels: Tensor
    is_masked: Tensor


def _parts(tokens: Tensor, labels: Tensor, is_masked: Tensor, batch_size: int) -> Iterator[_Part]:
    for part in zip(*(t.split(batch_size) for t in (tokens, labels, is_masked)), strict=True):
        yield _Part(*part)
