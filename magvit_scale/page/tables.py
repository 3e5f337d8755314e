"""Tables and numbers as a reader wants them."""

from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite
from typing import Any

from magvit_scale.page.inputs import flattened


def number(value: float | None) -> str:
    """Three significant digits or a little more; n/a where there is no value."""
    if value is None or not isfinite(value):
        return "n/a"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    digits = 1 if size >= 100 else 2 if size >= 10 else 3
    return f"{value:.2e}" if 0 < size < 1e-3 else f"{value:.{digits}f}"


def table(name: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table in a box that scrolls.

    Args:
        name: for readers who hear the page; plain text.
        heads: HTML of the columns' heads.
        rows: HTML of the cells; the first one names the row.
    """
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in rows
    )
    return scroll_box(name, f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def scroll_box(name: str, body: str) -> str:
    """What may be wider than a narrow screen, in a box of its own that scrolls, by keyboard too."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(name)}">{body}</div>'


def definitions(values: Mapping[str, Any]) -> str:
    """Names and values as a list, `part.key` where they are nested; empty where there are none."""
    if not values:
        return ""
    flat = {key: ", ".join(map(str, value)) if isinstance(value, list) else value for key, value in flattened(values)}
    items = (f"<div><dt>{escape(key)}</dt><dd>{escape(str(value))}</dd></div>" for key, value in flat.items())
    return f"<dl>{''.join(items)}</dl>"
