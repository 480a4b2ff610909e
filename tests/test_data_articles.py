from collections.abc import Iterator

import pytest

from gpt2_lightning.data.articles import ROWS_SEARCHED_FOR_TITLE, Row, is_title, mark_articles
from tests.corpus import hub_rows, wiki_rows


@pytest.mark.parametrize(
    ("text", "title"),
    [
        (" = Robert Boulter = \n", True),
        (" = Robert Boulter = ", True),
        (" = = Career = = \n", False),
        (" = = = Early = = = \n", False),
        ("= Robert Boulter =\n", False),
        (" a = b = c \n", False),
        (" = half of an equation \n", False),
        ("", False),
    ],
)
def test_is_title(text: str, title: bool) -> None:
    assert is_title(text) is title


def test_original_and_hub_rows_give_the_same_articles() -> None:
    rows = wiki_rows(articles=3)
    original = list(mark_articles(Row(text, index == 0) for index, text in enumerate(rows)))
    hub = list(mark_articles(Row(text, True) for text in hub_rows(rows)))
    assert original == hub
    assert [row.text for row in original] == rows


def test_blank_rows_before_the_first_title_belong_to_its_article() -> None:
    rows = [" \n", " \n", " = One = \n", " text \n", " = Two = \n"]
    marked = [row.begins for row in mark_articles(Row(text, True) for text in rows)]
    assert marked == [True, False, False, False, True]


def test_text_before_the_first_title_is_an_article() -> None:
    rows = [" preface \n", " = One = \n", " text \n"]
    marked = [row.begins for row in mark_articles(Row(text, True) for text in rows)]
    assert marked == [True, True, False]


def test_without_titles_documents_are_articles_and_stay_as_they_are() -> None:
    rows = [Row("a document", True), Row("", True), Row("another", True)]
    assert list(mark_articles(rows)) == rows


def test_the_search_for_a_title_is_bounded() -> None:
    rows = [Row("x", True)] * ROWS_SEARCHED_FOR_TITLE + [Row(" = Late = ", True)]
    assert list(mark_articles(rows)) == rows


def test_few_long_rows_are_held_while_a_title_is_looked_for() -> None:
    given = 0

    def books() -> Iterator[Row]:
        nonlocal given
        for number in range(1, 101):
            given = number
            yield Row("a" * 4_000_000, True)

    marked = mark_articles(books())
    next(marked)
    assert given == 5  # the first with which more than 16 million characters are held
    assert len(list(marked)) == 99
