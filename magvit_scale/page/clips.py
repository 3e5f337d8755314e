"""Clips of generate and judge, read from their npz files and checked; every gap is a refusal that names the file."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magvit_scale.config import Refusal, Task
from magvit_scale.page.words import TASK_WORDS

Clips = NDArray[np.uint8]
"""uint8 `n t h w c`."""
PANEL_NAMES = {"original": "original", "reconstruction": "trained", "inflated": "inflated, untrained"}
"""Array of reconstructions.npz -> name over the picture."""


@dataclass(frozen=True, kw_only=True)
class TaskSamples:
    """Generated clips of one task beside their conditions and the real clips; each `n t h w c`."""

    condition: Clips
    generated: Clips
    real: Clips
    names: list[str]
    """Class name of each sample."""


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One sample after each of k decoding steps."""

    clips: Clips
    """`k t h w c`."""
    fixed: NDArray[np.bool_]
    """`k t h w` of the latent grid: tokens that no later step changes."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """samples.npz of generate."""

    tasks: Mapping[Task, TaskSamples]
    trajectories: Mapping[Task, Trajectory]
    fps: float


@dataclass(frozen=True, kw_only=True)
class Reconstructions:
    """reconstructions.npz of judge."""

    panels: Mapping[str, Clips]
    """Name over the picture -> `n t h w c`."""
    names: list[str]
    """Class name of each clip."""


def read_samples(path: Path) -> Samples:
    """Reads samples.npz.

    Raises:
        Refusal: the file is damaged, or an array is missing or of another shape.
    """
    arrays = _arrays(path, ("classes", "fps"))
    tasks = {task: _task_samples(path, arrays, task) for task in TASK_WORDS if f"{task}/generated" in arrays}
    if not tasks:
        raise Refusal(f"{path}: no `<TASK>/generated` array, expected one per task; run `magvit generate` again")
    trajectories = {
        task: _trajectory(path, arrays, task) for task in TASK_WORDS if f"trajectory/{task}/clips" in arrays
    }
    return Samples(tasks=tasks, trajectories=trajectories, fps=float(arrays["fps"]))


def read_reconstructions(path: Path) -> Reconstructions:
    """Reads reconstructions.npz.

    Raises:
        Refusal: the file is missing or damaged, or an array is missing or of another shape.
    """
    arrays = _arrays(path, ("original", "reconstruction", "label", "classes"))
    panels = {title: _clips(path, arrays, key) for key, title in PANEL_NAMES.items() if key in arrays}
    return Reconstructions(panels=panels, names=_class_names(path, arrays, "label"))


def _task_samples(path: Path, arrays: Mapping[str, NDArray[Any]], task: Task) -> TaskSamples:
    condition, generated, real = (_clips(path, arrays, f"{task}/{part}") for part in ("condition", "generated", "real"))
    if not condition.shape == generated.shape == real.shape:
        shapes = f"{condition.shape}, {generated.shape} and {real.shape}"
        raise Refusal(f"{path}: condition, generated and real of {task} have shapes {shapes}, expected equal ones")
    return TaskSamples(
        condition=condition, generated=generated, real=real, names=_class_names(path, arrays, f"{task}/label")
    )


def _trajectory(path: Path, arrays: Mapping[str, NDArray[Any]], task: Task) -> Trajectory:
    clips, fixed = _clips(path, arrays, f"trajectory/{task}/clips"), arrays.get(f"trajectory/{task}/fixed")
    if fixed is None or fixed.ndim != 4 or len(fixed) != len(clips):
        raise Refusal(f"{path}: trajectory/{task}/fixed is not one `t h w` grid per step; run `magvit generate` again")
    return Trajectory(clips=clips, fixed=fixed.astype(bool))


def _clips(path: Path, arrays: Mapping[str, NDArray[Any]], key: str) -> Clips:
    found = arrays.get(key)
    if found is None or found.dtype != np.uint8 or found.ndim != 5 or found.shape[-1] != 3 or not found.size:
        what = "is missing" if found is None else f"is {found.dtype} {found.shape}"
        raise Refusal(f"{path}: {key} {what}, expected uint8 'n t h w 3'; write the file again")
    return found


def _class_names(path: Path, arrays: Mapping[str, NDArray[Any]], key: str) -> list[str]:
    labels, classes = arrays.get(key), arrays["classes"]
    if labels is None or not all(-1 <= label < len(classes) for label in labels):
        raise Refusal(
            f"{path}: {key} is missing or not below the number of classes, {len(classes)}; write the file again"
        )
    return [str(classes[label]) if label >= 0 else "" for label in labels]  # -1: the data have no classes


def _arrays(path: Path, needed: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except FileNotFoundError as error:
        raise Refusal(f"{path}: not there; run the program that writes it again") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise Refusal(f"{path}: not a readable npz ({error}); write the file again") from error
    if missing := [key for key in needed if key not in arrays]:
        raise Refusal(f"{path}: no array {', '.join(missing)}; write the file again")
    return arrays
