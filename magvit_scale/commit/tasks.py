"""The ten tasks as data: what is given, how the rest is filled, which latents that conditions, which token says so.

MAGVIT section 3.2 and table 1; spec section 7. A region is one rule for pixels and for latents: a boolean 't h w'
mask of any shape. This is the only module of the package that sees pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from magvit_scale.config import TASKS, Task

Shape = tuple[int, int, int]

# Special rows of the embedding table, counted from its end (spec section 5).
MASK_TOKEN = -1
NUM_SPECIAL_TOKENS = 16


@dataclass(frozen=True)
class TaskSpec:
    """One task."""

    title: str
    token: int
    """Negative: counted from the end of the embedding table."""
    region: Callable[[Shape], Tensor] | None
    """Shape (t, h, w) -> bool 't h w', True where the condition is; None: nothing is given."""
    fill: Callable[[Tensor], Tensor] | None
    """Clip 'b c t h w' in [0, 1] -> its condition canvas: given pixels kept, the others filled from them."""
    is_class_conditional: bool = False


def _first_frame(shape: Shape) -> Tensor:
    return (torch.arange(shape[0]) == 0)[:, None, None].expand(shape)


def _first_and_last_frame(shape: Shape) -> Tensor:
    frames = torch.arange(shape[0])
    return ((frames == 0) | (frames == shape[0] - 1))[:, None, None].expand(shape)


def _middle(length: int) -> Tensor:
    position = torch.arange(length)
    return (position >= length // 4) & (position < length // 4 + length // 2)


def _middle_rows(shape: Shape) -> Tensor:
    return _middle(shape[1])[None, :, None].expand(shape)


def _middle_columns(shape: Shape) -> Tensor:
    return _middle(shape[2])[None, None, :].expand(shape)


def _centre(shape: Shape) -> Tensor:
    return _middle_rows(shape) & _middle_columns(shape)


def _moving_columns(shape: Shape) -> Tensor:
    t, _, w = shape
    start = torch.linspace(0, w // 2, t, dtype=torch.float64).round()[:, None]  # half to even, as numpy's round
    columns = torch.arange(w)[None, :]
    return ((columns >= start) & (columns < start + w // 2))[:, None, :].expand(shape)


def _outside_centre(shape: Shape) -> Tensor:
    return ~_centre(shape)


def _outside_moving_centre(shape: Shape) -> Tensor:
    return ~(_middle_rows(shape) & _moving_columns(shape))


def _repeat_first_frame(clip: Tensor) -> Tensor:
    return clip[:, :, :1].expand_as(clip)


def _interpolate_frames(clip: Tensor) -> Tensor:
    share = torch.linspace(0, 1, clip.shape[2], dtype=clip.dtype, device=clip.device)[:, None, None]
    return torch.lerp(clip[:, :, :1], clip[:, :, -1:], share)


def _replicate_edge(clip: Tensor, axis: int) -> Tensor:
    side = clip.shape[axis]
    source = torch.arange(side, device=clip.device).clamp(side // 4, side // 4 + side // 2 - 1)
    return clip.index_select(axis, source)


def _edge_in_rows(clip: Tensor) -> Tensor:
    return _replicate_edge(clip, 3)


def _edge_in_columns(clip: Tensor) -> Tensor:
    return _replicate_edge(clip, 4)


def _edge_around_centre(clip: Tensor) -> Tensor:
    return _edge_in_columns(_edge_in_rows(clip))


def _black_outside(region: Callable[[Shape], Tensor]) -> Callable[[Tensor], Tensor]:
    def fill(clip: Tensor) -> Tensor:
        _, _, t, h, w = clip.shape
        return clip * region((t, h, w)).to(clip)

    return fill


GENERATION, PREDICTION, INTERPOLATION, OUTPAINTING, INPAINTING = -3, -4, -5, -6, -7

SPECS: dict[Task, TaskSpec] = {
    "FP": TaskSpec("frame prediction", PREDICTION, _first_frame, _repeat_first_frame),
    "FI": TaskSpec("frame interpolation", INTERPOLATION, _first_and_last_frame, _interpolate_frames),
    "OPC": TaskSpec("central outpainting", OUTPAINTING, _centre, _edge_around_centre),
    "OPV": TaskSpec("vertical outpainting", OUTPAINTING, _middle_columns, _edge_in_columns),
    "OPH": TaskSpec("horizontal outpainting", OUTPAINTING, _middle_rows, _edge_in_rows),
    "OPD": TaskSpec("dynamic outpainting", OUTPAINTING, _moving_columns, _black_outside(_moving_columns)),
    "IPC": TaskSpec("central inpainting", INPAINTING, _outside_centre, _black_outside(_outside_centre)),
    "IPD": TaskSpec("dynamic inpainting", INPAINTING, _outside_moving_centre, _black_outside(_outside_moving_centre)),
    "CG": TaskSpec("class-conditional generation", GENERATION, None, None, is_class_conditional=True),
    "CFP": TaskSpec(
        "class-conditional frame prediction", PREDICTION, _first_frame, _repeat_first_frame, is_class_conditional=True
    ),
}

CANVAS_OF_TASK: dict[Task, Task] = {task: "FP" if task == "CFP" else task for task in TASKS if SPECS[task].fill}
"""Which task's condition canvas a task uses: CFP shares FP's, CG has none."""

CANVASES: tuple[Task, ...] = tuple(dict.fromkeys(CANVAS_OF_TASK.values()))
"""The distinct condition canvases, in the order of a token shard's canvas axis after z."""


def condition_canvases(clip: Tensor) -> Tensor:
    """Clip 'b c t h w' in [0, 1] -> 'b n c t h w': the clip itself, then every canvas of CANVASES."""
    fills = [SPECS[task].fill for task in CANVASES]
    return torch.stack([clip, *(fill(clip) for fill in fills if fill)], dim=1)


def condition_mask(task: Task, shape: Shape) -> Tensor:
    """Bool 't h w', True where `task` gives a condition; latent shapes for COMMIT, pixel shapes for pictures."""
    region = SPECS[task].region
    return torch.zeros(shape, dtype=torch.bool) if region is None else region(shape).clone()


def task_token(task: Task, inpainting_token: str = "inpainting") -> int:
    """The task's (negative) token id; with `outpainting`, inpainting shares that task's token, as in the released
    code.
    """
    token = SPECS[task].token
    return OUTPAINTING if token == INPAINTING and inpainting_token == "outpainting" else token
