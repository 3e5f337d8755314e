"""What a training run shows in TensorBoard at every `run.sample_every`: the same held-out clips each time."""

from math import isnan

from einops import rearrange
from torch import Tensor

from magvit_scale.commit.tasks import show_given
from magvit_scale.config import Task
from magvit_scale.data.clips import to_frames
from magvit_scale.metrics.reconstruction import WINDOW_TAPS, psnr, psnr_moving, ssim
from magvit_scale.pipeline import Generated, MagvitPipeline
from magvit_scale.training.pictures import Pixels, stack_rows, token_cells
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
    "time, light where they are kept."
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
    tracker.picture(step, f"decoding/{task}", _decoding_strip(pipeline, made), DECODING_ROWS)


def _scores(original: Tensor, reconstruction: Tensor) -> dict[str, float]:
    """Those that there are: none of motion where nothing moves, no SSIM of frames smaller than its window."""
    found = {"psnr": psnr(original, reconstruction).mean().item(), "psnr_moving": psnr_moving(original, reconstruction)}
    if min(original.shape[-2:]) >= WINDOW_TAPS:
        found["ssim"] = ssim(original, reconstruction).mean().item()
    return {name: score for name, score in found.items() if not isnan(score)}


def _decoding_strip(pipeline: MagvitPipeline, made: Generated) -> Pixels:
    """'h w 3': the first clip after every decoding step, its middle frame over the tokens of that time."""
    t, h, w = pipeline.transformer.latent_shape
    frames = to_frames(pipeline.detokenize(made.decoded.tokens_by_step[:, 0]))
    is_kept = rearrange(made.decoded.fixed_by_step[:, 0], "k (t h w) -> k t h w", t=t, h=h, w=w)[:, t // 2]
    _, num_frames, height, width, _ = frames.shape
    cells = token_cells(is_kept.cpu().numpy(), (height, width))
    return stack_rows([frames[:, num_frames // 2, None], cells[:, None]])[0]
