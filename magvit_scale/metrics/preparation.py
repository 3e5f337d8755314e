"""Clips as a protocol's feature network gets them: quantised, then resized step by step. The same for both sets."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from magvit_scale.metrics.protocol import Protocol, Quantiser, Resize
from magvit_scale.metrics.resize import central_crop, resize_tf1


def prepare(clip: Tensor, protocol: Protocol) -> Tensor:
    """Quantises and resizes.

    Args:
        clip: `b c t h w`; values outside of [0, 1] are clipped.
        protocol: its `quantiser` and `feature_resize`.

    Returns:
        `b c t s s` float32 in [0, 1], s the feature network's size.
    """
    clip = quantise(clip.float(), protocol.quantiser)
    for step in protocol.feature_resize:
        clip = _resize(clip, step)
    return clip


def quantise(clip: Tensor, quantiser: Quantiser) -> Tensor:
    """A clip with 256 values, or with all of them; any shape, float, clipped to [0, 1]."""
    clip = clip.clamp(0, 1)
    if quantiser == "float":
        return clip
    levels = clip * 255
    return (levels.round() if quantiser == "uint8_round" else levels.floor()) / 255


def _resize(clip: Tensor, step: Resize) -> Tensor:
    height, width = clip.shape[-2:]
    if step.fit == "squash":
        size = (step.size_px, step.size_px)
    else:
        size = (round(height * step.size_px / min(height, width)), round(width * step.size_px / min(height, width)))
    return central_crop(_resize_to(clip, size, step), step.size_px, step.size_px)


def _resize_to(clip: Tensor, size: tuple[int, int], step: Resize) -> Tensor:
    if step.rule == "tf1" and not step.antialias:
        return resize_tf1(clip, *size)
    if step.rule != "half_pixel":
        raise ValueError(f"{step}: no feature network takes clips that were resized so")
    frames = rearrange(clip, "b c t h w -> (b t) c h w")
    frames = F.interpolate(frames, size, mode="bilinear", align_corners=False, antialias=step.antialias)
    return rearrange(frames, "(b t) c h w -> b c t h w", b=clip.shape[0])
