"""The resizing of the official evaluation: TensorFlow 1's bilinear rule, and the central crop (spec section 10.1).

The rule puts output pixel i at input position i * in / out, without half a pixel's shift. Any other rule of bilinear
resizing moves the picture by a fraction of a pixel, and a Frechet video distance with it.
"""

import torch
from einops import rearrange
from torch import Tensor

from magvit_scale.config import Refusal


def resize_tf1(clip: Tensor, height: int, width: int) -> Tensor:
    """Bilinear resizing with src = dst * in / out, and no smoothing where the picture shrinks.

    Args:
        clip: `b c t h w`, floating point, any range.
        height: of the result, px.
        width: of the result, px.

    Returns:
        `b c t height width` in the clip's dtype.
    """
    left, right, share = _neighbours(clip.shape[-1], width, clip)
    top, bottom, downwards = _neighbours(clip.shape[-2], height, clip)
    clip = torch.lerp(clip[..., left], clip[..., right], share)
    return torch.lerp(clip[..., top, :], clip[..., bottom, :], rearrange(downwards, "h -> h 1"))


def central_crop(clip: Tensor, height: int, width: int) -> Tensor:
    """The middle `height` x `width` px of a `b c t h w` clip; an odd rest is larger below and on the right.

    Raises:
        Refusal: the clip is smaller than its crop.
    """
    rest_h, rest_w = clip.shape[-2] - height, clip.shape[-1] - width
    if min(rest_h, rest_w) < 0:
        raise Refusal(f"central crop of {width} x {height} px: frames have {clip.shape[-1]} x {clip.shape[-2]} px")
    top, left = rest_h // 2, rest_w // 2
    return clip[..., top : top + height, left : left + width]


def resize_and_crop(clip: Tensor, short_side: int = 256, size: int = 224) -> Tensor:
    """The option `resize_crop` of spec section 10.1: `resize_tf1` to height 256, then the central crop.

    The official code sets the height to 256, whichever side is the short one, and rounds the width down; here the
    short side becomes 256, which is the same for every frame that is not upright.

    Args:
        clip: `b c t h w`, floating point.
        short_side: px of the shorter side before the crop.
        size: px of both sides of the result.

    Returns:
        `b c t size size`.
    """
    shorter = min(clip.shape[-2:])
    height, width = (short_side * side // shorter for side in clip.shape[-2:])
    return central_crop(resize_tf1(clip, height, width), size, size)


def _neighbours(num_in: int, num_out: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Indices before and after each output position, and the share of the one after; each `num_out`."""
    positions = torch.arange(num_out, dtype=torch.float32, device=like.device) * (num_in / num_out)
    before = positions.floor().long()
    return before, (before + 1).clamp(max=num_in - 1), (positions - before).to(like.dtype)
