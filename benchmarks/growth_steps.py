"""Toy training steps of both stages, of any size, each with the cost that is expected of it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.engine import random_batch
from benchmarks.laws import transformer_flops, transformer_kept
from benchmarks.meter import MemoryMeter, fake_model
from magvit_scale.commit.step import commit_step
from magvit_scale.commit.transformer import CommitTransformer, decayed_parameters
from magvit_scale.config import (
    ClipsConfig,
    DiscriminatorConfig,
    OptimConfig,
    RunConfig,
    TrainCommitConfig,
    TrainVQGANConfig,
    TransformerConfig,
    VQGANConfig,
    VQGANLossConfig,
)
from magvit_scale.training import engines
from magvit_scale.training.flops import count_flops
from magvit_scale.training.ranks import Ranks
from magvit_scale.vqgan.autoencoder import VQGAN
from magvit_scale.vqgan.step import vqgan_step
from magvit_scale.vqgan_training import build_models, build_training

DEEPSPEED = "configs/deepspeed/zero0.json"
"""Without ZeRO's buckets, which are larger than these models."""


@dataclass(frozen=True)
class Point:
    """A training step of some size.

    Attributes:
        value: of what is varied.
        step: the real one.
        kept: bytes counted on fake tensors.
        law_flops: expected operations.
        law_kept: expected bytes.
    """

    value: float
    step: Callable[[], Any]
    kept: int
    law_flops: float
    law_kept: float


TRANSFORMER = TransformerConfig(
    num_layers=4, hidden_size=128, mlp_dim=512, num_heads=4, latent_shape=(4, 8, 8), codebook_size=1024, num_classes=16,
    dropout=0.0,
)  # fmt: skip
TRANSFORMER_BATCH = 2


def transformer_axes(ranks: Ranks) -> dict[str, list[Callable[[], Point]]]:
    """By heading, the points of each axis; they are built when their turn comes."""

    def point(value: int, batch: int = TRANSFORMER_BATCH, **changes: Any) -> Callable[[], Point]:
        return lambda: transformer_point(replace(TRANSFORMER, **changes), batch, value, ranks)

    return {
        "Transformer, latent frames": [point(t, latent_shape=(t, 8, 8)) for t in (2, 4, 8, 16)],
        "Transformer, latent side": [point(side, latent_shape=(4, side, side)) for side in (4, 8, 12, 16)],
        "Transformer, batch": [point(batch, batch) for batch in (1, 2, 4, 8)],
        "Transformer, width": [
            point(width, hidden_size=width, mlp_dim=4 * width, num_heads=width // 32) for width in (64, 128, 256, 512)
        ],
        "Transformer, layers": [point(layers, num_layers=layers) for layers in (2, 4, 8, 16)],
    }


def transformer_point(model: TransformerConfig, batch: int, value: float, ranks: Ranks) -> Point:
    """A step of stage 2 of this size."""
    run = _run(batch)
    config = TrainCommitConfig(run=run, tokens="none", tokenizer="none", model=model, tasks=("CG",))
    network = CommitTransformer(model)
    engine = engines.build_engine("transformer", network, decayed_parameters(network), run, OptimConfig(), ranks)
    assert model.latent_shape is not None, "it is part of every point"
    tokens = torch.randint(1024, (batch, 1, *model.latent_shape))
    data = random_batch(batch, 1) | {"tokens": tokens}
    shape = (batch, 2 + prod(model.latent_shape))
    kept = count_kept(
        lambda: CommitTransformer(model), lambda net: net(torch.empty(shape, dtype=torch.int64)).logsumexp(-1).mean()
    )

    def step() -> Any:
        return commit_step(engine, [data], 0, config, ("z",), lambda losses: None)

    return Point(value, step, kept, transformer_flops(model, batch), transformer_kept(model, batch))


FRAMES, SIDE, VQGAN_BATCH, WIDTH = 8, 32, 2, 16


def vqgan_axes(ranks: Ranks) -> dict[str, list[Callable[[], Point]]]:
    """The same of the 3D VQGAN with its discriminator, r1 and LeCam."""
    base_step, base_kept = vqgan_work(FRAMES, SIDE, VQGAN_BATCH, WIDTH, ranks)
    _, base_flops = count_flops(base_step)

    def point(value: int, frames: int = FRAMES, side: int = SIDE, batch: int = VQGAN_BATCH, width: int = WIDTH
              ) -> Callable[[], Point]:  # fmt: skip
        size, wide = frames / FRAMES * (side / SIDE) ** 2 * batch / VQGAN_BATCH, width / WIDTH
        laws = (base_flops * size * wide**2, base_kept * size * wide)
        return lambda: Point(value, *vqgan_work(frames, side, batch, width, ranks), *laws)

    return {
        "3D VQGAN, frames: law linear": [point(frames, frames=frames) for frames in (4, 8, 16, 32)],
        "3D VQGAN, side in pixels: law square": [point(side, side=side) for side in (16, 32, 48, 64)],
        "3D VQGAN, batch: law linear": [point(batch, batch=batch) for batch in (1, 2, 4, 8)],
        "3D VQGAN, channels: FLOPs square, kept linear": [point(width, width=width) for width in (8, 16, 32, 48)],
    }


def vqgan_work(frames: int, side: int, batch: int, width: int, ranks: Ranks) -> tuple[Callable[[], Any], int]:
    """A step of stage 1 of this size, and the bytes that its generator keeps."""
    model = VQGANConfig(base_channels=width, channel_multipliers=(1, 2, 2), num_res_blocks=1, num_groups=8,
                        temporal_downsample=(True, False), embedding_dim=16, codebook_size=256)  # fmt: skip
    config = TrainVQGANConfig(
        run=_run(batch), clips=ClipsConfig(shards="none", num_frames=frames, size_px=side), model=model,
        discriminator=DiscriminatorConfig(base_channels=width, channel_multipliers=(1, 2, 2)),
        loss=VQGANLossConfig(perceptual="none"),
    )  # fmt: skip
    training = replace(build_training(config, ranks, *build_models(config)), guard=lambda losses: None)
    clip = torch.rand(batch, 3, frames, side, side)
    kept = count_kept(lambda: VQGAN(model), lambda net: _reconstruct(net, torch.empty(clip.shape)))
    return lambda: vqgan_step(training, [clip], 0), kept


def _reconstruct(model: nn.Module, clip: Tensor) -> Tensor:
    reconstruction, quantized = model(clip)
    losses = quantized.commitment_loss + quantized.codebook_loss + quantized.entropy_loss
    return (torch.empty_like(reconstruction) * reconstruction).sum() + losses


def count_kept(build: Callable[[], nn.Module], forward: Callable[[nn.Module], Tensor]) -> int:
    """Bytes that live between forward and backward, on fake tensors."""
    with fake_model(build) as model, MemoryMeter(list(model.parameters())) as meter:
        _loss = forward(model)
        return meter.held


def _run(batch: int) -> RunConfig:
    return RunConfig(folder="none", steps=1, global_batch_size=batch, deepspeed=DEEPSPEED)
