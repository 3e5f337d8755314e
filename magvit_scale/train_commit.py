"""Token shards -> a transformer: `magvit train-commit configs/commit/ucf101_cg_base.yaml [key=value ...]`.

Runs alone, under torchrun, the deepspeed launcher or srun. Killed and started again it continues at its newest
checkpoint. Never reads a pixel; the tokenizer is used only to show samples in TensorBoard. Writes `run.folder`/export.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from magvit_scale.commit.condition import room_for_conditions
from magvit_scale.commit.rules import canvas_rules
from magvit_scale.commit.step import commit_step
from magvit_scale.commit.tasks import canvas_index, canvases_of
from magvit_scale.commit.transformer import CommitTransformer, decayed_parameters
from magvit_scale.commit.validation import draw_validation_masks, masked_cross_entropy
from magvit_scale.config import Refusal, TrainCommitConfig, TransformerConfig, parse
from magvit_scale.data.token_shards import TokenShards, to_token_ids, training_batches
from magvit_scale.export import export_run
from magvit_scale.pipeline import MagvitPipeline
from magvit_scale.pretrained import hash_model
from magvit_scale.showing import show_task
from magvit_scale.training import distributed, engines
from magvit_scale.training.checkpoint import TrainingState
from magvit_scale.training.engine import Engine
from magvit_scale.training.health import finite_guard
from magvit_scale.training.loop import train
from magvit_scale.training.ranks import Ranks
from magvit_scale.training.run import Work
from magvit_scale.training.schedule import learning_rate
from magvit_scale.training.tracking import Tracker
from magvit_scale.vqgan.autoencoder import VQGAN

NUM_SHOWN_CLIPS = 8
NUM_VALIDATION_CLIPS = 256


def main(argv: Sequence[str] | None = None) -> None:
    """Trains; see the module's text. Collective: every rank must call."""
    given = parse(TrainCommitConfig, argv)
    ranks = distributed.start()
    shards = open_shards(given.tokens, given)
    if given.validation_tokens:
        open_shards(given.validation_tokens, given)
    config = replace(given, model=resolve_model(given, shards))
    torch.manual_seed(config.run.seed)
    model = CommitTransformer(config.model)
    engine = engines.build_engine("transformer", model, decayed_parameters(model), config.run, config.optim, ranks)
    guard = finite_guard(distributed.any_over_ranks)

    def update(batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        rate = learning_rate(step, config.run.steps, config.optim)
        engine.set_learning_rate(rate)
        # Dropout is the one draw that torch makes: keyed like all others, so that a resume repeats it.
        torch.manual_seed(hash((config.run.seed, step, ranks.rank)))
        # Not the positions: the host draws by them, and would wait for the device to hand them back.
        on_device = batch | {name: batch[name].to(ranks.device) for name in ("tokens", "label")}
        on_device["tokens"] = to_token_ids(on_device["tokens"])
        parts = {name: tensor.chunk(config.run.gradient_accumulation) for name, tensor in on_device.items()}
        micro_batches = [dict(zip(parts, part, strict=True)) for part in zip(*parts.values(), strict=True)]
        metrics = commit_step(engine, micro_batches, step, config, shards.canvases, guard)
        return metrics | engine.metrics() | {"optim/learning_rate": torch.tensor(rate, device=ranks.device)}

    work = Work(
        state=TrainingState(partitioned={"transformer": engine}, replicated={}),
        batches=lambda start: training_batches(
            shards,
            seed=config.run.seed,
            global_batch_size=config.run.global_batch_size,
            rank=ranks.rank,
            world_size=ranks.world_size,
            start_step=start,
            steps=config.run.steps,
        ),
        update=update,
        sample=partial(show_samples, config, engine, ranks),
        finish=partial(export_run, config.run.folder),
        data=shards.hash,
    )
    train(config, ranks, work)
    distributed.stop()


def open_shards(folder: str, config: TrainCommitConfig) -> TokenShards:
    """Token shards, checked to be of this tokenizer and these tasks' rules, and to hold what the tasks need."""
    shards = TokenShards.open(folder, verify=config.verify_tokens)
    if (expected := hash_model(config.tokenizer)) != shards.tokenizer_hash:
        raise Refusal(
            f"{folder} was written by tokenizer {shards.tokenizer_hash[:12]}, {config.tokenizer} is {expected[:12]}; "
            "run magvit precompute-tokens again"
        )
    rules = canvas_rules(canvases_of(config.tasks))
    for task in config.tasks:
        canvas = shards.canvases[canvas_index(task, shards.canvases, config.model)]
        if canvas in rules and shards.rules.get(canvas) != rules[canvas]:
            raise Refusal(
                f"{folder} was written under another rule of the canvas {canvas} ({shards.rules.get(canvas)}, this "
                f"version has {rules[canvas]}); run magvit precompute-tokens into another folder"
            )
    return shards


def resolve_model(config: TrainCommitConfig, shards: TokenShards) -> TransformerConfig:
    """Fills what token shards and tasks decide, and refuses a config that says otherwise."""
    decided: dict[str, Any] = {
        "latent_shape": shards.latent_shape,
        "codebook_size": shards.codebook_size,
        "num_classes": shards.num_classes,
        "tasks": tuple(dict.fromkeys(config.tasks)),
        "tokenizer_hash": shards.tokenizer_hash,
    }
    for name, value in decided.items():
        if (wanted := getattr(config.model, name)) not in (None, value):
            source = "this run has" if name == "tasks" else "the token shards have"
            raise Refusal(f"model.{name}={wanted}, {source} {value}; change it or leave it out")
    return replace(config.model, **decided, num_condition_tokens=room_for_conditions(config, shards.latent_shape))


@torch.no_grad()
def show_samples(config: TrainCommitConfig, engine: Engine, ranks: Ranks, tracker: Tracker | None, step: int) -> None:
    """Held-out cross-entropy of every task, generated clips and how they came about, in TensorBoard. Collective."""
    if config.validation_tokens is None:
        return
    model = distributed.gather_model(lambda: CommitTransformer(config.model), engine.masters(), ranks)
    if tracker is None or model is None:
        return
    shards = open_shards(config.validation_tokens, config)
    count = min(NUM_VALIDATION_CLIPS, shards.num_clips)
    tokens, labels = shards.batch(range(count), [0] * count)
    is_masked = draw_validation_masks(count, tokens[0, 0].numel(), config.run.seed)
    tokens, labels, is_masked = tokens.to(ranks.device), labels.to(ranks.device), is_masked.to(ranks.device)
    losses = {
        task: masked_cross_entropy(model, tokens, labels, task, is_masked, shards.canvases)
        for task in dict.fromkeys(config.tasks)
    }
    tracker.scalars(step, {f"validation/{task}": loss for task, loss in losses.items()})
    pipeline = MagvitPipeline(VQGAN.from_pretrained(config.tokenizer).to(tokens.device), model)
    tokens, labels = tokens[:NUM_SHOWN_CLIPS], labels[:NUM_SHOWN_CLIPS]
    real = pipeline.tokenizer.detokenize(tokens[:, 0])
    for task in losses:
        condition = tokens[:, canvas_index(task, shards.canvases, model.config)]
        show_task(tracker, step, pipeline, task, condition, labels, real, config.run.seed)
