"""Both stages' steps under every partition of the table that a world of processes can have. They only compute and
write files; the tests judge those.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from magvit_scale.commit.step import commit_step
from magvit_scale.commit.transformer import CommitTransformer, decayed_parameters
from magvit_scale.config import TrainVQGANConfig
from magvit_scale.pretrained import shapes_of
from magvit_scale.training import distributed, engines
from magvit_scale.training.engine import Engine
from magvit_scale.training.ranks import Ranks
from magvit_scale.vqgan.step import vqgan_step
from magvit_scale.vqgan_training import build_average, build_models, build_training
from tests.distributed.table import (
    ADAPTIVE,
    CANVASES,
    COMMIT,
    ENTROPY,
    PARTITIONS,
    PERCEPTUAL,
    VQGAN,
    Partition,
    clips_of,
    tokens_of,
)

Metrics = dict[str, Tensor]


def run_table(folder: Path) -> None:
    """What the processes of one world do."""
    ranks = distributed.start()
    for partition in (p for p in PARTITIONS if p.world == ranks.world_size):
        train_vqgan(VQGAN, partition, ranks, folder, "vqgan")
        train_commit(partition, ranks, folder)
        if partition.world == 2 and not partition.offload:
            train_vqgan(PERCEPTUAL, partition, ranks, folder, "perceptual")
        if partition.accumulation == 1 and not partition.offload:
            train_vqgan(ADAPTIVE, partition, ranks, folder, "adaptive")
        if partition.stage == 2 and not partition.offload:
            train_vqgan(ENTROPY, partition, ranks, folder, "entropy")
    distributed.stop()


def train_vqgan(config: TrainVQGANConfig, partition: Partition, ranks: Ranks, folder: Path, name: str) -> None:
    torch.manual_seed(1)
    models = build_models(replace(config, discriminator_deepspeed=partition.settings(folder, discriminator=True)))
    run = replace(config.run, deepspeed=partition.settings(folder), gradient_accumulation=partition.accumulation)
    judge = partition.settings(folder, discriminator=True)
    config = replace(config, run=run, discriminator_deepspeed=judge)
    shapes = [shapes_of(model) for model in models]
    training = build_training(config, ranks, *models)
    average = build_average(config, training)

    def step_once(step: int) -> Metrics:
        clips = clips_of(step, config.clips.size_px).chunk(ranks.world_size)[ranks.rank].chunk(partition.accumulation)
        metrics = vqgan_step(training, clips, step)
        average.update()
        return metrics

    metrics = mean_metrics(step_once, config.run.steps)
    parts = {"generator": training.generator.masters(), "average": average.owned_slices()}
    whole = {f"{part}/{key}": t for part, slices in parts.items()
             for key, t in distributed.gather(slices, shapes[0], ranks).items()}  # fmt: skip
    judged = distributed.gather(training.discriminator.masters(), shapes[1], ranks)
    whole |= {f"discriminator/{key}": tensor for key, tensor in judged.items()}
    whole |= {f"lecam/{key}": tensor.clone() for key, tensor in training.lecam.state_dict().items()}
    write(ranks, folder / f"{name}-{partition}", whole, metrics, training.generator, training.discriminator)


def train_commit(partition: Partition, ranks: Ranks, folder: Path) -> None:
    torch.manual_seed(1)
    model = CommitTransformer(COMMIT.model)
    shapes = shapes_of(model)
    run = replace(COMMIT.run, deepspeed=partition.settings(folder), gradient_accumulation=partition.accumulation)
    engine = engines.build_engine("transformer", model, decayed_parameters(model), run, COMMIT.optim, ranks)

    def step_once(step: int) -> Metrics:
        own = {name: value.chunk(ranks.world_size)[ranks.rank] for name, value in tokens_of(step).items()}
        parts = [value.chunk(partition.accumulation) for value in own.values()]
        micro_batches = [dict(zip(own, part, strict=True)) for part in zip(*parts, strict=True)]
        return commit_step(engine, micro_batches, step, COMMIT, CANVASES, lambda _: None)

    metrics = mean_metrics(step_once, COMMIT.run.steps)
    whole = distributed.gather(engine.masters(), shapes, ranks)
    write(ranks, folder / f"commit-{partition}", whole, metrics, engine)


def mean_metrics(step_once: Callable[[int], Metrics], num_steps: int) -> Metrics:
    found: Metrics = {}
    for step in range(num_steps):
        found |= {f"{name}@{step}": distributed.mean_over_ranks(value) for name, value in step_once(step).items()}
    return found


def write(ranks: Ranks, folder: Path, whole: Mapping[str, Tensor], metrics: Metrics, *engines: Engine) -> None:
    """On the main rank: weights, metrics, and what every engine calls its stage."""
    for engine in engines:
        engine.deepspeed.destroy()
    if ranks.is_main:
        folder.mkdir()
        save_file(dict(whole), folder / "state.safetensors")
        save_file(metrics, folder / "metrics.safetensors")
        (folder / "stages.json").write_text(json.dumps([engine.zero_stage for engine in engines]))
