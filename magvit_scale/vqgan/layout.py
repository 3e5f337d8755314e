"""How clips and kernels lie in a GPU's memory, so that its tensor cores multiply them."""

import torch
import torch.nn.functional as F
from torch import Tensor

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
GRANULARITY = 8
"""Channels of 16 bits that tensor cores take at once. With a clip's 3, cuDNN falls back to kernels without them; one of
those took a tenth of a 3D-VQGAN's training step on an H100."""


def gains_by_layout(x: Tensor) -> bool:
    """Whether convolutions of `x` are to see it `laid_out`: compiled, and clips on a GPU; torch's own GroupNorm there
    would copy frames back at once.

    Not on a CPU that compiles nothing: there torch's GroupNorm takes the variance of such tensors as E[x^2] - E[x]^2,
    with 250 times the error.
    """
    return torch.compiler.is_dynamo_compiling() or (x.device.type != "cpu" and x.ndim == 5)


def laid_out(x: Tensor) -> Tensor:
    """'b c ...' with the channels of a cell side by side in memory; on a GPU zeros are added until there are a multiple
    of `GRANULARITY`. For the input and the weight of a convolution, whose sums they leave as they are.
    """
    missing = -x.shape[1] % GRANULARITY if x.device.type == "cuda" else 0
    widened = F.pad(x, [0] * (2 * x.ndim - 3) + [missing]) if missing else x
    return widened.contiguous(memory_format=LAST[x.ndim])
