"""StyleGAN-like discriminator for images (`ndim` 2) and clips (3) (spec section 4.1, 4.2)."""

import itertools
from collections.abc import Sequence
from math import ceil, prod, sqrt
from typing import TypeVar

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from magvit_scale.config import DiscriminatorConfig
from magvit_scale.vqgan.blocks import convolution, pool

SLOPE = 0.2
Layer = TypeVar("Layer", nn.Conv2d | nn.Conv3d, nn.Linear)


def _biased(ndim: int, channels_in: int, channels_out: int, kernel: int) -> nn.Conv2d | nn.Conv3d:
    return _xavier(convolution(ndim, channels_in, channels_out, kernel))


def _xavier(layer: Layer) -> Layer:
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class DiscriminatorBlock(nn.Module):
    """Halves every side: conv, pool, conv beside a pooled 1x1 skip, summed and divided by sqrt(2)."""

    def __init__(self, ndim: int, channels_in: int, channels_out: int):
        super().__init__()
        self.ndim = ndim
        self.conv1 = _biased(ndim, channels_in, channels_in, 3)
        self.skip = _xavier(convolution(ndim, channels_in, channels_out, 1, bias=False))
        self.conv2 = _biased(ndim, channels_in, channels_out, 3)

    def forward(self, x: Tensor) -> Tensor:
        """'b channels_in ...' -> 'b channels_out ...', each side halved and rounded up."""
        h = pool(F.leaky_relu(self.conv1(x), SLOPE), self.ndim)
        h = F.leaky_relu(self.conv2(h), SLOPE)
        return (self.skip(pool(x, self.ndim)) + h) / sqrt(2)


class Discriminator(nn.Module):
    """One logit per clip ('b 1'), or per frame ('b t 1') in 2D.

    Args:
        config: widths.
        ndim: 2 judges every frame by itself, 3 the clip.
        clip_shape: (t, h, w) of the clips; the first dense layer is built for it (2D ignores t).
    """

    def __init__(self, config: DiscriminatorConfig, ndim: int, clip_shape: Sequence[int]):
        super().__init__()
        self.ndim = ndim
        widths = [config.base_channels, *(config.base_channels * m for m in config.channel_multipliers)]
        self.conv_in = _biased(ndim, 3, widths[0], 3)
        self.blocks = nn.Sequential(*(DiscriminatorBlock(ndim, i, o) for i, o in itertools.pairwise(widths)))
        self.conv_out = _biased(ndim, widths[-1], widths[-1], 3)
        sides = [ceil(side / 2 ** len(config.channel_multipliers)) for side in clip_shape[-ndim:]]
        self.dense = _xavier(nn.Linear(prod(sides) * widths[-1], widths[-1]))
        self.logit = _xavier(nn.Linear(widths[-1], 1))

    def forward(self, clip: Tensor) -> Tensor:
        """'b 3 t h w' -> logits; high means real."""
        if self.ndim == 3:
            return self._judge(clip)
        return rearrange(self._judge(rearrange(clip, "b c t h w -> (b t) c h w")), "(b t) 1 -> b t 1", t=clip.shape[2])

    def _judge(self, x: Tensor) -> Tensor:
        h = self.blocks(F.leaky_relu(self.conv_in(x), SLOPE))
        h = F.leaky_relu(self.conv_out(h), SLOPE)
        # Channels last before flattening: the order of the official dense layer (spec section 12).
        flat = rearrange(h, "b c t h w -> b (t h w c)" if self.ndim == 3 else "b c h w -> b (h w c)")
        return self.logit(F.leaky_relu(self.dense(flat), SLOPE))
