"""Tables of a card, in Markdown."""

from collections.abc import Mapping, Sequence

NOT_KNOWN = "not known"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; what would end a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def beside_each_other(columns: Mapping[str, Mapping[str, str]]) -> str:
    """Facts of several things by name, one column for each; where one lacks a fact it says so.

    Args:
        columns: heading -> facts by name.
    """
    names = dict.fromkeys(name for facts in columns.values() for name in facts)
    return table(["", *columns], [[name, *(facts.get(name, "") for facts in columns.values())] for name in names])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
