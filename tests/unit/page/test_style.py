"""The page's style: contrast of every text in light and dark, and no small letters."""

import re
from importlib import resources

import pytest

STYLE = resources.files("magvit_scale.page").joinpath("style.css").read_text(encoding="utf-8")
LIGHT, DARK = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", part)) for part in STYLE.split("@media", 2)[:2])
TEXTS = ["ink", "quiet", "accent", "good", "bad", *(f"run-{run}" for run in range(1, 7))]


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_every_text_has_a_contrast_of_4_5(colours: dict[str, str]) -> None:
    pairs = [*((text, "page") for text in TEXTS), ("ink", "raised"), ("ink", "notice-page"), ("notice", "notice-page")]
    found = {f"{text} on {page}": contrast(colours[text], colours[page]) for text, page in pairs}
    assert {name: round(value, 2) for name, value in found.items() if value < 4.5} == {}
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


def test_no_letters_are_smaller_than_14_pixels() -> None:
    sizes = [int(size) for size in re.findall(r"font(?:-size)?:[^;]*?(\d+)px", STYLE)]
    assert len(sizes) > 15
    assert min(sizes) == 14
