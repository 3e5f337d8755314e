"""What stops a run before it does harm."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from magvit_scale.config import Refusal


def finite_guard(any_over_ranks: Callable[[bool], bool]) -> Callable[[Mapping[str, Tensor]], None]:
    """Builds the check that a step makes before it updates anything.

    Args:
        any_over_ranks: collective `or`.

    Returns:
        A collective function of named tensors; where one is not finite on any rank it raises Refusal on all of them,
        naming this rank's values.
    """

    def guard(values: Mapping[str, Tensor]) -> None:
        broken = [name for name, value in values.items() if not torch.isfinite(value).all()]
        if any_over_ranks(bool(broken)):
            what = ", ".join(broken) or "a value of another rank"
            raise Refusal(
                f"{what} is not finite; the update was not made; lower optim.learning_rate or look at the data"
            )

    return guard
