"""Which decoding steps are shown."""

from magvit_scale.page.sections import _spread


def test_steps_are_spread_evenly_with_the_first_and_the_last() -> None:
    assert _spread(12, 4) == [0, 4, 7, 11]
    assert _spread(3, 9) == [0, 1, 2]
