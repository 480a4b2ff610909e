"""Markdown: the few forms that a model card is made of."""

from collections.abc import Iterable
from typing import Any


def code(text: Any) -> str:
    """Return text as it is, in code's type."""
    return "`" + str(text).replace("`", "'").replace("\n", " ") + "`"


def number(value: Any) -> str:
    """Return a number to read; nothing for None."""
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table; rows whose last cell is empty are left out."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    titles, kept = list(head), [list(row) for row in rows]
    lines = [line(row) for row in kept if row[-1]]
    return "\n".join([line(titles), line(["---"] * len(titles)), *lines])
