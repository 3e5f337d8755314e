"""Stage 1's step from the paper's formulas, in one process with nothing but PyTorch."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magvit_scale.config import TrainVQGANConfig
from magvit_scale.train_vqgan import build_models
from magvit_scale.vqgan.perceptual import PerceptualLoss
from tests.distributed.cases import NUM_STEPS, clips_of


def named(**modules: nn.Module) -> dict[str, Tensor]:
    """Copies of all tensors, as `module/tensor`."""
    return {f"{name}/{key}": tensor.detach().clone() for name, module in modules.items()
            for key, tensor in module.state_dict().items()}  # fmt: skip


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], *, rtol: float, atol: float) -> None:
    """Same names, and values within the tolerances; names the first tensor that is not."""
    assert found.keys() == expected.keys()
    for name in expected:
        try:
            torch.testing.assert_close(found[name], expected[name], rtol=rtol, atol=atol)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


class PlainVQGAN:
    """One graph, one backward per network, plain AdamW, the whole batch at once."""

    def __init__(self, config: TrainVQGANConfig) -> None:
        torch.manual_seed(1)
        self.loss = config.loss
        self.generator, _, self.discriminator = build_models(config)
        self.average = copy.deepcopy(self.generator)
        self.perceptual = PerceptualLoss("random")
        rate, betas = config.optim.learning_rate, config.optim.betas
        self.optimizers = [torch.optim.AdamW(model.parameters(), lr=rate, betas=betas, weight_decay=0.0)
                           for model in (self.generator, self.discriminator)]  # fmt: skip
        self.real_mean, self.fake_mean = torch.zeros(()), torch.zeros(())
        self.initial = self.state()
        self.metrics: dict[str, Tensor] = {}
        for step in range(NUM_STEPS):
            self.metrics |= {f"{name}@{step}": value for name, value in self.step(clips_of(step), step).items()}

    def state(self) -> dict[str, Tensor]:
        """Everything that has a twin in the distributed run, under the same name."""
        means = {"lecam/real_mean": self.real_mean, "lecam/fake_mean": self.fake_mean}
        average = {f"average/average.{name}": value for name, value in self.average.state_dict().items()}
        return means | average | named(generator=self.generator, discriminator=self.discriminator)

    def step(self, clip: Tensor, step: int) -> dict[str, Tensor]:
        loss, is_adversarial = self.loss, step >= self.loss.adversarial_start
        fake, quantized = self.generator(clip)
        metrics = {
            "loss/reconstruction": (fake - clip).square().mean(),
            "loss/perceptual": self.perceptual(clip, fake),
            "loss/quantizer": 0.25 * quantized.commitment_loss + quantized.codebook_loss,
        }
        total = metrics["loss/reconstruction"] + 0.1 * metrics["loss/perceptual"] + metrics["loss/quantizer"]
        judge = {}
        if is_adversarial:
            metrics["loss/generator"] = F.softplus(-self.discriminator(fake)).mean()
            total = total + loss.adversarial_weight * metrics["loss/generator"]
            judge = self.judge(clip, fake.detach())
        self.update(0, self.generator, total)
        if is_adversarial:
            self.update(1, self.discriminator, judge.pop("total"))
        for own, new in zip(self.average.parameters(), self.generator.parameters(), strict=True):
            own.data = loss.ema_decay * own.data + (1 - loss.ema_decay) * new.data
        return {name: value.detach() for name, value in (metrics | judge).items()}

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
        for mean, logits in ((self.real_mean, on_real), (self.fake_mean, on_fake)):
            mean.copy_(loss.ema_decay * mean + (1 - loss.ema_decay) * logits.detach().mean())
        return terms | {"logits/real": on_real.mean(), "logits/fake": on_fake.mean()}

    def lecam(self, on_real: Tensor, on_fake: Tensor) -> Tensor:
        real, fake = on_real.mean(), on_fake.mean()
        return F.relu(real - self.fake_mean.clone()) ** 2 + F.relu(self.real_mean.clone() - fake) ** 2

    def update(self, index: int, model: nn.Module, loss: Tensor) -> None:
        self.optimizers[index].zero_grad()
        gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        self.optimizers[index].step()
