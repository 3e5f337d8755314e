"""TensorFlow's SAME padding, for networks whose weights were trained with it."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Positions before and after an axis of length `size` under TensorFlow's SAME rule: output ceil(size / stride)."""
    num_out = -(-size // stride)
    total = max((num_out - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def pad_same(x: Tensor, kernel: Sequence[int], stride: Sequence[int], value: float = 0.0) -> Tensor:
    """Pads the last axes, one for each entry of `kernel` and `stride`, as SAME does: an odd rest goes to the end.

    Args:
        x: `... t h w` or `... h w`.
        kernel: lengths along those axes, in their order.
        stride: steps along them.
        value: of the new positions; minus infinity ahead of a maximum.
    """
    sizes = x.shape[-len(kernel) :]
    pairs = [same_padding(*axis) for axis in zip(sizes, kernel, stride, strict=True)]
    # F.pad counts from the last axis.
    return F.pad(x, [side for pair in reversed(pairs) for side in pair], value=value)
