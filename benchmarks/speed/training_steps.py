"""Whole training steps of both stages, as the programs make them, on engines of plain PyTorch."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from benchmarks.speed.figures import Built, Workload, count_parameters, words
from benchmarks.speed.plan import Setting
from benchmarks.speed.workloads import latents_of, transformer_config
from magvit_scale.commit.step import commit_step
from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import (
    CodebookUseConfig,
    OptimConfig,
    Precision,
    RunConfig,
    TrainCommitConfig,
    VQGANLossConfig,
)
from magvit_scale.precision import compute_in
from magvit_scale.training.engine import LossScale
from magvit_scale.training.health import finite_guard
from magvit_scale.vqgan.autoencoder import VQGAN
from magvit_scale.vqgan.codebook_use import CodebookUse
from magvit_scale.vqgan.discriminator import Discriminator
from magvit_scale.vqgan.losses import LeCam
from magvit_scale.vqgan.perceptual import LpipsDistance
from magvit_scale.vqgan.step import VQGANTraining, vqgan_step

VGG16_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
GUARD = finite_guard(lambda is_broken: [is_broken])


def training(setting: Setting) -> list[Workload]:
    """The figures of one arithmetic."""
    plan = setting.plan
    return [
        Workload("transformer training step", setting.arithmetic, plan.sequences, words(latents_of(plan, plan.clip)),
                 partial(_train_transformer, setting)),
        Workload("3D-VQGAN training step, G + D + r1 + perceptual", setting.arithmetic, plan.trained_clips,
                 words(plan.small_clip), partial(_train_vqgan, setting), plan.small_clip[0] * plan.trained_clips),
    ]  # fmt: skip


def computing(model: nn.Module, setting: Setting) -> nn.Module:
    """The model on the device, its forward in the arithmetic, as a run has it."""
    precision: Precision = "bf16" if setting.arithmetic == "bf16" else "fp32"
    return compute_in(model.to(setting.device), precision, setting.device)


class PlainEngine:
    """What a step asks of an engine, in one process and without DeepSpeed: the same updates by torch's AdamW."""

    def __init__(self, model: nn.Module, optim: OptimConfig, setting: Setting):
        self.module = computing(model, setting)
        self.scale = LossScale("fp32")
        self.largest_norm = optim.gradient_clipping or float("inf")
        rates: Any = {"lr": optim.learning_rate, "betas": optim.betas, "weight_decay": optim.weight_decay}
        self.optimizer = torch.optim.AdamW(model.parameters(), **rates)

    def __call__(self, *inputs: Tensor) -> Any:
        """Forward."""
        return self.module(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Adds gradients."""
        loss.backward()

    def step(self) -> Tensor:
        """Clips, updates, and returns the norm before."""
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.largest_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm


def _train_transformer(setting: Setting) -> Built:
    plan, device, size = setting.plan, setting.device, setting.plan.sequences
    run = RunConfig(folder="none", steps=1, global_batch_size=size)
    model = transformer_config(plan, plan.clip)
    config = TrainCommitConfig(run=run, tokens="none", tokenizer="none", model=model, tasks=("CG",))
    engine = PlainEngine(CommitTransformer(model), config.optim, setting)
    tokens = torch.randint(plan.vqgan.codebook_size, (size, 1, *latents_of(plan, plan.clip)), device=device)
    label = torch.zeros(size, dtype=torch.int64, device=device)
    batch = {"tokens": tokens, "label": label, "position": torch.arange(size)}
    work = partial(commit_step, engine, [batch], 0, config, ("z",), GUARD)
    return Built({"plain": work}, count_parameters([engine.module]))


def _train_vqgan(setting: Setting) -> Built:
    plan, device = setting.plan, setting.device
    models = VQGAN(plan.vqgan), Discriminator(replace(plan.discriminator, clip_shape=plan.small_clip))
    engines = [PlainEngine(model, OptimConfig(), setting) for model in models]
    state = VQGANTraining(
        *engines, perceptual=computing(RandomPerceptual(), setting), loss=VQGANLossConfig(),
        lecam=LeCam(0.999).to(device), mean_over_ranks=lambda own: own, sum_over_ranks=lambda own: own,
        codebook_use=CodebookUse(plan.vqgan.codebook_size, CodebookUseConfig()).to(device), guard=GUARD,
    )  # fmt: skip
    clips = torch.rand(plan.trained_clips, 3, *plan.small_clip, device=device)
    return Built({"plain": partial(vqgan_step, state, [clips], 0)}, count_parameters(models))


class RandomVgg(nn.Module):
    """The layers of an `lpips.LPIPS` on VGG16, untrained: as dear as the trained one, without its files."""

    def __init__(self) -> None:
        super().__init__()
        self.scaling_layer = nn.Identity()
        before = [3, *(widths[-1] for widths in VGG16_WIDTHS)]
        self.blocks = nn.ModuleList(
            _vgg_block(first, widths, pools=index > 0)
            for index, (first, widths) in enumerate(zip(before, VGG16_WIDTHS, strict=False))
        )
        self.lins = nn.ModuleList(nn.Conv2d(widths[-1], 1, 1, bias=False) for widths in VGG16_WIDTHS)

    def net(self, frames: Tensor) -> list[Tensor]:
        """'n 3 h w' -> the maps before each pool, and the last."""
        maps = [frames]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return maps[1:]


def _vgg_block(channels: int, widths: tuple[int, ...], *, pools: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.MaxPool2d(2)] if pools else []
    for width in widths:
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
        channels = width
    return nn.Sequential(*layers)


class RandomPerceptual(nn.Module):
    """The perceptual loss of the paper's configurations, frozen and untrained."""

    def __init__(self) -> None:
        super().__init__()
        self.distance = LpipsDistance(RandomVgg())
        self.requires_grad_(False)

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """As PerceptualLoss."""
        return self.distance(*(rearrange(clip, "b c t h w -> (b t) c h w") for clip in (real.detach(), fake)))
