"""One optimiser step of stage 2, and the draws that make it a function of (seed, step, sample)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from magvit_scale.commit.condition import Condition, build_condition, build_prompt
from magvit_scale.commit.losses import compute_commit_loss, mean_share
from magvit_scale.commit.masking import assign, mask_ratio, mask_share
from magvit_scale.commit.tasks import canvas_index
from magvit_scale.config import Task, TrainCommitConfig, TransformerConfig


def draw_tasks(config: TrainCommitConfig, step: int, positions: Sequence[int]) -> list[Task]:
    """The task of every sample: one for the whole batch, exactly uniform over steps (spec section 7), or one per
    sample.
    """
    if not config.one_task_per_step:
        return [config.tasks[_generator(config, 1, p).integers(len(config.tasks))] for p in positions]
    cycle, place = divmod(step, len(config.tasks))
    return [config.tasks[_generator(config, 2, cycle).permutation(len(config.tasks))[place]]] * len(positions)


def draw_masked(config: TrainCommitConfig, step: int, positions: Sequence[int], is_maskable: Tensor) -> Tensor:
    """Bool 'b n': which of the maskable tokens ('b n' bool) are masked. Their share is one for the batch with
    `one_task_per_step`, else one per sample (MAGVIT eq. 3; spec section 7). Drawn on the host, chosen on the tokens'
    device, which nothing waits for.
    """
    num_tokens = is_maskable.shape[1]
    generators = [_generator(config, 3, p) for p in positions]
    own = [generator.random() for generator in generators]
    shared = _generator(config, 4, step).random()
    progress = torch.tensor([shared] * len(own) if config.one_task_per_step else own)
    scores = torch.from_numpy(np.stack([generator.random(num_tokens) for generator in generators]))
    ratio = mask_ratio(progress, "cosine", num_tokens)
    device = is_maskable.device
    return mask_share(scores.to(device), ratio.to(device), is_maskable, config.mask_count)


def condition_of_batch(
    tokens: Tensor, tasks: Sequence[Task], canvases: Sequence[str], model: TransformerConfig
) -> Condition:
    """The condition of a batch of token shards.

    Args:
        tokens: 'b canvases t h w' int64.
        tasks: b names.
        canvases: names along the canvas axis.
        model: how the condition is told.

    Raises:
        Refusal: a canvas that the shards do not hold, see `canvas_index`.
    """
    _, _, t, h, w = tokens.shape
    index = torch.tensor([canvas_index(task, canvases, model) for task in tasks])
    flat = rearrange(tokens, "b canvases t h w -> b canvases (t h w)")
    return build_condition(tasks, flat[torch.arange(len(tasks)), index], (t, h, w), model)


def commit_step(
    engine: Any,
    micro_batches: Sequence[Mapping[str, Tensor]],
    step: int,
    config: TrainCommitConfig,
    canvases: Sequence[str],
    guard: Callable[[Mapping[str, Tensor]], None],
) -> dict[str, Tensor]:
    """Updates the transformer on this rank's part of a batch. Collective: every rank must call.

    Args:
        engine: a `training.engine.Engine` around CommitTransformer, or anything with its `module`, `backward`, `step`.
        micro_batches: `tokens` 'b canvases t h w', `label` 'b', and on the host `position` 'b', the samples' places in
            the data order, which key the draws; all int64, equally many samples in each.
        step: steps completed.
        config: of the run, the model's fields filled in.
        canvases: names along the canvas axis.
        guard: collective; raises where a value is not finite.

    Returns:
        This rank's scalars by TensorBoard name, means over the micro-batches: losses in nats per token; of the tokens
        that were masked, the share whose code is the likeliest, and their share of all that are not fixed.
    """
    found = []
    for batch in micro_batches:
        losses = _compute_losses(engine, batch, step, config, canvases)
        guard({"loss/total": losses["loss/total"]})
        engine.backward(losses["loss/total"])
        found.append({name: value.detach() for name, value in losses.items()})
    means = {name: torch.stack([losses[name] for losses in found]).mean(dim=0) for name in found[0]}
    return means | {"optim/gradient_norm_transformer": engine.step()}


def _compute_losses(
    engine: Any, batch: Mapping[str, Tensor], step: int, config: TrainCommitConfig, canvases: Sequence[str]
) -> dict[str, Tensor]:
    tokens, positions, model = batch["tokens"], batch["position"].tolist(), engine.module
    tasks = draw_tasks(config, step, positions)
    condition = condition_of_batch(tokens, tasks, canvases, config.model)
    is_masked = draw_masked(config, step, positions, ~condition.is_fixed)
    targets = rearrange(tokens[:, 0], "b t h w -> b (t h w)")
    assignment = assign(targets, condition, is_masked)
    prompt = build_prompt(tasks, batch["label"], config.model)
    sequence = model.build_sequence(*prompt, assignment.inputs, condition.before)
    logits = model.at_latents(engine(sequence))
    loss = compute_commit_loss(logits, targets, assignment, config.loss)
    is_asked = assignment.refine | assignment.mask
    return {
        "loss/total": loss.total,
        "loss/refine": loss.refine,
        "loss/mask": loss.mask,
        "loss/reconstruct": loss.reconstruct,
        "mask/accuracy": mean_share(logits.argmax(-1) == targets, is_asked),
        "mask/ratio": mean_share(is_asked, ~condition.is_fixed),
    }


def _generator(config: TrainCommitConfig, stream: int, position: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([config.run.seed, stream, position])))
