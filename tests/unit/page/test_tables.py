"""Numbers as a reader wants them."""

from magvit_scale.page.tables import number


def test_small_numbers() -> None:
    assert [number(value) for value in (None, float("nan"), 0, 0.25, 12.345, 123.45, 12345.6, 2e-5)] == [
        *("n/a", "n/a", "0.000", "0.250", "12.35", "123.5", "12 346", "2.00e-05"),
    ]
