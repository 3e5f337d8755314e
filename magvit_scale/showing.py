"""What a training run shows in TensorBoard at every `run.sample_every`: the same held-out clips each time."""

from math import isnan

from torch import Tensor

from magvit_scale.commit.tasks import show_given
from magvit_scale.config import Task
from magvit_scale.data.clips import to_frames
from magvit_scale.metrics.reconstruction import WINDOW_TAPS, psnr, psnr_moving, ssim
from magvit_scale.pictures import decoding_steps
from magvit_scale.pipeline import MagvitPipeline
from magvit_scale.training.pictures import stack_rows
from magvit_scale.training.tracking import Tracker

ERROR_FACTOR = 4
"""What an error is enlarged by, so that it can be seen: white is an error of 1/4 or more."""
RECONSTRUCTION_ROWS = (
    "From above: held-out clips, their reconstructions by the averaged weights, the absolute error "
    f"{ERROR_FACTOR} times."
)
TASK_ROWS = "From above: what the task gives (the rest is grey), what the model generates, the tokenized real clip."
DECODING_ROWS = (
    "From left to right, after each decoding step: the middle frame of the first clip, and below it the tokens of that "
    "time: grey unknown, blue kept, orange kept since this step."
)


def show_reconstructions(tracker: Tracker, step: int, original: Tensor, reconstruction: Tensor) -> None:
    """Clips over their reconstructions and the error, moving and as the middle frame alone; and the scores of exactly
    these clips. Main rank only.

    Args:
        tracker: receives reconstructions/* and validation/*.
        step: optimiser steps completed.
        original: 'n 3 t h w' in [0, 1].
        reconstruction: as `original`.
    """
    error = ERROR_FACTOR * (original - reconstruction).abs()
    frames = stack_rows([to_frames(clips) for clips in (original, reconstruction, error)])
    tracker.moving_picture(step, "reconstructions/moving", frames, RECONSTRUCTION_ROWS)
    tracker.picture(step, "reconstructions/still", frames[len(frames) // 2], RECONSTRUCTION_ROWS)
    tracker.scalars(step, {f"validation/{name}": score for name, score in _scores(original, reconstruction).items()})


def show_task(
    tracker: Tracker,
    step: int,
    pipeline: MagvitPipeline,
    task: Task,
    condition: Tensor,
    label: Tensor,
    real: Tensor,
    seed: int,
) -> None:
    """What the model generates for a task between what it is given and the real clips, moving; and how the first clip
    came about. Main rank only.

    Args:
        tracker: receives generated/TASK and decoding/TASK.
        step: optimiser steps completed.
        pipeline: of the transformer as it is.
        task: its name in the paper.
        condition: 'b t h w' int64, tokens of the task's canvas.
        label: 'b' int64, classes.
        real: 'b 3 t h w' in [0, 1], detokenized.
        seed: of the sampling.
    """
    made = pipeline.generate_from_tokens(task, condition, label, len(label), seed=seed)
    frames = stack_rows([to_frames(clips) for clips in (show_given(task, real), made.clips, real)])
    tracker.moving_picture(step, f"generated/{task}", frames, TASK_ROWS)
    clips_by_step, fixed = pipeline.trajectory(made.decoded)
    strip = decoding_steps(to_frames(clips_by_step), fixed.cpu().numpy())
    tracker.picture(step, f"decoding/{task}", strip, DECODING_ROWS)


def _scores(original: Tensor, reconstruction: Tensor) -> dict[str, float]:
    """Those that there are: none of motion where nothing moves, no SSIM of frames smaller than its window."""
    found = {"psnr": psnr(original, reconstruction).mean().item(), "psnr_moving": psnr_moving(original, reconstruction)}
    if min(original.shape[-2:]) >= WINDOW_TAPS:
        found["ssim"] = ssim(original, reconstruction).mean().item()
    return {name: score for name, score in found.items() if not isnan(score)}
