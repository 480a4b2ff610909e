import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from gpt2_lightning.data.articles import Row, Rows, as_articles
from gpt2_lightning.data.cleaning import CleaningName, get_cleaner
from gpt2_lightning.data.tokenizer import load_tokenizer
from gpt2_lightning.errors import UsageError
from gpt2_lightning.evaluate.text import ScoredText, detokenize_article, read_articles, read_joined
from tests.corpus import hub_rows, wiki_rows

Read = Callable[..., ScoredText]


def rows_of(texts: list[str], *, documents: bool = False) -> Rows:
    return as_articles(
        Rows(lambda: (Row(text, documents or not place) for place, text in enumerate(texts)))
    )


@pytest.fixture
def options(tiny_model: Path, tmp_path: Path) -> Callable[[CleaningName], dict[str, Any]]:
    def of(cleaning: CleaningName = "none") -> dict[str, Any]:
        tokenizer = load_tokenizer(str(tiny_model))
        return {
            "cleaner": get_cleaner(cleaning),
            "tokenizer": tokenizer,
            "cache": tmp_path / "cache",
        }

    return of


def text_of(read: ScoredText, options: dict[str, Any], unit: int = 0) -> str:
    start, tokens = read.starts[unit], read.tokens[unit]
    return str(options["tokenizer"].decode(read.ids[start : start + tokens].tolist()))


@pytest.mark.parametrize("as_hub", [True, False])  # blank rows as the Hub has them, or the files
def test_wikitext_is_joined_as_the_literature_joins_the_hubs_rows(
    as_hub: bool, options: Callable[..., dict[str, Any]]
) -> None:
    original = wiki_rows(articles=3)
    rows = rows_of(hub_rows(original) if as_hub else original)
    read = read_joined(rows, joiner=None, **options())
    wanted = "\n\n".join(hub_rows(original))
    assert text_of(read, options()) == wanted
    ids = options()["tokenizer"](wanted, verbose=False)["input_ids"]
    assert read.ids[read.starts[0] : read.starts[0] + read.tokens[0]].tolist() == ids
    assert read.counts.sha256 == sha256("".join(original).encode()).hexdigest()
    assert read.counts.bytes.tolist() == [len("".join(original).encode())]
    assert read.counts.words.tolist() == [len("".join(original).split())]


def test_rows_joined_with_nothing(options: Callable[..., dict[str, Any]]) -> None:
    original = wiki_rows(articles=2)
    read = read_joined(rows_of(original), joiner="nothing", **options())
    assert text_of(read, options()) == "".join(hub_rows(original))


def test_other_text_stays_as_it_is(options: Callable[..., dict[str, Any]]) -> None:
    lines = read_joined(rows_of(["one\n", "\n", "two"]), joiner=None, **options())
    assert text_of(lines, options()) == "one\n\ntwo"
    documents = read_joined(rows_of(["one", "two"], documents=True), joiner=None, **options())
    assert text_of(documents, options()) == "one\n\ntwo"


def test_articles_are_detokenised_and_counted_on_their_original(
    options: Callable[..., dict[str, Any]],
) -> None:
    originals = ["".join(wiki_rows(articles=1, seed=seed)) for seed in range(3)]
    rows = rows_of([row for text in originals for row in text.splitlines(keepends=True)])
    # the blank row before a title belongs to the article before it
    articles = [
        originals[0] + " \n",
        originals[1].removeprefix(" \n") + " \n",
        originals[2].removeprefix(" \n"),
    ]
    read = read_articles(rows, **options())
    assert [text_of(read, options(), unit) for unit in range(3)] == [
        detokenize_article(article) for article in articles
    ]
    assert read.counts.bytes.tolist() == [len(article.encode()) for article in articles]
    assert read.counts.words.tolist() == [len(article.split()) for article in articles]
    assert read.counts.harness_words.tolist() == [
        len(re.split(r"\s+", article)) for article in articles
    ]
    end_of_text = options()["tokenizer"].eos_token_id
    assert all(read.ids[start - 1] == end_of_text for start in read.starts)


def test_documents_that_are_no_wikitext_are_not_detokenised(
    options: Callable[..., dict[str, Any]],
) -> None:
    read = read_articles(rows_of(["it 's . ", "b ( c )"], documents=True), **options())
    assert [text_of(read, options(), unit) for unit in range(2)] == ["it 's . ", "b ( c )"]


def test_an_article_of_which_a_cleaner_leaves_nothing_keeps_its_place(
    options: Callable[..., dict[str, Any]],
) -> None:
    rows = rows_of(["one, two", "...", "three!"], documents=True)
    read = read_articles(rows, **options("tutorial"))
    assert [text_of(read, options(), unit).strip() for unit in range(3)] == [
        "one  two",
        "",
        "three",
    ]
    assert len(read.counts.bytes) == 3


@pytest.mark.parametrize("read", [read_articles, read_joined])
def test_no_text_is_a_mistake(read: Read, options: Callable[..., dict[str, Any]]) -> None:
    joiner = {"joiner": None} if read is read_joined else {}
    with pytest.raises(UsageError, match="--split: there is no text in it"):
        read(rows_of([]), **joiner, **options())
    with pytest.raises(UsageError, match=r"--data\.cleaning tutorial: nothing of the split"):
        read(rows_of(["...", "!"], documents=True), **joiner, **options("tutorial"))


@pytest.mark.parametrize(
    ("tokenised", "text"),
    [
        ("a 10 @-@ year plan", "a 10-year plan"),
        ("1 @,@ 000 or 2 @.@ 5", "1,000 or 2.5"),
        ("yes , no ; well : so . Then ! What ? Ah", "yes, no; well: so. Then! What? Ah"),
        ("( in 1923 ) [ sic ] { x }", "(in 1923) [sic] {x}"),
        ('he said " come in " twice', 'he said "come in" twice'),
        ("the towns ' bridges", "the towns' bridges"),
        ("it 's old", "it's old"),
        (" = = History = = \n", " == History ==\n"),
        ("at 20 ° south", "at 20°south"),
        ("N of the river N side", "N of the river 1 side"),  # lossy, as the harness has it
        ("one \n two", "one\ntwo"),
        # a pair of apostrophes far apart is treated as quotation marks
        ("rock ' n ' roll", "rock 'n' roll"),
    ],
)
def test_an_article_is_detokenized_by_the_harness_rules(tokenised: str, text: str) -> None:
    assert detokenize_article(tokenised) == text
