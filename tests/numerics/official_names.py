"""How the official code calls what we call otherwise."""

import torch
from torch import Tensor

from magvit_scale.config import Task

TASK_NAMES: dict[Task, str] = {
    "FP": "frame_prediction",
    "FI": "frame_interpolation",
    "OPC": "outpainting_c",
    "OPV": "outpainting_v",
    "OPH": "outpainting_h",
    "OPD": "outpainting_dv",
    "IPC": "inpainting_c",
    "IPD": "inpainting_dv",
    "CG": "full_generation",
    "CFP": "x_frame_prediction_class",
    "FP5": "x_frame_prediction_5",
}

# Task ids of the decoding traces; latent frame prediction differs from the other by what its condition shows.
TASK_IDS: dict[str, Task] = {name.removeprefix("x_"): task for task, name in TASK_NAMES.items()}
TASK_IDS["latent_frame_prediction"] = "FP"

CONDITIONINGS = {None: "commit", "cond->input": "commit", "cond->cond": "canvas", "input->input": "latent",
                 "prefix": "prefix"}  # fmt: skip


def flat(array: object) -> Tensor:
    """'b t h w ...' array -> 'b (t h w) ...' tensor; ids as int64."""
    tensor = torch.as_tensor(array).flatten(1, 3)
    return tensor.long() if tensor.dtype == torch.int32 else tensor
