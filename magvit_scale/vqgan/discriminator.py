"""StyleGAN-like discriminator for images (`ndim` 2) and clips (3) (spec section 4.1, 4.2)."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from math import ceil, prod, sqrt
from pathlib import Path
from typing import Any, TypeVar

from einops import rearrange
from torch import Tensor, nn

from magvit_scale.checkpointing import Recomputing
from magvit_scale.config import DiscriminatorConfig, Refusal, TrainVQGANConfig
from magvit_scale.precision import in_own_precision
from magvit_scale.pretrained import load_model, save_model
from magvit_scale.vqgan.convolution import convolution
from magvit_scale.vqgan.resampling import blur, pool
from magvit_scale.vqgan.twice_differentiable import TWICE_DIFFERENTIABLE, leaky_relu

SLOPE = 0.2
Halve = Callable[[Tensor], Tensor]
Layer = TypeVar("Layer", nn.Conv2d | nn.Conv3d, nn.Linear)


def _biased(ndim: int, channels_in: int, channels_out: int, kernel: int) -> nn.Conv2d | nn.Conv3d:
    return _xavier(convolution(ndim, channels_in, channels_out, kernel, layers=TWICE_DIFFERENTIABLE))


def _xavier(layer: Layer) -> Layer:
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class DiscriminatorBlock(Recomputing):
    """Halves every side: conv, pool, conv beside a pooled 1x1 skip, summed and divided by sqrt(2)."""

    def __init__(self, ndim: int, channels_in: int, channels_out: int, halve: Halve):
        super().__init__()
        self.halve = halve
        self.conv1 = _biased(ndim, channels_in, channels_in, 3)
        self.skip = _xavier(convolution(ndim, channels_in, channels_out, 1, bias=False, layers=TWICE_DIFFERENTIABLE))
        self.conv2 = _biased(ndim, channels_in, channels_out, 3)

    def forward(self, x: Tensor) -> Tensor:
        """'b channels_in ...' -> 'b channels_out ...', each side halved and rounded up."""
        return self.run_part("block", self._compute, x)

    def _compute(self, x: Tensor) -> Tensor:
        h = self.halve(leaky_relu(self.conv1(x), SLOPE))
        h = leaky_relu(self.conv2(h), SLOPE)
        return (self.skip(self.halve(x)) + h) / sqrt(2)


class Discriminator(Recomputing):
    """One logit per clip ('b 1'), or per frame ('b t 1') in 2D.

    Args:
        config: `ndim` and `clip_shape` must be filled in.
    """

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        if config.ndim is None or config.clip_shape is None:
            unknown = "ndim" if config.ndim is None else "clip_shape"
            raise Refusal(f"discriminator.{unknown} must be known to build the discriminator; give it")
        if config.resample == "blur" and config.ndim == 3:
            raise Refusal("discriminator.resample=blur is 2D only; use average")
        self.config = config
        self.ndim: int = config.ndim
        halve = blur if config.resample == "blur" else pool
        widths = [config.base_channels, *(config.base_channels * m for m in config.channel_multipliers)]
        self.conv_in = _biased(self.ndim, 3, widths[0], 3)
        self.blocks = nn.Sequential(
            *(DiscriminatorBlock(self.ndim, i, o, halve) for i, o in itertools.pairwise(widths))
        )
        self.conv_out = _biased(self.ndim, widths[-1], widths[-1], 3)
        sides = [ceil(side / 2 ** len(config.channel_multipliers)) for side in config.clip_shape[-self.ndim :]]
        self.dense = _xavier(nn.Linear(prod(sides) * widths[-1], widths[-1]))
        self.logit = _xavier(nn.Linear(widths[-1], 1))

    def forward(self, clip: Tensor) -> Tensor:
        """'b 3 t h w' -> float32 logits; high means real."""
        if self.ndim == 3:
            return self._judge(clip)
        return rearrange(self._judge(rearrange(clip, "b c t h w -> (b t) c h w")), "(b t) 1 -> b t 1", t=clip.shape[2])

    def _judge(self, x: Tensor) -> Tensor:
        h = self.run_part("stage", self._first, x)
        for block in self.blocks[1:]:
            h = block(h)
        h = leaky_relu(self.conv_out(h), SLOPE)
        # Channels last before flattening: the order of the official dense layer (spec section 12).
        flat = rearrange(h, "b c t h w -> b (t h w c)" if self.ndim == 3 else "b c h w -> b (h w c)")
        return in_own_precision(self.logit, leaky_relu(self.dense(flat), SLOPE))

    def _first(self, x: Tensor) -> Tensor:
        return self.blocks[0](leaky_relu(self.conv_in(x), SLOPE))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors."""
        save_model(self, self.config, folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Discriminator":
        """Reads what `save_pretrained` wrote.

        Raises:
            Refusal: the folder holds no discriminator, or one of other tensors.
        """
        return load_model(cls, DiscriminatorConfig, folder)


def resolve_discriminator(config: TrainVQGANConfig) -> DiscriminatorConfig:
    """Fills what model and clips decide, and refuses a config that says otherwise."""
    clip_shape = (config.clips.num_frames, config.clips.size_px, config.clips.size_px)
    decided: dict[str, Any] = {"ndim": config.model.ndim, "clip_shape": clip_shape}
    for name, value in decided.items():
        if (wanted := getattr(config.discriminator, name)) not in (None, value):
            raise Refusal(f"discriminator.{name}={wanted}, model and clips need {value}; change it or leave it out")
    return replace(config.discriminator, **decided)
