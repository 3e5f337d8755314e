"""What a computation cannot do without: operations by kind, and the bytes of its large operations."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

Kind = Literal["product", "convolution"]


@dataclass
class Needs:
    """Of one run."""

    flops: dict[Kind, float] = field(default_factory=lambda: {"product": 0.0, "convolution": 0.0})
    """As training/flops.py counts them, a multiplication and an addition as two."""
    bytes: float = 0.0
    """Operands and results of products, attention and convolutions, each once, as if all else were fused into them."""

    @property
    def total_flops(self) -> float:
        """Of both kinds."""
        return sum(self.flops.values())

    def floor_s(self, rates: dict[str, float]) -> float:
        """The least seconds on a device with these rates: FLOPs per second by kind, and bytes per second of `copy`.

        The operations one after the other at the rate of their kind, or the bytes, whichever takes longer.
        """
        computing = sum(flops / rates[kind] for kind, flops in self.flops.items() if flops)
        return max(computing, self.bytes / rates["copy"])


def count_needs(function: Callable[[], Any]) -> tuple[Any, Needs]:
    """Runs a function once, not under `torch.inference_mode`: its result, and what it needed."""
    with _Counter() as counter:
        result = function()
    return result, counter.needs


class _Counter(TorchDispatchMode):
    """As training/flops.py, but by kind, and with bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.needs = Needs()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func.overloadpacket):
            kind: Kind = "convolution" if "conv" in str(func) else "product"
            self.needs.flops[kind] += formula(*args, **(kwargs or {}), out_val=out)
            self.needs.bytes += sum(_bytes(leaf) for leaf in tree_leaves((args, kwargs, out)))
        return out


def _bytes(leaf: Any) -> int:
    """Of a tensor as it lies in memory: what is expanded is stored once."""
    return min(leaf.nbytes, leaf.untyped_storage().nbytes()) if isinstance(leaf, Tensor) else 0
