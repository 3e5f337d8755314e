"""Clips on a protocol's two roads: real frames to the model's size, and clips of both sets to the feature network."""

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from magvit_scale.config import Refusal
from magvit_scale.metrics.protocol import Protocol, Quantiser, Resize
from magvit_scale.metrics.resize import resize_tf1
from magvit_scale.video import Frames


def fit(frames: Frames, protocol: Protocol, place: float = 0.5) -> Tensor:
    """Stored frames of a real clip -> the clip that a model of the protocol would make.

    Args:
        frames: uint8 't h w 3'.
        protocol: its `data_resize` and `size_px`.
        place: of the square along the long side, see `RealClip`.

    Returns:
        `c t s s` float32 in [0, 1], s = `size_px`.

    Raises:
        Refusal: the frames are smaller than the model's, or no square and there is no step that makes one.
    """
    height, width = frames.shape[1:3]
    if min(height, width) < protocol.size_px:
        raise Refusal(
            f"protocol {protocol.name}: stored frames of {width} x {height} px, expected a short side of "
            f"{protocol.size_px} px or more; write the shards with size_px={protocol.size_px}"
        )
    if place != 0.5 and height == width:
        raise Refusal(
            f"protocol {protocol.name}: stored frames of {width} x {height} px, expected a long side, along which "
            "it takes several crops; write the shards with keep_aspect=true"
        )
    clip = rearrange(torch.from_numpy(np.ascontiguousarray(frames)), "t h w c -> 1 c t h w").float() / 255
    for step in protocol.data_resize:
        clip = _resize(clip, step, place)
    if clip.shape[-2:] != (protocol.size_px, protocol.size_px):
        raise Refusal(
            f"protocol {protocol.name}: stored frames of {width} x {height} px, expected {protocol.size_px} x "
            f"{protocol.size_px}; write the shards with size_px={protocol.size_px}"
        )
    return clip[0]


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


def _resize(clip: Tensor, step: Resize, place: float = 0.5) -> Tensor:
    height, width = clip.shape[-2:]
    if step.fit == "squash":
        size = (step.size_px, step.size_px)
    else:
        size = (round(height * step.size_px / min(height, width)), round(width * step.size_px / min(height, width)))
    return _square(_resize_to(clip, size, step), step.size_px, place)


def _square(clip: Tensor, size_px: int, place: float) -> Tensor:
    """The square at `place` along the long side; of an odd rest the smaller half lies above or on the left."""
    top, left = (int(place * (side - size_px)) for side in clip.shape[-2:])
    return clip[..., top : top + size_px, left : left + size_px]


def _resize_to(clip: Tensor, size: tuple[int, int], step: Resize) -> Tensor:
    if step.rule == "tf1":
        return resize_tf1(clip, *size)
    if step.rule == "lanczos":
        return _lanczos(clip, size)
    if size == clip.shape[-2:]:
        return clip  # an identity, but for rounding
    frames = rearrange(clip, "b c t h w -> (b t) c h w")
    frames = F.interpolate(frames, size, mode="bilinear", align_corners=False, antialias=step.antialias)
    return rearrange(frames, "(b t) c h w -> b c t h w", b=clip.shape[0])


def _lanczos(clip: Tensor, size: tuple[int, int]) -> Tensor:
    """Pillow's, on frames of 256 values as in the tool that takes it; it smooths where a picture shrinks."""
    levels = rearrange(clip * 255, "b c t h w -> (b t) h w c").round().byte().cpu().numpy()
    frames = [np.asarray(Image.fromarray(frame).resize(size[::-1], Image.Resampling.LANCZOS)) for frame in levels]
    return rearrange(torch.from_numpy(np.stack(frames)), "(b t) h w c -> b c t h w", b=len(clip)).to(clip) / 255
