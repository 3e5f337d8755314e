import pytest
import torch

from magvit_scale.config import Refusal
from magvit_scale.training.health import finite_guard


def test_finite_values_pass() -> None:
    finite_guard(lambda flag: flag)({"loss": torch.tensor(3e38), "gradient": torch.zeros(2, 2)})


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_one_broken_element_stops_the_step_and_is_named(broken: float) -> None:
    guard = finite_guard(lambda flag: flag)
    with pytest.raises(Refusal, match=r"^loss/r1, gradient is not finite; the update was not made"):
        guard({"loss": torch.ones(()), "loss/r1": torch.tensor(broken), "gradient": torch.tensor([[1.0], [broken]])})


def test_all_ranks_stop_together() -> None:
    said: list[bool] = []

    def another_rank_is_broken(flag: bool) -> bool:
        said.append(flag)
        return True

    with pytest.raises(Refusal, match="a value of another rank is not finite"):
        finite_guard(another_rank_is_broken)({"loss": torch.ones(())})
    assert said == [False]


def test_a_finite_rank_asks_the_others_too() -> None:
    asked: list[bool] = []
    finite_guard(lambda flag: asked.append(flag) or False)({"loss": torch.ones(())})  # type: ignore[func-returns-value]
    assert asked == [False]
