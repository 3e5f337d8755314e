"""One optimiser step of stage 1: the generator's update, then the discriminator's, both from the same old parameters.

Two DeepSpeed engines in one loop hold only if an engine is called for nothing but the forward whose loss goes to its
own `backward` (spec: DeepSpeed section 3). So the generator's losses are taken on a detached copy of its output,
their gradient is carried back as a product, and the discriminator is reached through `.module`, never inside the
generator's graph.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from magvit_scale.config import VQGANLossConfig
from magvit_scale.vqgan.losses import (
    LeCam,
    compute_discriminator_loss,
    compute_generator_loss,
    compute_r1_penalty,
)
from magvit_scale.vqgan.perceptual import PerceptualLoss
from magvit_scale.vqgan.quantizer import Quantized

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class VQGANTraining:
    """What a step works on. The engines are DeepSpeed's or anything with `module`, `backward` and `step`."""

    generator: Any
    discriminator: Any
    perceptual: PerceptualLoss | None
    lecam: LeCam
    loss: VQGANLossConfig
    mean_over_ranks: Callable[[Tensor], Tensor]
    """Collective: the mean of a scalar over all ranks."""
    guard: Callable[[Mapping[str, Tensor]], None]
    """Collective: raises on every rank where a value is not finite on any."""


def vqgan_step(training: VQGANTraining, clip: Tensor, step: int) -> Metrics:
    """Updates both networks on this rank's part of a batch. Collective: every rank must call.

    Args:
        training: engines and losses.
        clip: 'b 3 t h w' float32 in [0, 1].
        step: steps completed; the discriminator works from `loss.adversarial_start` on.

    Returns:
        This rank's scalars by TensorBoard name.
    """
    is_adversarial = step >= training.loss.adversarial_start and training.loss.adversarial_weight > 0
    fake, metrics = _update_generator(training, clip, is_adversarial)
    if is_adversarial:
        metrics |= _update_discriminator(training, clip, fake)
    return metrics


def _update_generator(training: VQGANTraining, clip: Tensor, is_adversarial: bool) -> tuple[Tensor, Metrics]:
    loss = training.loss
    reconstruction, quantized = training.generator(clip)
    leaf = reconstruction.detach().float().requires_grad_()
    metrics = {"loss/reconstruction": F.mse_loss(leaf, clip)}
    total = loss.reconstruction_weight * metrics["loss/reconstruction"]
    if training.perceptual is not None:
        metrics["loss/perceptual"] = training.perceptual(clip, leaf)
        total = total + loss.perceptual_weight * metrics["loss/perceptual"]
    if is_adversarial:
        metrics["loss/generator"] = compute_generator_loss(training.discriminator.module(leaf))
        total = total + loss.adversarial_weight * metrics["loss/generator"]
    (gradient,) = torch.autograd.grad(total, leaf)
    metrics["loss/quantizer"] = quantizer_loss(quantized, loss)
    training.guard(metrics | {"gradient of the reconstruction": gradient})
    training.generator.backward((gradient * reconstruction.float()).sum() + metrics["loss/quantizer"])
    training.generator.step()
    return leaf.detach(), metrics | _quantizer_metrics(quantized, training.generator.module.quantizer.codebook.shape[0])


def quantizer_loss(quantized: Quantized, loss: VQGANLossConfig) -> Tensor:
    """Weighted sum of the quantiser's three terms (spec section 2); the codebook's weight is 1."""
    return (
        loss.commitment_weight * quantized.commitment_loss
        + quantized.codebook_loss
        + loss.entropy_weight * quantized.entropy_loss
    )


def _quantizer_metrics(quantized: Quantized, codebook_size: int) -> Metrics:
    counts = torch.bincount(quantized.token_ids.flatten(), minlength=codebook_size).float()
    share = counts / counts.sum()
    return {
        "loss/commitment": quantized.commitment_loss,
        "loss/codebook": quantized.codebook_loss,
        "loss/entropy": quantized.entropy_loss,
        "codebook/used": (counts > 0).float().mean(),
        "codebook/perplexity": torch.special.entr(share).sum().exp(),
    }


def _update_discriminator(training: VQGANTraining, real: Tensor, fake: Tensor) -> Metrics:
    loss, engine = training.loss, training.discriminator
    real_logits, fake_logits = engine(torch.cat([real, fake])).chunk(2)
    metrics = {"loss/discriminator": compute_discriminator_loss(real_logits, fake_logits)}
    total = metrics["loss/discriminator"]
    if loss.r1_weight > 0:
        real_leaf = real.detach().requires_grad_()
        metrics["loss/r1"] = compute_r1_penalty(engine.module(real_leaf), real_leaf)
        total = total + loss.r1_weight * metrics["loss/r1"]
    real_mean, fake_mean = (_mean_over_batch(training, logits) for logits in (real_logits, fake_logits))
    if loss.lecam_weight > 0:
        metrics["loss/lecam"] = training.lecam(real_mean, fake_mean)
        total = total + loss.lecam_weight * metrics["loss/lecam"]
    training.guard(metrics)
    engine.backward(total)
    engine.step()
    training.lecam.update(real_mean, fake_mean)
    return metrics | {"logits/real": real_mean, "logits/fake": fake_mean}


def _mean_over_batch(training: VQGANTraining, logits: Tensor) -> Tensor:
    """The mean over the global batch, with the gradient of this rank's part: LeCam squares it, so ranks must agree."""
    own = logits.float().mean()
    return own + (training.mean_over_ranks(own) - own).detach()
