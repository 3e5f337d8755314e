"""Bytes that a computation holds, without computing it: fake tensors have shapes and dtypes, and no contents."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class MemoryMeter(TorchDispatchMode):
    """Counts the storages of all tensors that operations make while it is entered, each once and as long as it lives.

    Not counted: what a kernel uses for itself, and what an allocator rounds up or leaves between blocks.
    """

    def __init__(self, known: list[Tensor]) -> None:
        """`known`: tensors that were there before and do not count, such as parameters and the batch."""
        super().__init__()
        self.held, self.peak, self.flops = 0, 0, 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and counts what it returns, and the FLOPs of products and convolutions."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if count_flops := flop_registry.get(func._overloadpacket):
            self.flops += count_flops(*args, **kwargs, out_val=result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.held -= size


@contextmanager
def fake_model(build: Callable[[], nn.Module]) -> Iterator[nn.Module]:
    """The model with fake parameters on the CPU; inside the context all tensors are fake."""
    with torch.device("meta"):
        model = build()
    with FakeTensorMode():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(torch.empty(parameter.shape)))
        yield model
