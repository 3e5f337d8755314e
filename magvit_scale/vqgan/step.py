"""One optimiser step of stage 1: the generator's update, then the discriminator's, both from the same old parameters.

Two DeepSpeed engines in one loop hold only if an engine is called for nothing but the forward whose loss goes to its
own `backward` (spec: DeepSpeed section 3). So the generator's losses are taken on a detached copy of its output,
their gradient is carried back as a product, and the discriminator is reached through `.module`, never inside the
generator's graph.

A step may come in micro-batches. It computes what the whole batch at once would, but for the entropy loss, which is one
of a micro-batch's own vectors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from magvit_scale.config import VQGANLossConfig
from magvit_scale.vqgan.adaptive import LastLayer
from magvit_scale.vqgan.balance import discriminator_health
from magvit_scale.vqgan.codebook_use import CodebookUse
from magvit_scale.vqgan.losses import (
    LeCam,
    compute_discriminator_loss,
    compute_generator_loss,
    compute_r1_penalty,
)
from magvit_scale.vqgan.perceptual import PerceptualLoss
from magvit_scale.vqgan.quantizer import Quantized
from magvit_scale.vqgan.twice_differentiable import gradient_of_input

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class VQGANTraining:
    """What a step works on. The engines are `training.engine.Engine`s or anything with their `module`, `scale`,
    `backward` and `step`.
    """

    generator: Any
    discriminator: Any
    perceptual: PerceptualLoss | None
    lecam: LeCam
    loss: VQGANLossConfig
    mean_over_ranks: Callable[[Tensor], Tensor]
    """Collective: the mean of a tensor over all ranks."""
    sum_over_ranks: Callable[[Tensor], Tensor]
    """Collective: the sum of a tensor over all ranks."""
    codebook_use: CodebookUse
    guard: Callable[[Mapping[str, Tensor]], None]
    """Collective: raises on every rank where a value is not finite on any."""
    last_layer: LastLayer | None = None
    """For the adaptive weight of the adversarial loss."""


def vqgan_step(training: VQGANTraining, micro_batches: Sequence[Tensor], step: int) -> Metrics:
    """Updates both networks on this rank's part of a batch. Collective: every rank must call.

    Args:
        training: engines and losses.
        micro_batches: clips 'b 3 t h w' float32 in [0, 1], equally many in each.
        step: steps completed; the discriminator works from `loss.adversarial_start` on.

    Returns:
        This rank's scalars by TensorBoard name, means over the micro-batches; of losses those that the step had.
    """
    is_adversarial = step >= training.loss.adversarial_start and training.loss.adversarial_weight > 0
    fakes, metrics = _update_generator(training, micro_batches, is_adversarial)
    if is_adversarial:
        metrics |= _update_discriminator(training, micro_batches, fakes, r1_weight_of(training.loss, step))
    return metrics


def _update_generator(
    training: VQGANTraining, clips: Sequence[Tensor], is_adversarial: bool
) -> tuple[list[Tensor], Metrics]:
    fakes, found, used = [], [], []
    for clip in clips:
        reconstruction, quantized = training.generator(clip)
        leaf = reconstruction.detach().float().requires_grad_()
        gradient, metrics = _reconstruction_gradient(training, clip, leaf, is_adversarial)
        metrics |= {"loss/quantizer": quantizer_loss(quantized, training.loss)}
        # Not the adaptive weight: it is of gradients, which in float16 may overflow; the engine looks at those.
        training.guard({name: loss for name, loss in metrics.items() if name.startswith("loss/")})
        training.generator.backward((gradient * reconstruction.float()).sum() + metrics["loss/quantizer"])
        fakes.append(leaf.detach())
        found.append(metrics | _quantizer_losses(quantized) | {"loss/generator_total": _total(metrics, training.loss)})
        used.append(quantized.token_ids.flatten())
    norm = training.generator.step()
    counts = torch.bincount(torch.cat(used), minlength=len(training.codebook_use.age))
    training.codebook_use.update(training.sum_over_ranks(counts))
    return fakes, _mean(found) | training.codebook_use.metrics() | {"optim/gradient_norm_generator": norm}


def _reconstruction_gradient(
    training: VQGANTraining, clip: Tensor, leaf: Tensor, is_adversarial: bool
) -> tuple[Tensor, Metrics]:
    """The gradient of all losses of a reconstruction with respect to it, and these losses."""
    loss, scale = training.loss, training.generator.scale.value
    metrics = {"loss/reconstruction": F.mse_loss(leaf, clip)}
    total = loss.reconstruction_weight * metrics["loss/reconstruction"]
    if training.perceptual is not None:
        metrics["loss/perceptual"] = training.perceptual(clip, leaf).float()
        total = total + loss.perceptual_weight * metrics["loss/perceptual"]
    gradient = torch.autograd.grad(total * scale, leaf)[0] / scale
    if is_adversarial:
        metrics["loss/generator"] = compute_generator_loss(training.discriminator.module(leaf))
        adversarial = gradient_of_input(metrics["loss/generator"] * scale, leaf) / scale
        if training.last_layer is not None:
            metrics["gan/adaptive_weight"] = training.last_layer.balance(gradient, adversarial)
            adversarial = adversarial * metrics["gan/adaptive_weight"]
        gradient = gradient + loss.adversarial_weight * adversarial
    return gradient, metrics


def quantizer_loss(quantized: Quantized, loss: VQGANLossConfig) -> Tensor:
    """Weighted sum of the quantiser's three terms (spec section 2); the codebook's weight is 1."""
    return (
        loss.commitment_weight * quantized.commitment_loss
        + quantized.codebook_loss
        + loss.entropy_weight * quantized.entropy_loss
    )


def _total(metrics: Metrics, loss: VQGANLossConfig) -> Tensor:
    """All that the generator makes smaller, weighted, as a curve: its parts' gradients are taken one by one."""
    total = loss.reconstruction_weight * metrics["loss/reconstruction"] + metrics["loss/quantizer"]
    if "loss/perceptual" in metrics:
        total = total + loss.perceptual_weight * metrics["loss/perceptual"]
    if "loss/generator" in metrics:
        weight = loss.adversarial_weight * metrics.get("gan/adaptive_weight", 1.0)
        total = total + weight * metrics["loss/generator"]
    return total


def _quantizer_losses(quantized: Quantized) -> Metrics:
    return {
        "loss/commitment": quantized.commitment_loss,
        "loss/codebook": quantized.codebook_loss,
        "loss/entropy": quantized.entropy_loss,
    }


def r1_weight_of(loss: VQGANLossConfig, step: int) -> float:
    """Of the update after `step` completed ones: 0, or where r1 is lazy its weight for `r1_every` steps at once.

    It is in the last of every `r1_every` steps, not in the first: a log after as many steps then has a value of it.
    """
    return loss.r1_weight * loss.r1_every if (step + 1) % loss.r1_every == 0 else 0.0


def _update_discriminator(
    training: VQGANTraining, reals: Sequence[Tensor], fakes: Sequence[Tensor], r1_weight: float
) -> Metrics:
    loss, engine, found = training.loss, training.discriminator, []
    means = _logit_means(training, reals, fakes)
    for real, fake in zip(reals, fakes, strict=True):
        real_logits, fake_logits, metrics = _judge(engine, real, fake, has_r1=r1_weight > 0)
        metrics = {"loss/discriminator": compute_discriminator_loss(real_logits, fake_logits)} | metrics
        total = metrics["loss/discriminator"] + r1_weight * metrics.get("loss/r1", 0.0)
        own = torch.stack([real_logits.mean(), fake_logits.mean()])
        # Means over the whole batch, with this part's gradient: LeCam squares them, so all parts must agree.
        means = training.mean_over_ranks(own) if means is None else means
        whole = own + (means - own).detach()
        if loss.lecam_weight > 0:
            metrics["loss/lecam"] = training.lecam(*whole)
            total = total + loss.lecam_weight * metrics["loss/lecam"]
        training.guard(metrics)
        engine.backward(total)
        found.append(metrics | discriminator_health(real_logits, fake_logits, training.lecam))
    norm = engine.step()
    metrics = _mean(found)
    assert means is not None, "a step has at least one micro-batch"
    training.lecam.update(*means)
    return metrics | {"optim/gradient_norm_discriminator": norm}


def _judge(engine: Any, real: Tensor, fake: Tensor, *, has_r1: bool) -> tuple[Tensor, Tensor, Metrics]:
    """Float32 logits of the real and of the fake clips, and r1's penalty, which needs a pass of the real clips outside
    of the engine's: their logits are then of that pass too.
    """
    if not has_r1:
        real_logits, fake_logits = engine(torch.cat([real, fake])).float().chunk(2)
        return real_logits, fake_logits, {}
    fake_logits, real_leaf = engine(fake).float(), real.detach().requires_grad_()
    real_logits = engine.module(real_leaf).float()
    return real_logits, fake_logits, {"loss/r1": compute_r1_penalty(real_logits, real_leaf)}


@torch.no_grad()
def _logit_means(training: VQGANTraining, reals: Sequence[Tensor], fakes: Sequence[Tensor]) -> Tensor | None:
    """Mean logit of all real and of all fake clips of the batch, of all ranks and micro-batches. None for a batch in
    one piece, whose own logits will tell.
    """
    if len(reals) == 1:
        return None
    judge = training.discriminator.module
    means = [torch.stack([judge(real).float().mean(), judge(fake).float().mean()])
             for real, fake in zip(reals, fakes, strict=True)]  # fmt: skip
    return training.mean_over_ranks(torch.stack(means).mean(dim=0))


def _mean(found: Sequence[Metrics]) -> Metrics:
    return {name: torch.stack([metrics[name].detach() for metrics in found]).mean(dim=0) for name in found[0]}
