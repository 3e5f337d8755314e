"""Whole training steps of both stages, as the programs make them, on engines of plain PyTorch."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from benchmarks.speed.figures import Built, Workload, count_parameters, words
from benchmarks.speed.plan import Setting
from benchmarks.speed.timing import Work
from benchmarks.speed.workloads import latents_of, transformer_config
from benchmarks.torchs_own import torchs_own_layers
from magvit_scale.commit.step import commit_step
from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import (
    CodebookUseConfig,
    OptimConfig,
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


def computing(model: nn.Module, setting: Setting, *, is_fast: bool) -> nn.Module:
    """The model on the device, its forward in the arithmetic and perhaps compiled, as a run has it."""
    compute_in(model.to(setting.device), setting.compute.precision, setting.device)
    if is_fast and setting.compute.compile:
        model.compile()
    return model


class PlainEngine:
    """What a step asks of an engine, in one process and without DeepSpeed: the same updates by torch's AdamW."""

    def __init__(self, model: nn.Module, optim: OptimConfig, setting: Setting, *, is_fast: bool):
        self.module = computing(model, setting, is_fast=is_fast)
        self.scale = LossScale("fp32")
        self.largest_norm = optim.gradient_clipping or float("inf")
        rates: Any = {"lr": optim.learning_rate, "betas": optim.betas, "weight_decay": optim.weight_decay}
        is_fused = setting.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(model.parameters(), fused=is_fused, **rates)

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
    model = CommitTransformer(transformer_config(setting.plan, setting.plan.clip))
    paths = _both(partial(_transformer_step, setting), setting)
    # Each path draws its own dropout, so that their losses do not compare.
    return Built(paths, count_parameters([model]), compares=False)


def _both(build: Callable[..., Work], setting: Setting) -> dict[str, Work]:
    """As `by_paths`, on networks of their own, which training changes."""
    paths = {"plain": torchs_own_layers()(build(is_fast=False))}
    return paths | {"fast": build(is_fast=True)} if setting.has_fast_path else paths


def _transformer_step(setting: Setting, *, is_fast: bool) -> Work:
    plan, device, size = setting.plan, setting.device, setting.plan.sequences
    run = RunConfig(folder="none", steps=1, global_batch_size=size)
    model = transformer_config(plan, plan.clip)
    config = TrainCommitConfig(run=run, tokens="none", tokenizer="none", model=model, tasks=("CG",))
    engine = PlainEngine(CommitTransformer(model), config.optim, setting, is_fast=is_fast)
    tokens = torch.randint(plan.vqgan.codebook_size, (size, 1, *latents_of(plan, plan.clip)), device=device)
    label = torch.zeros(size, dtype=torch.int64, device=device)
    batch = {"tokens": tokens, "label": label, "position": torch.arange(size)}
    return partial(commit_step, engine, [batch], 0, config, ("z",), GUARD)


def _train_vqgan(setting: Setting) -> Built:
    discriminator = replace(setting.plan.discriminator, clip_shape=setting.plan.small_clip)
    models = VQGAN(setting.plan.vqgan), Discriminator(discriminator)
    paths = _both(partial(_vqgan_step, setting, models), setting)
    return Built(paths, count_parameters(models))


def _vqgan_step(setting: Setting, models: tuple[VQGAN, Discriminator], *, is_fast: bool) -> Work:
    """On copies of the models, so that all paths start alike."""
    plan, device = setting.plan, setting.device
    generator, discriminator = (
        PlainEngine(copy.deepcopy(model), OptimConfig(), setting, is_fast=is_fast and model is models[0])
        for model in models
    )
    torch.manual_seed(0)
    state = VQGANTraining(
        generator=generator, discriminator=discriminator, loss=VQGANLossConfig(),
        perceptual=computing(RandomPerceptual(), setting, is_fast=is_fast),
        lecam=LeCam(0.999).to(device), mean_over_ranks=lambda own: own, sum_over_ranks=lambda own: own,
        codebook_use=CodebookUse(plan.vqgan.codebook_size, CodebookUseConfig()).to(device), guard=GUARD,
    )  # fmt: skip
    clips = torch.rand(plan.trained_clips, 3, *plan.small_clip, device=device)
    return partial(vqgan_step, state, [clips], 0)


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
