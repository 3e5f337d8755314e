"""A GPU that is not there: its tensors have shapes and no values, and what would make a program wait for it raises."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Travels(TorchDispatchMode):
    """Lists the operators that bring a tensor from the host to the device."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if "cpu" in _devices((args, kwargs)) and "cuda" in _devices(out):
            self.operators.append(str(func))
        return out


def _devices(tree: Any) -> set[str]:
    """Of tensors that are more than a number, which travels with its kernel."""
    return {leaf.device.type for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor) and leaf.dim()}


@contextmanager
def fake_gpu() -> Iterator[list[str]]:
    """A context in which device `cuda` is such a GPU: asking it for a value raises `DataDependentOutputException`.

    Yields:
        The operators that have brought tensors to it, as they come.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), _Travels() as travels:
        yield travels.operators
