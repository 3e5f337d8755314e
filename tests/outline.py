"""What a page of HTML is made of: headings, pictures, and everything that it would fetch."""

from html.parser import HTMLParser
from pathlib import Path


class Outline(HTMLParser):
    """Collects headings and everything a page would fetch; fails on unbalanced elements."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.sources: list[str] = []
        self.images = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [str(value) for key, value in attrs if key in ("src", "href", "xlink:href", "srcset")]
        self.images += tag == "img"
        if tag not in ("img", "meta", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [str(value) for key, value in attrs if key in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h2", "h3"):
            self.headings.append(data.strip())


def outline(path: Path) -> Outline:
    """Of a page that must be well-formed."""
    parser = Outline()
    parser.feed(path.read_text())
    assert parser.open == []
    return parser
