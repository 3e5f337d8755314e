"""A page from its sections: one file that needs nothing else, no network and no script."""

from collections.abc import Sequence
from html import escape
from importlib import resources
from string import Template
from typing import NamedTuple


class Section(NamedTuple):
    """A part of a page; one without a body is left out."""

    anchor: str
    heading: str
    caption: str
    body: str


def document(title: str, lede: str, warning: str, sections: Sequence[Section]) -> str:
    """The page's HTML.

    Args:
        title: plain text.
        lede: HTML of the first paragraph.
        warning: HTML that stands before everything else; or nothing.
        sections: the parts in their order.
    """
    shown = [section for section in sections if section.body]
    return Template(_file("template.html")).substitute(
        title=escape(title),
        style=_file("style.css"),
        lede=lede,
        warning=warning,
        navigation="".join(
            f'<li><a href="#{section.anchor}">{section.anchor.capitalize()}</a></li>' for section in shown
        ),
        sections="".join(map(_section, shown)),
        controls=CONTROLS if any('class="moving"' in section.body for section in shown) else "",
    )


CONTROLS = "".join(
    f'<label class="{word.lower()}"><input type="checkbox" id="{word.lower()}" autocomplete="off" '
    f'aria-label="{word} pictures"><span>{word} <span class="wide">pictures</span></span></label>'
    for word in ("Pause", "Play")
)
"""The style shows the second one, in place of the first, to those who asked their system for less movement."""


def _section(section: Section) -> str:
    heading = f'<h2 id="{section.anchor}-heading">{section.heading}</h2><p>{section.caption}</p>'
    labelled = f'id="{section.anchor}" aria-labelledby="{section.anchor}-heading"'
    return f"<section {labelled}>{heading}{section.body}</section>"


def _file(name: str) -> str:
    return resources.files("magvit_scale.page").joinpath(name).read_text(encoding="utf-8")
