"""The report's pages as a reader has them: in Chromium, wide and on a phone, light and dark, by keyboard."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from magvit_scale.config import TASKS
from magvit_scale.report import main
from magvit_scale.weights import WEIGHTS
from tests import debian
from tests.browser import Tab, open_browser
from tests.toy_record import write_evaluation, write_root, write_samples

RED, GREEN, BLUE = (220, 30, 40), (30, 160, 60), (40, 60, 200)
PHONE, DESKTOP = 360, 1280
PAPER = {"light": (251, 250, 247), "dark": (22, 24, 27)}
SPACE, TAB, ENTER = ((" ", 32, " "), ("Tab", 9, ""), ("Enter", 13, "\r"))
FOCUSED = "document.activeElement.getAttribute('href') || document.activeElement.id"
SMALL_LETTERS = """[...document.querySelectorAll('body *')].filter(element =>
    [...element.childNodes].some(node => node.nodeType == Node.TEXT_NODE && node.data.trim())
    && element.getClientRects().length).map(element => {
        const drawing = element.closest('svg')
        const scale = drawing ? drawing.getBoundingClientRect().width / drawing.viewBox.baseVal.width : 1
        return [parseFloat(getComputedStyle(element).fontSize) * scale, element.textContent.trim().slice(0, 40)]
    }).filter(([size]) => size < 13.9)"""
LOW_TARGETS = """[...document.querySelectorAll('nav a, label, summary')].map(element =>
    [element.getBoundingClientRect().height, element.textContent]).filter(([height]) => height > 0 && height < 44)"""
SHOWN_OF = (
    "[...document.querySelectorAll('#tasks img')].filter(image => image.offsetWidth).map(image => image.className)"
)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """A browser's tab; every page that it opens must be silent."""
    try:
        debian.install({"chromium": "chromium"})
    except RuntimeError as error:
        pytest.skip(f"no browser: {error}")
    with open_browser("chromium", tmp_path_factory.mktemp("browser")) as tab:
        yield tab
        assert tab.complaints == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages of two roots and their comparison; conditions are blue, what they become is green, the real clips red."""
    folder = tmp_path_factory.mktemp("pages")
    for name in ("first", "second"):
        write_samples(write_root(folder / name) / "generated", **coloured())
        write_evaluation(
            folder / name, "bair", [70.0, 72.0], "random" if name == "second" else WEIGHTS["i3d-ts"].sha256
        )
    main([f"{folder}/first", f"{folder}/second"])
    return folder


def coloured() -> dict[str, NDArray[np.uint8]]:
    def clip(*colours: tuple[int, int, int]) -> NDArray[np.uint8]:
        return np.broadcast_to(np.uint8(colours)[None, :, None, None], (2, len(colours), 8, 8, 3))

    parts = {"condition": clip(BLUE, BLUE, BLUE), "generated": clip(BLUE, GREEN, GREEN), "real": clip(RED, RED, RED)}
    return {f"{task}/{part}": colours for task in TASKS for part, colours in parts.items()}


def share(picture: NDArray[np.uint8], colour: tuple[int, int, int]) -> float:
    return float((np.abs(picture.astype(int) - colour).max(axis=2) <= 2).mean())


def picture_of(tab: Tab, selector: str) -> NDArray[np.uint8]:
    """Where an element is on the screenshot, after the page has scrolled to it."""
    tab.evaluate(f"document.querySelector('{selector}').scrollIntoView({{block: 'center', behavior: 'instant'}})")
    box = tab.evaluate(f"document.querySelector('{selector}').getBoundingClientRect().toJSON()")
    left, top, right, bottom = (round(box[side]) for side in ("left", "top", "right", "bottom"))
    return tab.screenshot()[top:bottom, left:right]


@pytest.mark.parametrize("page", ["first/report.html", "comparison.html"])
@pytest.mark.parametrize("width_px", [DESKTOP, PHONE])
def test_a_page_fits_its_window_and_can_be_read(tab: Tab, folder: Path, page: str, width_px: int) -> None:
    tab.open(folder / page, width_px)
    assert tab.evaluate("document.documentElement.scrollWidth") == width_px
    tab.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth") == width_px
    assert tab.evaluate(SMALL_LETTERS) == []
    assert tab.evaluate(LOW_TARGETS) == []
    boxes = "document.querySelectorAll('.scroll, .strip, pre, nav ul')"
    assert tab.evaluate(f"[...{boxes}].every(box => box.getBoundingClientRect().right <= innerWidth)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width_px", [DESKTOP, PHONE])
def test_the_pictures_have_the_clips_colours(tab: Tab, folder: Path, width_px: int, scheme: str) -> None:
    tab.open(folder / "first" / "report.html", width_px, prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
    top = tab.screenshot()
    assert share(top, PAPER[scheme]) > 0.5
    assert share(top, PAPER[scheme]) < 0.99  # there are letters
    picture = picture_of(tab, "#FP .strip img.still")
    gap = picture.shape[1] // 26
    parts = np.array_split(picture[:, gap:-gap], 3, axis=1)
    middles = [part[:, part.shape[1] // 4 : -part.shape[1] // 4] for part in parts]
    assert [share(middle, colour) for middle, colour in zip(middles, (BLUE, GREEN, RED), strict=True)] == [
        1.0,
        1.0,
        1.0,
    ]
    assert share(picture, PAPER[scheme]) > 0.02  # between the panels the page shows


def test_the_comparison_has_both_runs_between_condition_and_real_clip(tab: Tab, folder: Path) -> None:
    tab.open(folder / "comparison.html", DESKTOP, prefers_reduced_motion="reduce")
    parts = np.array_split(picture_of(tab, "#CFP .strip img.still"), 4, axis=1)
    assert [share(part, colour) > 0.8 for part, colour in zip(parts, (BLUE, GREEN, GREEN, RED), strict=True)] == [
        *(True, True, True, True)
    ]


def test_the_pictures_stand_still_when_they_are_told_to(tab: Tab, folder: Path) -> None:
    page = folder / "first" / "report.html"
    tab.open(page, DESKTOP, prefers_reduced_motion="no-preference")
    assert set(tab.evaluate(SHOWN_OF)) == {"moving"}
    assert tab.evaluate("document.getElementById('play').offsetWidth") == 0
    tab.evaluate("document.getElementById('pause').focus()")
    tab.press(*SPACE)
    assert set(tab.evaluate(SHOWN_OF)) == {"still"}
    tab.press(*SPACE)
    assert set(tab.evaluate(SHOWN_OF)) == {"moving"}
    tab.open(page, DESKTOP, prefers_reduced_motion="reduce")
    assert set(tab.evaluate(SHOWN_OF)) == {"still"}
    assert tab.evaluate("document.getElementById('pause').offsetWidth") == 0
    tab.evaluate("document.getElementById('play').focus()")
    tab.press(*SPACE)
    assert set(tab.evaluate(SHOWN_OF)) == {"moving"}


@pytest.mark.parametrize("width_px", [DESKTOP, PHONE])
def test_everything_is_reached_by_keyboard(tab: Tab, folder: Path, width_px: int) -> None:
    tab.open(folder / "first" / "report.html", width_px)
    sections = tab.evaluate("[...document.querySelectorAll('main > section')].map(section => '#' + section.id)")
    reached = []
    for _ in range(len(sections) + 2):
        tab.press(*TAB)
        reached.append(tab.evaluate(FOCUSED))
        box = tab.evaluate("document.activeElement.getBoundingClientRect().toJSON()")
        assert 0 <= box["left"] <= box["right"] <= width_px, reached
        assert box["top"] >= 0, reached
    assert reached == ["#content", *sections, "pause"]
    outline = tab.evaluate("[getComputedStyle(document.activeElement).outlineStyle, document.activeElement.tagName]")
    assert outline == ["solid", "INPUT"]


def test_the_skip_link_leads_past_the_navigation_and_details_open(tab: Tab, folder: Path) -> None:
    tab.open(folder / "first" / "report.html", PHONE)
    tab.press(*TAB)
    tab.press(*ENTER)
    assert tab.evaluate("document.activeElement.tagName") == "MAIN"
    tab.press(*TAB)
    assert tab.evaluate("document.activeElement.closest('section').id") == "gates"
    tab.evaluate("document.querySelector('#training details:not([open]) summary, #reproduce summary').focus()")
    opened = "document.activeElement.parentElement.open"
    assert tab.evaluate(opened) is False
    tab.press(*ENTER)
    assert tab.evaluate(opened) is True


def test_landmarks_headings_and_pictures_have_names(tab: Tab, folder: Path) -> None:
    tab.open(folder / "first" / "report.html", DESKTOP)
    assert tab.evaluate("['header', 'nav', 'main', 'footer'].map(name => document.querySelectorAll(name).length)") == [
        *(1, 1, 1, 1)
    ]
    assert tab.evaluate("[...document.images].every(image => image.alt && image.complete && image.naturalWidth)")
    levels = tab.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(heading => +heading.tagName[1])")
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = tab.evaluate("[...document.querySelectorAll('main [id]:not(svg [id])')].map(element => element.id)")
    assert len(ids) == len(set(ids))
