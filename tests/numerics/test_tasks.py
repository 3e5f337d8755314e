"""Condition masks and canvases of every task, against the official arrays."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from magvit_scale.commit.tasks import SPECS, condition_mask, latent_mask
from magvit_scale.config import Task, TransformerConfig
from tests.numerics.official_names import TASK_NAMES

Golden = Callable[[str], Mapping[str, np.ndarray]]
GIVEN = {task: name for task, name in TASK_NAMES.items() if task != "CG"}


def test_masks_are_the_official_ones(golden: Golden, agree: Callable[..., None]) -> None:
    official = golden("task_masks.npz")
    for size in sorted({key.split("/")[0] for key in official}):
        for task, name in GIVEN.items():
            pixels, latents = official[f"{size}/{name}/video_mask"], official[f"{size}/{name}/latent_mask"]
            found = latent_mask(task, latents.shape, TransformerConfig())
            agree("tasks", f"{task}: given latents", found, latents, tolerance=0, reason="a mask", case=size)
            agree("tasks", f"{task}: given pixels", condition_mask(task, pixels.shape), pixels,
                  tolerance=0, reason="a mask", case=size)  # fmt: skip


def stored_canvases(folder: Path, golden: Golden) -> Iterator[tuple[str, Task, np.ndarray, np.ndarray]]:
    """Size, task, video and canvas: a size has a file with all tasks, or one for each and one with the video."""
    for path in sorted(folder.glob("task_cond_video_*.npz")):
        arrays, (size, *name) = golden(path.name), path.stem.removeprefix("task_cond_video_").split("_")
        shown = {"_".join(name): arrays["cond_video"]} if name else dict(arrays)
        video = golden(f"task_inputs_{size}.npz")["video"] if name else shown.pop("video")
        yield from ((size, task, video, shown[name]) for task, name in GIVEN.items() if name in shown)


def test_canvases_are_the_official_ones(golden_folder: Path, golden: Golden, agree: Callable[..., None]) -> None:
    found = set()
    for size, task, video, expected in stored_canvases(golden_folder, golden):
        clip = rearrange(torch.from_numpy(video), "b t h w c -> b c t h w")
        canvas = rearrange(SPECS[task].fill(clip), "b c t h w -> b t h w c")  # type: ignore[misc]
        agree(
            "tasks",
            f"{task}: condition clip",
            canvas,
            expected,
            tolerance=0,
            reason="the same float32 operations",
            case=size,
        )
        found.add((size, task))
    assert {("tiny", task) for task in GIVEN} | {("ucf", task) for task in ("FP", "FI", "OPC", "IPC")} <= found
