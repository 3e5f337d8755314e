"""Still pictures of clips: frames over time, and a clip becoming sure step by step. uint8 'h w 3', RGB. No torch."""

import io
from collections.abc import Sequence

import numpy as np
from einops import rearrange, repeat
from numpy.typing import NDArray
from PIL import Image

from magvit_scale.video import Frames

Picture = NDArray[np.uint8]

PANEL_PX = 128
"""Frames smaller than this are enlarged by a whole factor."""
GAP_PX = 4
WHITE, UNKNOWN, KEPT, NEWLY_KEPT = (255, 255, 255), (222, 222, 218), (42, 93, 143), (224, 122, 31)


def enlarged(frames: Frames) -> Frames:
    """Frames 't h w c', large enough to be looked at."""
    scale = max(1, PANEL_PX // frames.shape[1])
    return repeat(frames, "t h w c -> t (h sh) (w sw) c", sh=scale, sw=scale)


def png_bytes(picture: Picture) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def time_grid(clips: Sequence[Frames]) -> Picture:
    """Clips 't h w c' of equal shape below each other, their frames side by side, with white gaps."""
    spaced = np.pad(np.stack(clips), [(0, 0), (0, 0), (0, GAP_PX), (0, GAP_PX), (0, 0)], constant_values=255)
    return rearrange(spaced, "n t h w c -> (n h) (t w) c")[:-GAP_PX, :-GAP_PX]


def decoding_steps(clips: Frames, fixed: NDArray[np.bool_]) -> Picture:
    """The middle frame after each decoding step, side by side; below, the tokens of that frame: not yet kept in grey,
    kept in blue, kept since this step in orange.

    Args:
        clips: 'k t h w c', the clip after each of k steps.
        fixed: 'k t h w' of the latent grid, which tokens no later step changes.
    """
    num_frames, num_latents = clips.shape[1], fixed.shape[1]
    frames = enlarged(clips[:, num_frames // 2])
    kept = fixed[:, num_frames // 2 * num_latents // num_frames]
    before = np.concatenate([np.zeros_like(kept[:1]), kept[:-1]])
    tokens = np.full((*kept.shape, 3), UNKNOWN, np.uint8)
    tokens[kept], tokens[kept & ~before] = KEPT, NEWLY_KEPT
    _, height, width, _ = frames.shape
    scale = min(height // kept.shape[1], width // kept.shape[2])
    cells = repeat(tokens, "k h w c -> k (h sh) (w sw) c", sh=scale, sw=scale)
    if scale > 2:  # lines between the tokens
        cells[:, scale - 1 :: scale] = cells[:, :, scale - 1 :: scale] = WHITE
    margins = [(0, 0), (0, height - cells.shape[1]), (0, width - cells.shape[2]), (0, 0)]
    return time_grid([frames, np.pad(cells, margins, constant_values=255)])
