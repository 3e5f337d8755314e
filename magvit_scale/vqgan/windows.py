"""The 2 cells of each window along some sides as channels of one cell, and back."""

from einops import rearrange
from torch import Tensor

from magvit_scale.vqgan.layout import gains_by_layout

CELLS = {4: ("c", "(h q) (w r)"), 5: ("c", "(t p) (h q) (w r)")}
WINDOWS = {4: ("(q r c)", "h w"), 5: ("(p q r c)", "t h w")}
"""Channels and cells: p, q, r are places within a window along t, h, w."""
Sides = tuple[int, ...]
"""Dimensions of 'b c h w' or 'b c t h w'."""


def space_to_depth(x: Tensor, sides: Sides) -> Tensor:
    """'b c ...' -> 'b (windows c) ...', with `sides`, which must be even, halved."""
    return _rearrange(x, CELLS[x.ndim], WINDOWS[x.ndim], sides)


def depth_to_space(x: Tensor, sides: Sides) -> Tensor:
    """Undoes `space_to_depth`."""
    return _rearrange(x, WINDOWS[x.ndim], CELLS[x.ndim], sides)


def window_of(ndim: int, sides: Sides) -> tuple[int, ...]:
    """Cells of a window along each side of a tensor of `ndim` dimensions."""
    return tuple(2 if dim in sides else 1 for dim in range(2, ndim))


def _rearrange(x: Tensor, before: tuple[str, str], after: tuple[str, str], sides: Sides) -> Tensor:
    """Written with channels first or last, as convolutions of `x` want it; `x` itself where there are no sides."""
    if not sides:
        return x
    lengths = dict(zip("pqr"[5 - x.ndim :], window_of(x.ndim, sides), strict=True))
    if gains_by_layout(x):
        pattern = f"b {before[1]} {before[0]} -> b {after[1]} {after[0]}"
        return rearrange(x.movedim(1, -1), pattern, **lengths).movedim(-1, 1)
    return rearrange(x, f"b {before[0]} {before[1]} -> b {after[0]} {after[1]}", **lengths)
