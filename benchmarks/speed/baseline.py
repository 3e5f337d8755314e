"""Plain PyTorch, which a figure's fast path is held against: the same networks without what makes them faster."""

from typing import Any
from unittest import mock

import torch
from torch import nn

from benchmarks.speed.timing import Work
from magvit_scale import linear
from magvit_scale.vqgan.blocks import Convolution3d


def plain(work: Work) -> Work:
    """The work by torch's own layers, eager, though its networks may have been compiled."""

    def inner() -> Any:
        with (
            torch.compiler.set_stance("force_eager"),
            mock.patch.object(linear, "_suits_onednn", return_value=False),
            mock.patch.object(Convolution3d, "forward", nn.Conv3d.forward),
        ):
            return work()

    return inner
