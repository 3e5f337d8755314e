"""LR(s) = base * min(1, s/W) * 0.5 * (1 + cos(pi * max(0, s-W) / (total-W))), spec section 4.4."""

from math import cos, pi, sqrt

import pytest

from magvit_scale.config import OptimConfig
from magvit_scale.training.schedule import learning_rate


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.0),  # the first update has rate 0
        (1, 0.25),
        (3, 0.75),
        (4, 1.0),  # end of the warm-up, start of the cosine
        (6, 0.5 * (1 + sqrt(0.5))),  # a quarter of it
        (8, 0.5),
        (11, 0.5 * (1 + cos(pi * 7 / 8))),
        (12, 0.0),
    ],
)
def test_warm_up_from_zero_then_a_cosine_to_zero(step: int, expected: float) -> None:
    optim = OptimConfig(learning_rate=2e-4, warmup_steps=4)
    assert learning_rate(step, 12, optim) == pytest.approx(2e-4 * expected, abs=1e-12)


def test_without_warm_up_the_first_update_has_the_full_rate() -> None:
    optim = OptimConfig(learning_rate=1e-3, warmup_steps=0)
    assert [learning_rate(step, 4, optim) for step in (0, 2)] == pytest.approx([1e-3, 0.5e-3])


def test_the_released_3d_run_of_ucf() -> None:
    optim = OptimConfig(learning_rate=1e-4, warmup_steps=74)
    rates = [learning_rate(step, 37_000, optim) for step in range(0, 37_000, 37)]
    assert max(rates) == rates[2] == 1e-4
    assert rates[1] == pytest.approx(0.5e-4)
    assert rates[-1] < 1e-9


@pytest.mark.parametrize("warmup", [5, 9])
def test_a_run_not_longer_than_its_warm_up_only_rises(warmup: int) -> None:
    optim = OptimConfig(learning_rate=1.0, warmup_steps=warmup)
    assert [learning_rate(step, 5, optim) for step in range(5)] == pytest.approx([s / warmup for s in range(5)])
