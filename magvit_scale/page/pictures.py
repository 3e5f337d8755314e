"""Moving pictures as HTML: clips side by side in one animated WebP, so that they never run apart.

Beside each lies a still picture, which the page's style shows instead where a reader stops the movement or has asked
their system for less of it.
"""

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from magvit_scale.page.clips import Clips
from magvit_scale.video import Frames

PANEL_PX = 128
"""Side of a clip on the page, about: clips are enlarged by a whole factor."""
LEAST_PANEL_PX = 80
"""On a narrow screen, where a strip of many panels scrolls in its own box."""
NUM_OPEN = 4
"""Samples that are seen without a click."""


def strips(panels: Sequence[tuple[str, Clips]], captions: Sequence[str], fps: float, max_bytes: int) -> str:
    """Samples as figures, the panels of a sample beside each other.

    Args:
        panels: name over the picture and `n t h w c`, equal shapes.
        captions: text under each of the n samples.
        fps: frames per second.
        max_bytes: samples are left out, from the last, until the page grows by no more than this; two always stay.

    Returns:
        HTML.
    """
    figures: list[str] = []
    for index, caption in enumerate(captions):
        figures.append(_strip([title for title, _ in panels], [clips[index] for _, clips in panels], caption, fps))
        if len(figures) > 2 and sum(map(len, figures)) > max_bytes:
            figures.pop()
            break
    first, rest = "".join(figures[:NUM_OPEN]), figures[NUM_OPEN:]
    more = (
        f'<details><summary>{len(rest)} more</summary><div class="strips">{"".join(rest)}</div></details>'
        if rest
        else ""
    )
    return f'<div class="strips">{first}</div>{more}'


def moving_picture(frames: Clips, fps: float, alt: str, width_px: int, style: str = "") -> str:
    """One clip `t h w c` as two images that hold their own data: a moving one and its middle frame.

    Args:
        frames: uint8 `t h w c`.
        fps: frames per second.
        alt: what a reader hears who can't see it.
        width_px: largest width on the page.
        style: more CSS.
    """
    height, width = frames.shape[1:3]
    box = f"max-width:{width_px}px;aspect-ratio:{width}/{height};{style}"
    said = f'alt="{escape(alt)}" width="{width}" height="{height}" style="{box}"'
    pictures = {"moving": animated_webp(frames, fps), "still": animated_webp(frames[len(frames) // 2 :][:1], fps)}
    return "".join(
        f'<img class="{kind}" {said} src="data:image/webp;base64,{base64.b64encode(data).decode()}">'
        for kind, data in pictures.items()
    )


def latent_grid(fixed: NDArray[np.bool_]) -> str:
    """Which tokens are decided, `t h w` bool, as one small drawing per latent frame in the page's own colours."""
    _, height, width = fixed.shape
    return "".join(
        f'<svg class="latent" viewBox="0 0 {width} {height}" aria-hidden="true"><path d="{_cells(frame)}"/></svg>'
        for frame in fixed
    )


def enlargement(size_px: int, target_px: int = PANEL_PX) -> int:
    """The whole factor that brings a side of `size_px` nearest to `target_px`."""
    return max(1, round(target_px / size_px))


def _strip(titles: Sequence[str], clips: Sequence[Clips], caption: str, fps: float) -> str:
    width = clips[0].shape[2]
    gap, factor = max(1, width // 16), enlargement(width)
    blank = np.zeros_like(clips[0][:, :, :gap])
    joined = np.concatenate([part for clip in clips for part in (blank, clip)][1:], axis=2)
    total = joined.shape[2] * factor
    least = f"min-width:{LEAST_PANEL_PX * len(clips)}px"
    picture = moving_picture(
        joined, fps, f"{', '.join(titles)}: {caption}", total, f"{least};{_hidden_gaps(len(clips), width, gap)}"
    )
    heads = "".join(f"<span>{escape(title)}</span>" for title in titles)
    return (
        f'<figure class="strip" style="max-width:{total}px">'
        f'<div class="heads" style="{least};gap:{100 * gap * factor / total:.2f}%">{heads}</div>'
        f"{picture}<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _hidden_gaps(num_panels: int, width: int, gap: int) -> str:
    """A mask, because the page's colour between the panels is not known when they are drawn: light or dark."""
    total, stops = num_panels * width + (num_panels - 1) * gap, []
    for panel in range(num_panels):
        start = panel * (width + gap)
        left, right = 100 * start / total, 100 * (start + width) / total
        stops += [f"#0000 {left:.3f}%,#000 {left:.3f}%,#000 {right:.3f}%,#0000 {right:.3f}%"]
    gradient = f"linear-gradient(90deg,{','.join(stops)})"
    return f"-webkit-mask-image:{gradient};mask-image:{gradient}"


def _cells(frame: NDArray[np.bool_]) -> str:
    """One path for all True cells; runs along a row are joined, which keeps large grids small."""
    path = []
    for row, cells in enumerate(frame):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], cells.astype(np.int8), [0]])))
        path += [f"M{start} {row}h{stop - start}v1h{start - stop}z" for start, stop in edges.reshape(-1, 2)]
    return "".join(path)


def animated_webp(frames: Frames, fps: float) -> bytes:
    """An endlessly looping lossless WebP of uint8 't h w 3' frames."""
    first, *rest = map(Image.fromarray, frames)
    buffer = io.BytesIO()
    duration = max(1, round(1000 / fps))
    first.save(buffer, "WEBP", save_all=True, append_images=rest, duration=duration, loop=0, lossless=True, method=2)
    return buffer.getvalue()
