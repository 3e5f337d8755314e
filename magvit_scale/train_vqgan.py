"""Clip shards -> a tokenizer: `magvit train-vqgan configs/vqgan/ucf101_3d_base.yaml [key=value ...]`.

Runs alone, under torchrun, the deepspeed launcher or srun. Killed and started again it continues at its newest
checkpoint. Writes `run.folder`/export (averaged weights), export/unaveraged and export/discriminator.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from magvit_scale.config import DiscriminatorConfig, Perceptual, Refusal, TrainVQGANConfig, VQGANLossConfig, parse
from magvit_scale.data.clips import held_out_clips, to_frames, to_unit_range, training_batches
from magvit_scale.data.sources import has_split
from magvit_scale.pretrained import fill, load_tensors, save_model
from magvit_scale.training import distributed
from magvit_scale.training.ema import ExponentialMovingAverage
from magvit_scale.training.health import finite_guard
from magvit_scale.training.loop import train
from magvit_scale.training.schedule import learning_rate
from magvit_scale.training.tracking import Tracker
from magvit_scale.vqgan.autoencoder import VQGAN
from magvit_scale.vqgan.discriminator import Discriminator
from magvit_scale.vqgan.losses import LeCam
from magvit_scale.vqgan.perceptual import NOTES, PerceptualLoss, refuse_small_frames
from magvit_scale.vqgan.step import VQGANTraining, vqgan_step

NUM_SHOWN_CLIPS = 8


def main(argv: Sequence[str] | None = None) -> None:
    """Trains; see the module's text. Collective: every rank must call."""
    config = parse(TrainVQGANConfig, argv)
    ranks = distributed.start()
    torch.manual_seed(config.run.seed)
    generator, average, discriminator = build_models(config)
    training = build_training(config, ranks, generator, discriminator)
    average.to(ranks.device)

    def update(batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        rate = learning_rate(step, config.run.steps, config.optim)
        distributed.set_learning_rate(training.generator, rate)
        distributed.set_learning_rate(training.discriminator, rate)
        metrics = vqgan_step(training, to_unit_range(batch["clip"].to(ranks.device)), step)
        average.update(training.generator.module)
        return metrics | {"optim/learning_rate": torch.tensor(rate, device=ranks.device)}

    train(
        config,
        ranks,
        engines={"generator": training.generator, "discriminator": training.discriminator},
        replicated={"average": average, "lecam": training.lecam},
        batches=lambda start: training_batches(
            config.clips,
            seed=config.run.seed,
            global_batch_size=config.run.global_batch_size,
            rank=ranks.rank,
            world_size=ranks.world_size,
            start_step=start,
            steps=config.run.steps - start,
        ),
        update=update,
        sample=partial(show_reconstructions, config, average),
        notes=[NOTES[perceptual_kind(config.loss)]],
    )
    if ranks.is_main:
        export(config, average, training)
    distributed.barrier()
    distributed.stop()


def build_models(config: TrainVQGANConfig) -> tuple[VQGAN, ExponentialMovingAverage, Discriminator]:
    """Generator, its average and discriminator: random, or filled from the export folder `config.init`."""
    generator = VQGAN(config.model, config.loss.entropy_temperature)
    discriminator = Discriminator(resolve_discriminator(config))
    if config.init:
        fill(generator, load_tensors(Path(config.init) / "unaveraged"), config.init)
        fill(discriminator, load_tensors(Path(config.init) / "discriminator"), config.init)
    average = ExponentialMovingAverage(generator, config.loss.ema_decay)
    if config.init:
        fill(average.average, load_tensors(config.init), config.init)
    return generator, average, discriminator


def resolve_discriminator(config: TrainVQGANConfig) -> DiscriminatorConfig:
    """Fills what model and clips decide, and refuses a config that says otherwise."""
    clip_shape = (config.clips.num_frames, config.clips.size_px, config.clips.size_px)
    decided: dict[str, Any] = {"ndim": config.model.ndim, "clip_shape": clip_shape}
    for name, value in decided.items():
        if (wanted := getattr(config.discriminator, name)) not in (None, value):
            raise Refusal(f"discriminator.{name}={wanted}, model and clips need {value}; change it or leave it out")
    return replace(config.discriminator, **decided)


def build_training(
    config: TrainVQGANConfig, ranks: distributed.Ranks, generator: nn.Module, discriminator: nn.Module
) -> VQGANTraining:
    """Engines and losses; the two engines share the process group."""
    if config.run.precision != "fp32":
        raise Refusal(f"run.precision={config.run.precision}: the VQGAN trains in fp32; use run.precision=fp32")
    kind = perceptual_kind(config.loss)
    refuse_small_frames(kind, config.clips.size_px)
    perceptual = None if kind == "none" else PerceptualLoss(kind).to(ranks.device)

    def engine(model: nn.Module) -> Any:
        return distributed.build_engine(model, ([], list(model.parameters())), config.run, config.optim, ranks)

    return VQGANTraining(
        generator=engine(generator),
        discriminator=engine(discriminator),
        perceptual=perceptual,
        lecam=LeCam(config.loss.ema_decay).to(ranks.device),
        loss=config.loss,
        mean_over_ranks=distributed.mean_over_ranks,
        guard=finite_guard(partial(distributed.any_over_ranks, device=ranks.device)),
    )


def perceptual_kind(loss: VQGANLossConfig) -> Perceptual:
    """The perceptual loss that works: none where its weight is 0, whatever its name."""
    return loss.perceptual if loss.perceptual_weight > 0 else "none"


@torch.no_grad()
def show_reconstructions(
    config: TrainVQGANConfig, average: ExponentialMovingAverage, tracker: Tracker, step: int
) -> None:
    """Held-out clips over their reconstructions by the averaged weights, as a moving picture in TensorBoard."""
    clips = replace(config.clips, split="test" if has_split(config.clips, "test") else config.clips.split)
    real = next(iter(held_out_clips(clips, num_clips=NUM_SHOWN_CLIPS, batch_size=NUM_SHOWN_CLIPS)))["clip"]
    network = average.average
    real = to_unit_range(real.to(next(network.parameters()).device))
    fake, _ = network(real)
    tracker.clips(step, "reconstructions", to_frames(torch.cat([real, fake], dim=3)))


def export(config: TrainVQGANConfig, average: ExponentialMovingAverage, training: VQGANTraining) -> None:
    """Writes the model folders that later stages read. Main rank only."""
    folder = Path(config.run.folder) / "export"
    save_model(training.generator.module, config.model, folder / "unaveraged")
    training.discriminator.module.save_pretrained(folder / "discriminator")
    save_model(average.average, config.model, folder)
