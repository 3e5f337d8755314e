"""From the golden folder's files to models of ours, through the command that a user types."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from magvit_scale.cli import main
from magvit_scale.flax_tree import Leaf, Tree

NEAR_ZERO = 1e-4
"""A gradient this much smaller than the largest one of its network is rounding noise in both."""


def imported(kind: str, params: Path, out: Path, *arguments: str) -> Path:
    """`magvit import-flax`; returns the model folder."""
    main(["import-flax", "--kind", kind, "--params", str(params), "--out", str(out), *arguments])
    return out


def parts_of(stem: str, golden_folder: Path, folder: Path) -> Path:
    """A folder with nothing but the parts of one tree."""
    folder.mkdir()
    for part in sorted(golden_folder.glob(f"{stem}.params-*.npz")):
        (folder / part.name).symlink_to(part)
    return folder


def list_of(values: Sequence[Any]) -> str:
    """`[a,b]`, as key=value takes it."""
    return f"[{','.join(str(value).lower() for value in values)}]"


def clip_of(video: np.ndarray) -> Tensor:
    """Official 'b t h w c' -> 'b c t h w'."""
    return torch.from_numpy(rearrange(video, "b t h w c -> b c t h w").copy())


def video_of(clip: Tensor) -> np.ndarray:
    """'b c t h w' -> official 'b t h w c'."""
    return rearrange(clip.detach(), "b c t h w -> b t h w c").numpy()


def flax_gradients(leaves: Sequence[Leaf]) -> Tree:
    """The parameters' gradients in Flax's layout."""
    gradients = {}
    for leaf in leaves:
        assert leaf.parameter.grad is not None, leaf.path
        gradients[leaf.path] = replace(leaf, parameter=nn.Parameter(leaf.parameter.grad)).to_flax()
    return gradients


def norm_differences(found: Tree, norms: dict[str, float]) -> np.ndarray:
    """Relative difference of every gradient's norm to the official one."""
    assert found.keys() == norms.keys()
    floor = NEAR_ZERO * max(norms.values())
    return np.array([abs(np.linalg.norm(found[name]) - norm) / max(norm, floor) for name, norm in norms.items()])


def gradient_differences(found: Tree, expected: Tree, norms: dict[str, float]) -> np.ndarray:
    """Norm of every stored gradient's difference, relative to the gradient's norm."""
    floor = NEAR_ZERO * max(norms.values())
    return np.array([np.linalg.norm(found[k] - array) / max(norms[k], floor) for k, array in expected.items()])


def under(arrays: Tree, prefix: str) -> Tree:
    """What lies under a path."""
    return {name.removeprefix(f"{prefix}/"): array for name, array in arrays.items() if name.startswith(f"{prefix}/")}


Agree = Callable[..., None]
