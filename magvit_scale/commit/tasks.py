"""The tasks as data: what is given, how the rest is filled, which latents that conditions, which token says so.

MAGVIT section 3.2 and table 1; spec section 7. A region is one rule for pixels and for latents: a boolean 't h w'
mask of any shape. This is the only module of the package that sees pixels.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from einops import reduce
from torch import Tensor

from magvit_scale.config import Refusal, Task, TransformerConfig

Shape = tuple[int, int, int]
Region = Callable[[Shape], Tensor]
Fill = Callable[[Tensor], Tensor]

# Special rows of the embedding table, counted from its end (spec section 5).
MASK_TOKEN, SEPARATOR = -1, -2
GENERATION, PREDICTION, INTERPOLATION, OUTPAINTING, INPAINTING = -3, -4, -5, -6, -7
NUM_SPECIAL_TOKENS = 16


@dataclass(frozen=True)
class TaskSpec:
    """One task."""

    title: str
    token: int
    """Negative: counted from the end of the embedding table."""
    region: Region | None
    """Shape (t, h, w) -> bool 't h w', True where the condition is; None: nothing is given."""
    fill: Fill | None
    """Clip 'b c t h w' in [0, 1] -> its condition canvas: given pixels kept, the others filled from them."""
    is_class_conditional: bool = False
    latent_region: Region | None = None
    """The latents that are given, where that is not `region` at their shape."""


def _first_frames(count: int) -> Region:
    return lambda shape: (torch.arange(shape[0]) < count)[:, None, None].expand(shape)


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


def _repeat_last_of(count: int) -> Fill:
    def fill(clip: Tensor) -> Tensor:
        frames = torch.arange(clip.shape[2], device=clip.device).clamp(max=count - 1)
        return clip.index_select(2, frames)

    return fill


def _interpolate_frames(clip: Tensor) -> Tensor:
    first, last, steps = clip[:, :, :1], clip[:, :, -1:], max(clip.shape[2] - 1, 1)
    # By the reciprocal, in this order and with the last frame as it is: the released code's canvas to the bit.
    share = (torch.arange(clip.shape[2] - 1, device=clip.device).to(clip.dtype) * (1 / steps))[:, None, None]
    return torch.cat([first + (last - first) * share, last], dim=2)


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


def _black_outside(region: Region) -> Fill:
    def fill(clip: Tensor) -> Tensor:
        _, _, t, h, w = clip.shape
        return clip * region((t, h, w)).to(clip)

    return fill


SPECS: dict[Task, TaskSpec] = {
    "FP": TaskSpec("frame prediction", PREDICTION, _first_frames(1), _repeat_last_of(1)),
    "FI": TaskSpec("frame interpolation", INTERPOLATION, _first_and_last_frame, _interpolate_frames),
    "OPC": TaskSpec("central outpainting", OUTPAINTING, _centre, _edge_around_centre),
    "OPV": TaskSpec("vertical outpainting", OUTPAINTING, _middle_columns, _edge_in_columns),
    "OPH": TaskSpec("horizontal outpainting", OUTPAINTING, _middle_rows, _edge_in_rows),
    "OPD": TaskSpec("dynamic outpainting", OUTPAINTING, _moving_columns, _black_outside(_moving_columns)),
    "IPC": TaskSpec("central inpainting", INPAINTING, _outside_centre, _black_outside(_outside_centre)),
    "IPD": TaskSpec("dynamic inpainting", INPAINTING, _outside_moving_centre, _black_outside(_outside_moving_centre)),
    "CG": TaskSpec("class-conditional generation", GENERATION, None, None, is_class_conditional=True),
    "CFP": TaskSpec(
        "class-conditional frame prediction",
        PREDICTION,
        _first_frames(1),
        _repeat_last_of(1),
        is_class_conditional=True,
    ),
    "FP5": TaskSpec(
        "frame prediction from five",
        PREDICTION,
        _first_frames(5),
        _repeat_last_of(5),
        latent_region=_first_frames(2),
    ),
}

NOT_GIVEN = 0.5
"""Grey level of pixels that a task does not give, where its condition is shown."""

CLIP = "z"
"""Name of the clip itself on a token shard's canvas axis."""


def canvas_of(task: Task) -> Task | None:
    """The task whose condition canvas this one uses: CFP shares FP's, CG has none."""
    return "FP" if task == "CFP" else task if SPECS[task].fill else None


def canvases_of(tasks: Iterable[Task]) -> tuple[Task, ...]:
    """The distinct condition canvases of some tasks, in the order of a token shard's canvas axis after the clip."""
    needed = {canvas_of(task) for task in tasks}
    return tuple(task for task in SPECS if task in needed)


def canvas_index(task: Task, canvases: Sequence[str], model: TransformerConfig) -> int:
    """Where a token shard holds what the task's condition shows: 0, the clip, where the true clip's own tokens are
    shown or none at all.

    Raises:
        Refusal: the canvas is none of `canvases`.
    """
    name = None if model.conditioning == "latent" else canvas_of(task)
    if name is not None and name not in canvases:
        raise Refusal(
            f"task {task} needs tokens of the canvas {name}, the token shards hold {', '.join(canvases)}; run magvit "
            f"precompute-tokens with {task} among its tasks, into another folder"
        )
    return canvases.index(name or CLIP)


def condition_canvases(clip: Tensor, canvases: Iterable[Task]) -> Tensor:
    """Clip 'b c t h w' in [0, 1] -> 'b n c t h w': the clip itself, then every canvas."""
    fills = [SPECS[task].fill for task in canvases]
    return torch.stack([clip, *(fill(clip) for fill in fills if fill)], dim=1)


def condition_mask(task: Task, shape: Shape) -> Tensor:
    """Bool 't h w', True where `task` gives a pixel."""
    return _mask(SPECS[task].region, shape)


def num_first_frames(task: Task) -> int:
    """From how many frames a frame prediction starts.

    Raises:
        Refusal: the task is none.
    """
    if SPECS[task].token != PREDICTION:
        raise Refusal(f"task {task} ({SPECS[task].title}): expected a frame prediction, FP, CFP or FP5")
    return int(condition_mask(task, (8, 1, 1)).sum())


def show_given(task: Task, clip: Tensor) -> Tensor:
    """The pixels a task gives, the others grey; 'n 3 t h w' in [0, 1]."""
    _, _, t, h, w = clip.shape
    return greyed(clip, condition_mask(task, (t, h, w)))


def greyed(clip: Tensor, is_given: Tensor) -> Tensor:
    """'n 3 t h w', grey where 't h w' bool says False."""
    given = is_given.to(clip)
    return clip * given + NOT_GIVEN * (1 - given)


def latent_mask(task: Task, shape: Shape, model: TransformerConfig) -> Tensor:
    """Bool 't h w', True at the latents that `task` conditions (spec section 7)."""
    spec = SPECS[task]
    if model.dynamic_condition == "paper" and task in ("OPD", "IPD"):
        t, h, w = shape
        given = condition_mask(task, (4 * t, 8 * h, 8 * w))
        return reduce(given.to(torch.uint8), "(t ft) (h fh) (w fw) -> t h w", "max", ft=4, fh=8, fw=8).bool()
    return _mask(spec.latent_region or spec.region, shape)


def _mask(region: Region | None, shape: Shape) -> Tensor:
    return torch.zeros(shape, dtype=torch.bool) if region is None else region(shape).clone()


def task_token(task: Task, model: TransformerConfig) -> int:
    """The task's (negative) token id (spec section 5). In the released code, inpainting shares outpainting's, and
    MaskGIT-style latent masking has generation's.
    """
    token = SPECS[task].token
    if model.conditioning == "latent":
        return GENERATION
    return OUTPAINTING if token == INPAINTING and model.inpainting_token == "outpainting" else token
