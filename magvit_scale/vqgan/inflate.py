"""2D -> 3D inflation of a state dict, strict: every tensor is copied, inflated, or the call raises (spec section 3)."""

import torch
from torch import Tensor

from magvit_scale.config import Inflation, Refusal


def inflate_2d_to_3d(
    state_2d: dict[str, Tensor], shapes_3d: dict[str, torch.Size], mode: Inflation
) -> dict[str, Tensor]:
    """Makes a 3D network's tensors out of a 2D network's.

    Args:
        state_2d: tensors of the 2D network, under the names that the 3D network uses too.
        shapes_3d: the 3D network's shapes.
        mode: `central` puts the 2D kernel at time index kt // 2 among zeros; `average` puts kernel / kt at every time.

    Returns:
        A tensor for every name of `shapes_3d`; same shape is a copy, one time axis more is an inflated kernel.

    Raises:
        Refusal: a name is on one side only, or shapes are neither equal nor a kernel's.
    """
    if names := sorted(state_2d.keys() ^ shapes_3d.keys()):
        raise Refusal(
            f"inflation: {names[0]} is in one network only (as are {len(names) - 1} others); same widths needed"
        )
    return {name: _inflate(name, state_2d[name], shape, mode) for name, shape in shapes_3d.items()}


def _inflate(name: str, tensor: Tensor, shape: torch.Size, mode: Inflation) -> Tensor:
    if tensor.shape == shape:
        return tensor.clone()
    if len(shape) != 5 or tensor.shape != shape[:2] + shape[3:]:
        raise Refusal(f"inflation: {name} is {tuple(tensor.shape)} in 2D and {tuple(shape)} in 3D: no kernel, no copy")
    time = shape[2]
    if mode == "average":
        return (tensor * (1 / time)).unsqueeze(2).expand(shape).clone()
    kernel = tensor.new_zeros(shape)
    kernel[:, :, time // 2] = tensor
    return kernel
