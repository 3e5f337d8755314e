"""average = decay * average + (1 - decay) * model, from the first step on, without bias correction."""

import pytest
import torch
from torch import nn

from magvit_scale.training.ema import ExponentialMovingAverage


def test_the_formula_over_three_steps_starting_from_the_model() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(8.0)
    average = ExponentialMovingAverage(model, 0.75)
    found = []
    for value in (0.0, 4.0, 4.0):
        model.weight.data.fill_(value)
        average.update(model)
        (weight,) = average.parameters()
        found.append(weight.item())
    assert found == [6.0, 5.5, 5.125]


def test_it_stays_apart_from_the_model() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.9))
    average = ExponentialMovingAverage(model, 0.5)
    own, averaged = next(model.parameters()), next(average.parameters())
    own.data.add_(1.0)
    assert not torch.equal(averaged, own)
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert not average.average.training
    assert model.training
    assert own.requires_grad


def test_a_bfloat16_model_is_averaged_in_float32() -> None:
    model = nn.Linear(1, 1, bias=False).bfloat16()
    model.weight.data.fill_(1.0)
    average = ExponentialMovingAverage(model, 0.999)
    model.weight.data.fill_(2.0)
    average.update(model)
    (value,) = average.parameters()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(1.001, abs=1e-6)  # bfloat16 would round it to 1.0


def test_the_state_holds_the_whole_average() -> None:
    model = nn.Linear(2, 3)
    average, other = ExponentialMovingAverage(model, 0.5), ExponentialMovingAverage(nn.Linear(2, 3), 0.5)
    model.weight.data.add_(1.0)
    average.update(model)
    other.load_state_dict(average.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), average.parameters(), strict=True))
