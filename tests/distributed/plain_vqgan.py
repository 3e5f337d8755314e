"""Stage 1's step from the paper's formulas, in one process with nothing but PyTorch, the whole batch in one graph."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magvit_scale.config import TrainVQGANConfig
from magvit_scale.vqgan.perceptual import PerceptualLoss
from magvit_scale.vqgan_training import build_models
from tests.distributed.table import clips_of


def named(**modules: nn.Module) -> dict[str, Tensor]:
    """Copies of all tensors, as `module/tensor`."""
    return {f"{name}/{key}": tensor.detach().clone() for name, module in modules.items()
            for key, tensor in module.state_dict().items()}  # fmt: skip


class PlainVQGAN:
    """One backward per network, plain AdamW. `num_parts`: into how many the batch falls for the entropy loss."""

    def __init__(self, config: TrainVQGANConfig, num_parts: int = 1) -> None:
        torch.manual_seed(1)
        self.config, self.loss, self.num_parts = config, config.loss, num_parts
        self.generator, self.discriminator = build_models(config)
        self.average = copy.deepcopy(self.generator)
        self.perceptual = PerceptualLoss("random") if config.loss.perceptual == "random" else None
        rate, betas = config.optim.learning_rate, config.optim.betas
        self.optimizers = [torch.optim.AdamW(model.parameters(), lr=rate, betas=betas, weight_decay=0.0)
                           for model in (self.generator, self.discriminator)]  # fmt: skip
        self.real_mean, self.fake_mean = torch.zeros(()), torch.zeros(())
        self.hits = torch.zeros(config.model.codebook_size)
        self.initial = self.state()
        self.metrics: dict[str, Tensor] = {}
        for step in range(config.run.steps):
            clip = clips_of(step, config.clips.size_px)
            self.metrics |= {f"{name}@{step}": value for name, value in self.step(clip, step).items()}

    def state(self) -> dict[str, Tensor]:
        """Everything that has a twin in the distributed run, under the same name."""
        means = {"lecam/real_mean": self.real_mean.clone(), "lecam/fake_mean": self.fake_mean.clone()}
        return means | named(average=self.average, generator=self.generator, discriminator=self.discriminator)

    def step(self, clip: Tensor, step: int) -> dict[str, Tensor]:
        loss, is_adversarial = self.loss, step >= self.loss.adversarial_start
        fake, quantized = self.generator(clip)
        parts = [self.generator.quantizer(self.generator.encode(part)) for part in clip.chunk(self.num_parts)]
        entropy = torch.stack([part.entropy_loss for part in parts]).mean()
        quantizer = 0.25 * quantized.commitment_loss + quantized.codebook_loss + loss.entropy_weight * entropy
        metrics = {
            "loss/reconstruction": (fake - clip).square().mean(),
            "loss/entropy": entropy,
            "loss/quantizer": quantizer,
        }
        pixels = metrics["loss/reconstruction"]
        if self.perceptual is not None:
            metrics["loss/perceptual"] = self.perceptual(clip, fake)
            pixels = pixels + 0.1 * metrics["loss/perceptual"]
        total = pixels + metrics["loss/quantizer"]
        judge = {}
        if is_adversarial:
            metrics["loss/generator"] = F.softplus(-self.discriminator(fake)).mean()
            weight = loss.adversarial_weight
            if loss.adaptive_weight:
                metrics["gan/adaptive_weight"] = self.balance(pixels, metrics["loss/generator"])
                weight = weight * metrics["gan/adaptive_weight"]
            total = total + weight * metrics["loss/generator"]
            judge = self.judge(clip, fake.detach())
        metrics["loss/generator_total"] = total
        metrics["optim/gradient_norm_generator"] = self.update(0, self.generator, total)
        if is_adversarial:
            metrics["optim/gradient_norm_discriminator"] = self.update(1, self.discriminator, judge.pop("total"))
        for own, new in zip(self.average.parameters(), self.generator.parameters(), strict=True):
            own.data = loss.ema_decay * own.data + (1 - loss.ema_decay) * new.data
        return {name: value.detach() for name, value in (metrics | judge | self.codebook(quantized.token_ids)).items()}

    def balance(self, pixels: Tensor, adversarial: Tensor) -> Tensor:
        """VQGAN eq. 7, by autograd through the whole graph."""
        last = self.generator.decoder.conv_out.weight
        norms = [torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (pixels, adversarial)]
        return (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()

    def codebook(self, ids: Tensor) -> dict[str, Tensor]:
        counts = torch.stack([(ids == code).sum() for code in range(len(self.hits))]).float()
        self.hits = self.hits * (1 - 2 / (self.config.codebook_use.window + 1)) + counts
        share = self.hits / self.hits.sum()
        perplexity = torch.exp(-(share * share.clamp_min(1e-30).log()).sum())
        return {"codebook/usage_batch": (counts > 0).float().mean(), "codebook/perplexity": perplexity}

    def judge(self, clip: Tensor, fake: Tensor) -> dict[str, Tensor]:
        loss, real = self.loss, clip.clone().requires_grad_()
        on_real, on_fake = self.discriminator(real), self.discriminator(fake)
        (slope,) = torch.autograd.grad(on_real.sum(), real, create_graph=True)
        terms = {
            "loss/discriminator": F.softplus(-on_real).mean() + F.softplus(on_fake).mean(),
            "loss/r1": slope.square().flatten(1).sum(1).mean(),
            "loss/lecam": self.lecam(on_real, on_fake),
        }
        terms["total"] = (terms["loss/discriminator"] + loss.r1_weight * terms["loss/r1"]
                          + loss.lecam_weight * terms["loss/lecam"])  # fmt: skip
        terms["gan/lecam_gap"] = (self.real_mean - self.fake_mean).clone()
        for mean, logits in ((self.real_mean, on_real), (self.fake_mean, on_fake)):
            mean.copy_(loss.ema_decay * mean + (1 - loss.ema_decay) * logits.detach().mean())
        accuracies = {"gan/accuracy_real": (on_real > 0).float(), "gan/accuracy_fake": (on_fake < 0).float()}
        means = {"gan/logits_real": on_real, "gan/logits_fake": on_fake, **accuracies}
        return terms | {name: value.mean() for name, value in means.items()}

    def lecam(self, on_real: Tensor, on_fake: Tensor) -> Tensor:
        real, fake = on_real.mean(), on_fake.mean()
        return F.relu(real - self.fake_mean.clone()) ** 2 + F.relu(self.real_mean.clone() - fake) ** 2

    def update(self, index: int, model: nn.Module, loss: Tensor) -> Tensor:
        self.optimizers[index].zero_grad()
        gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        norm = nn.utils.clip_grad_norm_(model.parameters(), self.config.optim.gradient_clipping)
        self.optimizers[index].step()
        return norm
