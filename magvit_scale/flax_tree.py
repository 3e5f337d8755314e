"""Flattened Flax parameter trees <-> torch parameters, strict both ways.

A tree is a dict of arrays by path, as `encoder/ResBlock_0/Conv_0/kernel`. A network lists its leaves; each leaf says
where one of its parameters lies in the tree and how the axes go over, as an einops pattern that is read from left to
right by the import and from right to left by the export (spec section 12).
"""

import re
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn

from magvit_scale.config import Refusal

Tree = dict[str, NDArray]

PART = re.compile(r"(?P<stem>.+)\.params-(?P<number>\d+)\.npz")
KERNELS = {2: "i o -> o i", 4: "kh kw i o -> o i kh kw", 5: "kt kh kw i o -> o i kt kh kw"}
"""Flax's kernels end with input and output channels, torch's begin with output and input; by number of axes."""

# RuntimeError is zipfile's word for an encrypted member, NotImplementedError for a compression it does not know;
# AttributeError and TypeError come from a lone .npy.
UNREADABLE = (OSError, ValueError, EOFError, TypeError, AttributeError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Leaf:
    """One tensor on both sides."""

    path: str
    parameter: nn.Parameter
    layout: str
    """einops pattern from Flax's axes to torch's."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Axes of the pattern that the shapes do not tell."""

    def to_torch(self, array: NDArray) -> Tensor:
        """Flax's array -> torch's tensor."""
        with np.errstate(over="ignore"):  # what float64 held beyond float32 is refused by `fill_from_tree`
            return torch.from_numpy(rearrange(array, self.layout, **self.sizes).astype(np.float32))

    def to_flax(self) -> NDArray:
        """The parameter as Flax's array, float32."""
        given, made = self.layout.split("->")
        return rearrange(self.parameter.detach().float().cpu().numpy(), f"{made} -> {given}", **self.sizes)


def layer_leaves(path: str, layer: nn.Module) -> Iterator[Leaf]:
    """Leaves of a convolution, a dense layer, a norm or an embedding."""
    weight = layer.get_parameter("weight")
    match layer:
        case nn.Embedding():
            yield Leaf(f"{path}/embedding", weight, "n d -> n d")
        case nn.GroupNorm() | nn.LayerNorm():
            yield Leaf(f"{path}/scale", weight, "c -> c")
        case _:
            yield Leaf(f"{path}/kernel", weight, KERNELS[weight.ndim])
    if getattr(layer, "bias", None) is not None:
        yield Leaf(f"{path}/bias", layer.get_parameter("bias"), "c -> c")


@torch.no_grad()
def fill_from_tree(leaves: Sequence[Leaf], tree: Tree, source: str | Path) -> None:
    """Copies a tree, rounded to float32, into the parameters of its leaves.

    Raises:
        Refusal: a tensor is on one side only, or has another shape or type.
    """
    expected = {leaf.path: leaf.to_flax().shape for leaf in leaves}
    if unread := sorted(tree.keys() - expected.keys()):
        raise Refusal(f"{source}: {unread[0]} has no place in the model ({len(unread)} such); is its config right?")
    if unfilled := sorted(expected.keys() - tree.keys()):
        raise Refusal(f"{source}: {unfilled[0]} is not there ({len(unfilled)} such); is the model's config right?")
    for leaf in leaves:
        found, shape = tree[leaf.path], expected[leaf.path]
        if found.shape != shape or found.dtype.kind != "f":
            raise Refusal(f"{source}: {leaf.path} is {found.dtype} {found.shape}, expected floats of {shape}")
        value = leaf.to_torch(found)
        if not value.isfinite().all():
            raise Refusal(f"{source}: {leaf.path} is not finite in float32; is the training run sound?")
        leaf.parameter.copy_(value)


def tree_of(leaves: Sequence[Leaf]) -> Tree:
    """The tree that `fill_from_tree` reads back to the same bits."""
    return {leaf.path: leaf.to_flax() for leaf in leaves}


def shape_of(tree: Tree, path: str, num_axes: int, source: str | Path) -> tuple[int, ...]:
    """Shape of a tensor that every tree of a kind has.

    Raises:
        Refusal: it is not there, or has another number of axes or an empty one.
    """
    if path not in tree:
        raise Refusal(f"{source}: {path} is not there; it has {', '.join(_roots(tree))}; --subtree gives a part of it")
    if len(shape := tree[path].shape) != num_axes or 0 in shape:
        raise Refusal(f"{source}: {path} is of shape {shape}, expected {num_axes} axes; is it a tree of this kind?")
    return shape


def count_layers(tree: Tree, prefix: str) -> int:
    """How many `<prefix>0`, `<prefix>1`, ... a tree has."""
    pattern = re.compile(rf"{re.escape(prefix)}(\d+)/")
    return len({found[1] for path in tree if (found := pattern.match(path))})


def read_tree(source: str | Path, subtree: str | None = None) -> Tree:
    """Reads one npz, or the `<name>.params-<n>.npz` parts of one tree.

    Args:
        source: a file; a folder with the parts of one tree or a params.npz; or `FOLDER/<name>`.
        subtree: only what lies under this path, for instance `ema_params` of a flattened checkpoint; by default
            `params` where the file has such a part, and else everything.

    Raises:
        Refusal: no such file, no npz, pickled objects in it, parts of several trees, or a part is missing.
    """
    source = Path(source)
    files = [source] if source.is_file() else _parts(source)
    tree: Tree = {}
    for file in files:
        arrays = _read_npz(file)
        if twice := sorted(tree.keys() & arrays.keys()):
            raise Refusal(f"{file}: {twice[0]} is in an earlier part too; expected the parts of one tree")
        tree |= arrays
    if subtree is None and any(path.startswith("params/") for path in tree):
        subtree = "params"
    start = f"{subtree.rstrip('/')}/" if subtree else ""
    chosen = {path.removeprefix(start): array for path, array in tree.items() if path.startswith(start)}
    if not chosen:
        raise Refusal(f"{source}: nothing under {subtree or 'it'}; it has {', '.join(_roots(tree)) or 'no arrays'}")
    return chosen


def _parts(source: Path) -> list[Path]:
    folder, wanted = (source, None) if source.is_dir() else (source.parent, source.name)
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    found: dict[str, dict[int, Path]] = defaultdict(dict)
    for match in filter(None, map(PART.fullmatch, names)):
        found[match["stem"]][int(match["number"])] = folder / match.string
    if not found and wanted is None and "params.npz" in names:
        return [folder / "params.npz"]
    if wanted not in found and (wanted is not None or len(found) != 1):
        raise Refusal(
            f"{source}: no such file, nor the NAME.params-N.npz parts of one tree; found parts of "
            f"{', '.join(found) or 'none'}; give a file, or FOLDER/NAME"
        )
    stem, parts = (wanted, found[wanted]) if wanted else next(iter(found.items()))
    if missing := sorted(set(range(max(parts))) - parts.keys()):
        raise Refusal(f"{source}: {stem}.params-{missing[0]}.npz is missing")
    return [parts[number] for number in sorted(parts)]


def _read_npz(path: Path) -> Tree:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except UNREADABLE as error:
        raise Refusal(f"{path}: {' '.join(str(error).split())}; expected an npz of plain arrays") from error


def _roots(tree: Tree) -> list[str]:
    return sorted({path.split("/")[0] for path in tree})
