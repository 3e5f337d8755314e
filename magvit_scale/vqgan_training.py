"""What a run of stage 1 trains: two engines, their losses, the average, built from its configuration."""

from dataclasses import replace
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from magvit_scale.config import Perceptual, Refusal, RunConfig, TrainVQGANConfig, VQGANLossConfig
from magvit_scale.precision import compute_in
from magvit_scale.pretrained import fill, load_tensors
from magvit_scale.training import distributed, engines
from magvit_scale.training.ema import ExponentialMovingAverage
from magvit_scale.training.engine import Engine
from magvit_scale.training.health import finite_guard
from magvit_scale.training.ranks import Ranks
from magvit_scale.vqgan.adaptive import LastLayer
from magvit_scale.vqgan.autoencoder import VQGAN
from magvit_scale.vqgan.codebook_use import CodebookUse, choose_revivals
from magvit_scale.vqgan.discriminator import Discriminator, resolve_discriminator
from magvit_scale.vqgan.losses import LeCam
from magvit_scale.vqgan.perceptual import PerceptualLoss, refuse_small_frames
from magvit_scale.vqgan.step import VQGANTraining


def build_models(config: TrainVQGANConfig) -> tuple[VQGAN, Discriminator]:
    """Generator and discriminator: random, or filled from the export folder `config.init`.

    Raises:
        Refusal: the configuration asks for what two engines cannot do, or does not fit itself.
    """
    refuse_impossible(config)
    generator = VQGAN(config.model, config.loss.entropy_temperature)
    discriminator = Discriminator(resolve_discriminator(config))
    if config.init:
        fill(generator, load_tensors(Path(config.init) / "unaveraged"), config.init)
        fill(discriminator, load_tensors(Path(config.init) / "discriminator"), config.init)
    return generator, discriminator


def build_training(config: TrainVQGANConfig, ranks: Ranks, generator: VQGAN, discriminator: nn.Module) -> VQGANTraining:
    """Engines and losses; the two engines share the process group. Collective.

    Raises:
        Refusal: the perceptual loss's weights are missing, or DeepSpeed's file does not fit.
    """
    perceptual = build_perceptual(config, ranks)  # first: it refuses where its weights are missing
    deepspeed = config.discriminator_deepspeed or config.run.deepspeed
    of_discriminator = replace(config.run, deepspeed=deepspeed, compile=False)  # r1 goes through it twice
    last_layer = LastLayer(generator, distributed.mean_over_ranks) if config.loss.adaptive_weight else None

    def engine(name: str, model: nn.Module, run: RunConfig) -> Engine:
        return engines.build_engine(name, model, ([], list(model.parameters())), run, config.optim, ranks)

    return VQGANTraining(
        generator=engine("generator", generator, config.run),
        discriminator=engine("discriminator", discriminator, of_discriminator),
        perceptual=perceptual,
        lecam=LeCam(config.loss.ema_decay).to(ranks.device),
        loss=config.loss,
        mean_over_ranks=distributed.mean_over_ranks,
        sum_over_ranks=distributed.sum_over_ranks,
        codebook_use=CodebookUse(config.model.codebook_size, config.codebook_use).to(ranks.device),
        guard=finite_guard(distributed.any_over_ranks),
        last_layer=last_layer,
    )


def build_average(config: TrainVQGANConfig, training: VQGANTraining) -> ExponentialMovingAverage:
    """The average of the generator's weights; starts from that of `config.init`."""
    start = load_tensors(config.init) if config.init else None
    return ExponentialMovingAverage(training.generator, config.loss.ema_decay, start)


@torch.no_grad()
def revive_dead_codes(config: TrainVQGANConfig, training: VQGANTraining, clips: Tensor, step: int) -> None:
    """Moves codes that nothing uses onto vectors that the encoder gives for this batch. Collective.

    Args:
        config: of the run.
        training: whose codebook it is.
        clips: this rank's, 'b 3 t h w' in [0, 1].
        step: steps completed; keys the draw.
    """
    use = training.codebook_use
    vectors = rearrange(training.generator.module.encode(clips), "b d t h w -> (b t h w) d").float()
    few = torch.linspace(0, len(vectors) - 1, min(len(vectors), len(use.age))).long().to(vectors.device)
    key = (config.run.seed, step)
    codes, rows = choose_revivals(use.age, distributed.all_of(vectors[few]), config.codebook_use.dead_after, key)
    training.generator.overwrite_rows("quantizer.codebook", codes, rows)
    use.mark_revived(codes)


def refuse_impossible(config: TrainVQGANConfig) -> None:
    """Says before anything is built what two engines cannot do (spec: DeepSpeed sections 1 and 3)."""
    refuse_small_frames(perceptual_kind(config.loss), config.clips.size_px)
    judge = config.discriminator_deepspeed or config.run.deepspeed
    if config.loss.r1_weight > 0 and engines.zero_stage(judge) == 3:
        raise Refusal(
            f"{judge}: r1 differentiates the discriminator twice, which ZeRO stage 3 cannot; set "
            "discriminator_deepspeed=configs/deepspeed/zero2.json, or loss.r1_weight=0"
        )
    if config.loss.adaptive_weight and config.run.gradient_accumulation > 1:
        raise Refusal(
            f"loss.adaptive_weight=true is of a whole batch, found run.gradient_accumulation="
            f"{config.run.gradient_accumulation}; set it to 1, or loss.adaptive_weight=false"
        )


def build_perceptual(config: TrainVQGANConfig, ranks: Ranks) -> PerceptualLoss | None:
    """The frozen network of the perceptual loss, computing in the run's precision and compiled with the rest."""
    kind = perceptual_kind(config.loss)
    if kind == "none":
        return None
    network = PerceptualLoss(kind).to(ranks.device)
    compute_in(network, config.run.precision, ranks.device)
    if config.run.compile:
        network.compile()
    return network


def perceptual_kind(loss: VQGANLossConfig) -> Perceptual:
    """The perceptual loss that works: none where its weight is 0, whatever its name."""
    return loss.perceptual if loss.perceptual_weight > 0 else "none"
