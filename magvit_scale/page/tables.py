"""Tables and numbers as a reader wants them."""

from collections.abc import Sequence
from math import isfinite


def number(value: float | None) -> str:
    """Three significant digits or a little more; n/a where there is no value."""
    if value is None or not isfinite(value):
        return "n/a"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    digits = 1 if size >= 100 else 2 if size >= 10 else 3
    return f"{value:.2e}" if 0 < size < 1e-3 else f"{value:.{digits}f}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table that scrolls by itself on a narrow screen; cells are HTML, the first column names the row."""
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
