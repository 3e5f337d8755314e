"""Our networks without what makes them faster: plain PyTorch, which fast paths are held against. All but the
discriminator's convolutions and leaky ReLU, see vqgan/twice_differentiable.py: r1 by torch's own was not tried at the
paper's size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn

from magvit_scale import linear
from magvit_scale.vqgan import blocks
from magvit_scale.vqgan.blocks import Convolution3d


def _never(*_: Any) -> bool:
    """Not a mock, which would keep what it is given."""
    return False


@contextmanager
def torchs_own_layers() -> Iterator[None]:
    """A context in which they run eager and by torch's own layers, though they may have been compiled."""
    with (
        torch.compiler.set_stance("force_eager"),
        mock.patch.object(linear, "_suits_onednn", _never),
        mock.patch.object(linear, "_suits_cublas", _never),
        mock.patch.object(Convolution3d, "forward", nn.Conv3d.forward),
        mock.patch.object(blocks, "_divides", _never),
    ):
        yield
