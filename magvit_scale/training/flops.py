"""How many floating-point operations a training step makes, counted while it runs.

What is counted are the hardware's operations: everything that ran, a multiplication and an addition as two. So
recomputation counts - activation checkpointing's, and the scores that fused attention makes again in its backward pass
- and so does r1's double backward; elementwise work, norms and the optimiser do not.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Result = TypeVar("Result")


class _Counter(TorchDispatchMode):
    """Adds up torch's own formulas, which are by operator and shape.

    Not torch's FlopCounterMode around them: it takes operators without a formula to pieces, whose sum rounds otherwise
    (the gradient of SiLU), and its hooks refuse `autograd.grad` towards what a module was given, as r1 needs it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def count_flops(function: Callable[[], Result]) -> tuple[Result, float]:
    """Runs a training step, forward to optimiser, and counts its operations on this rank.

    The step's results are those of a step that is not counted, to the bit: any step of an eager run can be the counted
    one. Not so under `torch.compile`, which leaves a counted step uncompiled, and that rounds otherwise: such a run's
    own steps must not be counted.

    Args:
        function: the step, not under `torch.inference_mode`.

    Returns:
        What the function returned, and the number of operations.
    """
    with _Counter() as counter:
        result = function()
    return result, float(counter.total)
