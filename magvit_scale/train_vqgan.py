"""Clip shards -> a tokenizer: `magvit train-vqgan configs/vqgan/ucf101_3d_base.yaml [key=value ...]`.

Runs alone, under torchrun, the deepspeed launcher or srun. Killed and started again it continues at its newest
checkpoint. Writes `run.folder`/export (averaged weights), export/unaveraged and export/discriminator.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from magvit_scale.config import TrainVQGANConfig, parse
from magvit_scale.data.clips import held_out_clips, to_unit_range, training_batches
from magvit_scale.data.sources import fingerprint, has_split
from magvit_scale.export import export_run
from magvit_scale.showing import show_reconstructions
from magvit_scale.training import distributed
from magvit_scale.training.checkpoint import TrainingState
from magvit_scale.training.ema import ExponentialMovingAverage
from magvit_scale.training.loop import train
from magvit_scale.training.ranks import Ranks
from magvit_scale.training.run import Work
from magvit_scale.training.schedule import learning_rate
from magvit_scale.training.tracking import Tracker
from magvit_scale.vqgan.autoencoder import VQGAN
from magvit_scale.vqgan.codebook_use import CodebookUse
from magvit_scale.vqgan.perceptual import NOTES
from magvit_scale.vqgan.step import vqgan_step
from magvit_scale.vqgan_training import build_average, build_models, build_training, perceptual_kind, revive_dead_codes

NUM_SHOWN_CLIPS = 8


def main(argv: Sequence[str] | None = None) -> None:
    """Trains; see the module's text. Collective: every rank must call."""
    config = parse(TrainVQGANConfig, argv)
    ranks = distributed.start()
    torch.manual_seed(config.run.seed)
    training = build_training(config, ranks, *build_models(config))
    average = build_average(config, training)

    def update(batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        rate = learning_rate(step, config.run.steps, config.optim)
        training.generator.set_learning_rate(rate)
        training.discriminator.set_learning_rate(rate)
        clips = to_unit_range(batch["clip"].to(ranks.device))
        metrics = vqgan_step(training, clips.chunk(config.run.gradient_accumulation), step)
        every = config.codebook_use.revive_every
        if every and (step + 1) % every == 0:
            revive_dead_codes(config, training, clips, step)
        average.update()
        metrics |= training.generator.metrics() | training.discriminator.metrics()
        return metrics | {"optim/learning_rate": torch.tensor(rate, device=ranks.device)}

    work = Work(
        state=TrainingState(
            partitioned={
                "generator": training.generator,
                "discriminator": training.discriminator,
                "average": average,
            },
            replicated={"lecam": training.lecam, "codebook_use": training.codebook_use},
        ),
        batches=lambda start: training_batches(
            config.clips,
            seed=config.run.seed,
            global_batch_size=config.run.global_batch_size,
            rank=ranks.rank,
            world_size=ranks.world_size,
            start_step=start,
            steps=config.run.steps,
        ),
        update=update,
        sample=partial(show_held_out, config, training.codebook_use, average, ranks),
        finish=partial(export_run, config.run.folder),
        data=fingerprint(config.clips),
        frames_per_sample=config.clips.num_frames,
        notes=[NOTES[perceptual_kind(config.loss)]],
    )
    train(config, ranks, work)
    distributed.stop()


@torch.no_grad()
def show_held_out(
    config: TrainVQGANConfig,
    codebook_use: CodebookUse,
    average: ExponentialMovingAverage,
    ranks: Ranks,
    tracker: Tracker | None,
    step: int,
) -> None:
    """Reconstructions of held-out clips by the averaged weights, and how the codes are used, in TensorBoard.
    Collective.
    """
    network = distributed.gather_model(lambda: VQGAN(config.model), average.owned_slices(), ranks)
    if tracker is None or network is None:
        return
    clips = replace(config.clips, split="test" if has_split(config.clips, "test") else config.clips.split)
    real = next(iter(held_out_clips(clips, num_clips=NUM_SHOWN_CLIPS, batch_size=NUM_SHOWN_CLIPS)))["clip"]
    real = to_unit_range(real.to(ranks.device))
    show_reconstructions(tracker, step, real, network(real)[0])
    tracker.histogram(step, "codebook/use", codebook_use.relative_use())
