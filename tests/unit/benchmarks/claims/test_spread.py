import pytest

from benchmarks.claims.spread import Spread, differs, spread_of, verdict


def test_mean_and_deviation_are_those_of_a_sample() -> None:
    spread = Spread((1.0, 2.0, 3.0))
    assert (spread.mean, spread.deviation) == (2.0, 1.0)
    assert spread.text(2) == "2.00 (1.00)"


def test_a_baseline_has_no_spread() -> None:
    assert Spread((1.234,)).text(1) == "1.2"
    assert Spread((1.234,)).deviation == 0


def test_a_missing_seed_leaves_no_figure() -> None:
    assert spread_of([1.0, None, 2.0]) is None
    assert spread_of([]) is None
    assert spread_of([1.0, 2.0]) == Spread((1.0, 2.0))


@pytest.mark.parametrize(("distance", "expected"), [(9.9, False), (10.1, True)])
def test_a_difference_is_more_than_twice_the_deviation_of_a_difference(distance: float, expected: bool) -> None:
    one, other = Spread((-3.0, 0.0, 3.0)), Spread((distance - 4, distance, distance + 4))
    assert differs(one, other) is expected
    assert differs(other, one) is expected


def test_verdicts() -> None:
    low, high, wide = Spread((1.0, 1.1)), Spread((2.0, 2.1)), Spread((0.0, 3.0))
    assert verdict(low, high, is_lower_better=True) == "better"
    assert verdict(low, high, is_lower_better=False) == "worse"
    assert verdict(high, low, is_lower_better=True) == "worse"
    assert verdict(wide, high, is_lower_better=True) == "same"
