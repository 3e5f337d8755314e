"""average = decay * average + (1 - decay) * weight, from the first step on, without bias correction."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from magvit_scale.training.ema import ExponentialMovingAverage
from magvit_scale.training.engine import Engine
from magvit_scale.training.ranks import Ranks
from tests.unit.training.conftest import build_engine, train


def whole(average: ExponentialMovingAverage) -> dict[str, list[float]]:
    return {name: view.tolist() for name, _, view in average.owned_slices()}


def set_weight(engine: Engine, value: float) -> None:
    with torch.no_grad():
        engine.module.weight.fill_(value)


@pytest.mark.parametrize(
    ("start", "expected"),
    [(None, [6.0, 5.5, 5.125]), ({"weight": torch.tensor([[16.0]])}, [12.0, 10.0, 8.5])],
    ids=["from the weights", "from an average"],
)
def test_the_formula_over_three_steps(start: Mapping[str, Tensor] | None, expected: list[float]) -> None:
    engine = build_engine(nn.Linear(1, 1, bias=False))
    set_weight(engine, 8.0)
    average = ExponentialMovingAverage(engine, 0.75, start)
    found = []
    for value in (0.0, 4.0, 4.0):
        set_weight(engine, value)
        average.update()
        found += whole(average)["weight"]
    assert found == expected


def test_it_follows_an_optimiser_and_stays_apart_from_the_weights() -> None:
    engine = build_engine(nn.Linear(2, 3))
    before = engine.module.weight.detach().flatten().clone()
    average = ExponentialMovingAverage(engine, 0.5)
    train(engine, 2)
    assert whole(average)["weight"] == before.tolist()
    average.update()
    expected = (before + engine.module.weight.detach().flatten()) / 2
    assert whole(average)["weight"] == pytest.approx(expected.tolist())
    assert all(not view.requires_grad for _, _, view in average.owned_slices())


def test_start_tensors_are_copied_in_float32_and_left_alone() -> None:
    engine = build_engine(nn.Linear(2, 3))
    start = {"weight": torch.arange(6, dtype=torch.float16).reshape(3, 2), "bias": torch.ones(3)}
    average = ExponentialMovingAverage(engine, 0.5, start)
    assert whole(average) == {"weight": [0, 1, 2, 3, 4, 5], "bias": [1, 1, 1]}
    assert {view.dtype for _, _, view in average.owned_slices()} == {torch.float32}
    average.update()
    assert start["bias"].tolist() == [1, 1, 1]


def test_a_small_step_is_not_rounded_away() -> None:
    engine = build_engine(nn.Linear(1, 1, bias=False))
    set_weight(engine, 1.0)
    average = ExponentialMovingAverage(engine, 0.999)
    set_weight(engine, 2.0)
    average.update()
    assert whole(average)["weight"] == pytest.approx([1.001], abs=1e-6)  # bfloat16 would round it to 1.0


def test_each_rank_follows_what_it_writes_and_nothing_else() -> None:
    ranks = [Ranks(rank, 2, torch.device("cpu")) for rank in range(2)]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    owned = [whole(ExponentialMovingAverage(build_engine(model, one), 0.5)) for one in ranks]
    assert [list(names) for names in owned] == [["0.weight", "1.weight"], ["0.bias", "1.bias"]]


def test_it_takes_over_another_ones_slices() -> None:
    engine = build_engine(nn.Linear(2, 3))
    one, other = ExponentialMovingAverage(engine, 0.5), ExponentialMovingAverage(engine, 0.5)
    train(engine, 1)
    one.update()
    kept = {name: view for name, _, view in one.owned_slices()}
    other.restore(one.facts(), lambda name, first, length: kept[name][first : first + length])
    assert whole(other) == whole(one)
    train(engine, 1)
    for average in (one, other):
        average.update()
    assert whole(other) == whole(one)
