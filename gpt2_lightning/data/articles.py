"""Rows to articles: where an article begins, and WikiText's blank rows restored."""

import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice

from gpt2_lightning.data.rows import Row, Rows

TITLE = re.compile(r" = [^=].*[^=] = ")
ARTICLE_RULE_VERSION = 1
# A text in WikiText's manner shows a title early; a corpus of other text is not read twice.
ROWS_SEARCHED_FOR_TITLE = 1000


def is_title(text: str) -> bool:
    r"""Tell whether a row is an article's title, such as ``" = Valkyria = \n"``."""
    return TITLE.fullmatch(text.removesuffix("\n")) is not None


def has_titles(rows: Iterable[Row]) -> bool:
    """Tell whether a text is in WikiText's manner: a title stands among its first rows."""
    return any(is_title(row.text) for row in islice(rows, ROWS_SEARCHED_FOR_TITLE))


def mark_articles(rows: Iterable[Row]) -> Iterator[Row]:
    r"""Mark the rows that begin an article.

    Where a title stands among the first rows, articles run from title to title, rows are lines,
    and the newline that the Hub's copy of WikiText takes from blank rows (``""`` for ``" \n"``)
    is given back. Blank rows before the first title belong to the first article. Elsewhere every
    document of the source (a text file, a row of a table) is one article.

    Args:
        rows: Rows as the source has them, ``begins`` marking documents.

    Yields:
        The rows in the same order, ``begins`` marking articles.
    """
    stream = iter(rows)
    head = list(islice(stream, ROWS_SEARCHED_FOR_TITLE))
    if not has_titles(head):
        yield from head
        yield from stream
        return
    first, blank_so_far = True, True
    for row in chain(head, stream):
        title = is_title(row.text)
        yield Row(_as_line(row.text), begins=first or (title and not blank_so_far))
        first, blank_so_far = False, blank_so_far and not title and not row.text.strip()


def as_articles(rows: Rows) -> Rows:
    """Return the same rows, those that begin an article marked (see `mark_articles`)."""
    identity = f"{rows.identity} articles {ARTICLE_RULE_VERSION}"
    return Rows(lambda: mark_articles(rows), rows.files, identity)


def _as_line(text: str) -> str:
    if text.endswith("\n"):
        return text
    return (text or " ") + "\n"
