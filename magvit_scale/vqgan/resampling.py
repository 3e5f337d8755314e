"""Half and double sides; and a convolution with the halving behind it, or the doubling before it, as one.

A kernel of 3 taps and the mean of every 2 of its results are one of 4 taps at every other cell. On cells that are
repeated, a kernel of 3 is one of 2 taps on the cells as they were, another one for each of the copies. That leaves two
thirds of the multiplications along each side, 8 of 27 over all three; weights and, but for rounding, results are the
same. What is about to be pooled is never made, nor what is repeated, of which the backward pass would keep a copy. Both
are computed with the cells of each window of 2 as channels of one cell, so as convolutions of stride 1 with 2 taps,
which every library has fast (Shi et al. 2016, "Is the deconvolution layer the same as a convolutional layer?").
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magvit_scale.vqgan.layout import gains_by_layout, laid_out
from magvit_scale.vqgan.reflection import reflect
from magvit_scale.vqgan.twice_differentiable import FORWARD, mean
from magvit_scale.vqgan.windows import Sides, depth_to_space, space_to_depth

AVERAGE_POOL = {2: F.avg_pool2d, 3: F.avg_pool3d}
Taps = Callable[[Tensor, Tensor, Tensor], list[Tensor]]
"""The 3 taps of a kernel along a side -> the 4 of a wider one."""
Layer = nn.Conv2d | nn.Conv3d


def pool(x: Tensor, sides: Sides | None = None) -> Tensor:
    """Mean over windows of 2 along `sides`, or all; TF's SAME rule, so a lone last cell is its own mean (spec 1.5)."""
    pooled = range(2, x.ndim) if sides is None else sides
    # A side of one cell is its own mean; avg_pool3d refuses a window that is larger than a side.
    window = [min(2, x.shape[dim]) if dim in pooled else 1 for dim in range(2, x.ndim)]
    if max(window) == 1:
        return x
    if (x.device.type != "cpu" or torch.compiler.is_dynamo_compiling()) and _divides(window, x.shape[2:]):
        return _pool_whole(x, window)
    # Back from float32, which autocast takes for 3D on a CPU.
    return AVERAGE_POOL[x.ndim - 2](x, window, ceil_mode=True, count_include_pad=False).to(x.dtype)


def _divides(window: Sequence[int], sides: Sequence[int]) -> bool:
    return all(side % own == 0 for side, own in zip(sides, window, strict=True))


def _pool_whole(x: Tensor, window: Sequence[int]) -> Tensor:
    """Torch's own 3D pooling on a GPU brings a clip into another layout and back; compiled, it leaves a clip with its
    channels apart.
    """
    cells = x.movedim(1, -1)
    for dim, own in reversed(list(enumerate(window, start=1))):
        cells = cells.unflatten(dim, (-1, own))
    return mean(cells, *range(2, cells.ndim - 1, 2)).movedim(-1, 1)


def blur(x: Tensor) -> Tensor:
    """Halves h and w of 'b c h w' with the kernel [1, 3, 3, 1] / 8 along each; TF's SAME rule of zeros (spec 4.2)."""
    taps = x.new_tensor([1.0, 3.0, 3.0, 1.0]) / 8
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, -1, -1)
    right, below = (1 + side % 2 for side in (x.shape[3], x.shape[2]))
    return F.conv2d(F.pad(x, (1, right, 1, below)), kernel, stride=2, groups=x.shape[1])


def convolve_and_pool(layer: Layer, x: Tensor, sides: Sides) -> Tensor:
    """`pool` along `sides` of a convolution.

    Args:
        layer: of kernel 3, from `convolution`.
        x: 'b channels_in [t] h w', even along `sides`.
        sides: at least one.

    Returns:
        'b channels_out [t] h w', `sides` halved.

    Raises:
        EinopsError: one of `sides` is odd.
    """
    weight = space_to_depth(widen(layer.weight, sides, taps_of_means), sides)
    return _convolve(_surround(x, layer.padding_mode, sides), weight, layer.bias)


def repeat_and_convolve(layer: Layer, x: Tensor, sides: Sides) -> Tensor:
    """A convolution of `x` with every cell twice along `sides` (spec 1.3).

    Args:
        layer: of kernel 3, from `convolution`.
        x: 'b channels_in [t] h w'.
        sides: at least one.

    Returns:
        'b channels_out [t] h w', `sides` doubled.
    """
    weight = widen(layer.weight, sides, taps_of_copies).transpose(0, 1)
    weight = space_to_depth(weight, sides).transpose(0, 1)
    bias = None if layer.bias is None else layer.bias.repeat(2 ** len(sides))
    windows = _convolve(_surround_repeated(x, layer.padding_mode, sides), weight, bias)
    return _crop(depth_to_space(windows, sides), sides)


def widen(weight: Tensor, sides: Sides, taps: Taps) -> Tensor:
    """A kernel of 3 taps, 'o i [t] h w', to one of 4 along `sides`."""
    for dim in sides:
        weight = torch.stack(taps(*weight.unbind(dim)), dim)
    return weight


def taps_of_means(a: Tensor, b: Tensor, c: Tensor) -> list[Tensor]:
    """On cells 2i - 1 to 2i + 2, for the mean of what a kernel gives at 2i and 2i + 1."""
    return [a / 2, (a + b) / 2, (b + c) / 2, c / 2]


def taps_of_copies(a: Tensor, b: Tensor, c: Tensor) -> list[Tensor]:
    """On cells i and i + 1, by turns for the second copy of i and the first of i + 1."""
    return [a + b, a, c, b + c]


def _surround(x: Tensor, padding: str, sides: Sides) -> Tensor:
    """One more cell at either end of each side; then `space_to_depth`."""
    if padding == "reflect" and x.ndim == 5 and gains_by_layout(x):
        return reflect(x, sides)
    around = F.pad(x, [1] * 2 * (x.ndim - 2), mode="reflect" if padding == "reflect" else "constant")
    return space_to_depth(around, sides)


def _surround_repeated(x: Tensor, padding: str, sides: Sides) -> Tensor:
    """One more cell at either end of each side, as padding would add it were every cell there twice along `sides`: the
    last but one, which reflection copies, is then the last.
    """
    if padding == "zeros":
        return F.pad(x, [1] * 2 * (x.ndim - 2))
    # Not F.pad's `replicate`, whose gradient on a GPU is added up in any order.
    for dim in range(2, x.ndim):
        inner = 0 if dim in sides else 1
        first, last = x.narrow(dim, inner, 1), x.narrow(dim, x.shape[dim] - 1 - inner, 1)
        x = torch.cat([first, x, last], dim)
    return x


def _crop(x: Tensor, sides: Sides) -> Tensor:
    """Without the first and last cell of each of `sides`; not by slices, whose gradients take a pass for each side."""
    return F.pad(x, [-int(dim in sides) for dim in reversed(range(2, x.ndim)) for _ in range(2)])


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if gains_by_layout(x):
        x, weight = laid_out(x), laid_out(weight)
    return FORWARD[x.ndim - 2](x, weight, bias)
