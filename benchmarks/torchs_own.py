"""Our networks without what makes them faster: plain PyTorch, which fast paths are held against. All but the
discriminator's convolutions and leaky ReLU, see vqgan/twice_differentiable.py: r1 by torch's own was not tried at the
paper's size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from magvit_scale import linear
from magvit_scale.vqgan import resampling
from magvit_scale.vqgan.blocks import ResidualBlock
from magvit_scale.vqgan.convolution import Convolution2d, Convolution3d
from magvit_scale.vqgan.resampling import pool
from magvit_scale.vqgan.windows import Sides


def _never(*_: Any) -> bool:
    """Not a mock, which would keep what it is given."""
    return False


def _convolve(layer: Any, x: Tensor, *, repeated: Sides = ()) -> Tensor:
    if repeated:
        factors = [2.0 if dim in repeated else 1.0 for dim in range(2, x.ndim)]
        x = F.interpolate(x, scale_factor=factors, mode="nearest")
    return layer._conv_forward(x, layer.weight, layer.bias)


def _compute_block(block: Any, x: Tensor) -> Tensor:
    h = block.conv2(F.silu(block.norm2(block._first(x))))
    return pool(block.shortcut(x) + h, block.pooled)


@contextmanager
def torchs_own_linear_layers() -> Iterator[None]:
    """A context in which only products of linear layers are torch's own, which its counters know."""
    with mock.patch.object(linear, "_suits_onednn", _never), mock.patch.object(linear, "_suits_cublas", _never):
        yield


@contextmanager
def torchs_own_layers() -> Iterator[None]:
    """A context in which they run eager and by torch's own layers, though they may have been compiled."""
    with (
        torch.compiler.set_stance("force_eager"),
        torchs_own_linear_layers(),
        mock.patch.object(Convolution2d, "forward", _convolve),
        mock.patch.object(Convolution3d, "forward", _convolve),
        mock.patch.object(ResidualBlock, "_compute", _compute_block),
        mock.patch.object(resampling, "_divides", _never),
    ):
        yield
