"""One optimiser step of stage 2, and the draws that make it a function of (seed, step, sample)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from magvit_scale.commit.losses import compute_commit_loss
from magvit_scale.commit.masking import Assignment, assign, choose_masked, count_masked, mask_ratio
from magvit_scale.commit.tasks import CANVAS_OF_TASK, CANVASES, SPECS, condition_mask, task_token
from magvit_scale.config import Task, TrainCommitConfig


def draw_tasks(config: TrainCommitConfig, step: int, positions: Sequence[int]) -> list[Task]:
    """The task of every sample: one for the whole batch, exactly uniform over steps (the paper), or one per sample."""
    if not config.one_task_per_step:
        return [config.tasks[_generator(config, 1, p).integers(len(config.tasks))] for p in positions]
    cycle, place = divmod(step, len(config.tasks))
    return [config.tasks[_generator(config, 2, cycle).permutation(len(config.tasks))[place]]] * len(positions)


def draw_masked(config: TrainCommitConfig, step: int, positions: Sequence[int], num_tokens: int) -> Tensor:
    """Bool 'b n': which tokens are masked. The ratio is one for the batch with `one_task_per_step`, else one per
    sample.
    """
    generators = [_generator(config, 3, p) for p in positions]
    own = [generator.random() for generator in generators]
    shared = _generator(config, 4, step).random()
    progress = torch.tensor([shared] * len(own) if config.one_task_per_step else own)
    scores = torch.from_numpy(np.stack([generator.random(num_tokens) for generator in generators]))
    count = count_masked(mask_ratio(progress, "cosine", num_tokens), num_tokens, config.mask_count)
    return choose_masked(scores, count)


def build_inputs(
    tokens: Tensor, labels: Tensor, tasks: Sequence[Task], is_masked: Tensor, inpainting_token: str
) -> tuple[Assignment, Tensor, Tensor]:
    """Assembles a batch with a task per sample.

    Args:
        tokens: 'b canvases t h w' int64 of a token shard: the clip, then CANVASES.
        labels: 'b' class ids.
        tasks: b names.
        is_masked: 'b n' bool, n = t h w.
        inpainting_token: see TransformerConfig.

    Returns:
        The assignment ('b n'), task tokens 'b', and labels 'b' with -1 where the task hides the class.
    """
    _, _, t, h, w = tokens.shape
    canvas = torch.tensor([1 + CANVASES.index(CANVAS_OF_TASK[t]) if t in CANVAS_OF_TASK else 0 for t in tasks])
    condition = torch.stack([condition_mask(task, (t, h, w)) for task in tasks]).to(tokens.device)
    flat = rearrange(tokens, "b canvases t h w -> b canvases (t h w)")
    assignment = assign(
        flat[:, 0],
        flat[torch.arange(len(tasks)), canvas],
        rearrange(condition, "b t h w -> b (t h w)"),
        is_masked.to(tokens.device),
    )
    task_tokens = torch.tensor([task_token(task, inpainting_token) for task in tasks], device=tokens.device)
    shows_class = torch.tensor([SPECS[task].is_class_conditional for task in tasks], device=tokens.device)
    return assignment, task_tokens, torch.where(shows_class, labels, -1)


def commit_step(
    engine: Any,
    batch: Mapping[str, Tensor],
    step: int,
    config: TrainCommitConfig,
    guard: Callable[[Mapping[str, Tensor]], None],
) -> dict[str, Tensor]:
    """Updates the transformer on this rank's part of a batch. Collective: every rank must call.

    Args:
        engine: a DeepSpeed engine around CommitTransformer, or anything with `module`, `backward` and `step`.
        batch: `tokens` 'b canvases t h w', `label` 'b', and `position` 'b', the samples' places in the data order,
        which
            key the draws; all int64.
        step: steps completed.
        config: of the run.
        guard: collective; raises where a value is not finite.

    Returns:
        This rank's scalars by TensorBoard name, nats per token.
    """
    tokens, positions, model = batch["tokens"], batch["position"].tolist(), engine.module
    tasks = draw_tasks(config, step, positions)
    is_masked = draw_masked(config, step, positions, tokens[0, 0].numel())
    assignment, task_tokens, shown_labels = build_inputs(
        tokens, batch["label"], tasks, is_masked, config.model.inpainting_token
    )
    logits = engine(model.build_sequence(task_tokens, shown_labels, assignment.inputs))
    latent_logits = logits[:, model.num_prefix_tokens :, : model.codebook_size].float()
    targets = rearrange(tokens[:, 0], "b t h w -> b (t h w)")
    loss = compute_commit_loss(latent_logits, targets, assignment, config.loss)
    guard({"loss/total": loss.total})
    engine.backward(loss.total)
    engine.step()
    return {
        "loss/total": loss.total.detach(),
        "loss/refine": loss.refine,
        "loss/mask": loss.mask,
        "loss/reconstruct": loss.reconstruct,
    }


def _generator(config: TrainCommitConfig, stream: int, position: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([config.run.seed, stream, position])))
