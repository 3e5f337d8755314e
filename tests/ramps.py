"""Frames that tell where they stand in a video, and how near two videos are."""

import numpy as np


def moving_ramp(num_frames: int, size_px: int = 32) -> np.ndarray:
    """Frame t is a smooth picture whose mean brightness says t."""
    ramp = np.linspace(0, 60, size_px)[None, :, None, None] + np.linspace(0, 40, size_px)[None, None, :, None]
    return np.broadcast_to(
        ramp + 3 * np.arange(num_frames)[:, None, None, None], (num_frames, size_px, size_px, 3)
    ).astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))
