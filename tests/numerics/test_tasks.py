"""Condition masks and canvases of every task, against the official arrays."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from einops import rearrange

from magvit_scale.commit.tasks import SPECS, canvases_of, condition_mask, latent_mask
from magvit_scale.config import TransformerConfig
from tests.numerics.official_names import TASK_NAMES

Golden = Callable[[str], Mapping[str, np.ndarray]]
GIVEN = {task: name for task, name in TASK_NAMES.items() if task != "CG"}


def test_masks_are_the_official_ones(golden: Golden, agree: Callable[..., None]) -> None:
    official = golden("task_masks.npz")
    for size in sorted({key.split("/")[0] for key in official}):
        for task, name in GIVEN.items():
            pixels, latents = official[f"{size}/{name}/video_mask"], official[f"{size}/{name}/latent_mask"]
            found = latent_mask(task, latents.shape, TransformerConfig())
            agree("tasks", f"{size} latents given by {task}", found, latents, tolerance=0, reason="a mask")
            agree("tasks", f"{size} pixels given by {task}", condition_mask(task, pixels.shape), pixels,
                  tolerance=0, reason="a mask")  # fmt: skip


def test_canvases_are_the_official_ones(golden: Golden, agree: Callable[..., None]) -> None:
    official = golden("task_cond_video_tiny.npz")
    clip = rearrange(torch.from_numpy(official["video"]), "b t h w c -> b c t h w")
    for task in canvases_of(GIVEN):
        found = rearrange(SPECS[task].fill(clip), "b c t h w -> b t h w c")  # type: ignore[misc]
        exact = task != "FI"
        reason = "pixels are copied or black" if exact else "float32 interpolation between two frames"
        agree("tasks", f"tiny canvas of {task}", found, official[GIVEN[task]],
              tolerance=0 if exact else 2e-7, reason=reason)  # fmt: skip


def test_large_canvases_are_the_official_ones(golden: Golden, agree: Callable[..., None]) -> None:
    (clip,) = golden("task_inputs_ucf.npz").values()
    channels_first = rearrange(torch.from_numpy(clip), "b t h w c -> b c t h w")
    for task in ("FP", "FI", "OPC", "IPC"):
        (expected,) = golden(f"task_cond_video_ucf_{GIVEN[task]}.npz").values()
        found = rearrange(SPECS[task].fill(channels_first), "b c t h w -> b t h w c")  # type: ignore[misc]
        agree("tasks", f"ucf canvas of {task}", found, expected, tolerance=2e-7, reason="float32 interpolation")
