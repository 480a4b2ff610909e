from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from gpt2_lightning.data.articles import Row, Rows, as_articles
from gpt2_lightning.data.cleaning import Cleaner, CleaningName, get_cleaner
from gpt2_lightning.data.token_store import TokenStore
from gpt2_lightning.data.tokenizing import write_token_store
from gpt2_lightning.evaluate.text import count_text
from gpt2_lightning.inspect.rows import (
    CleaningLoss,
    CleaningMeter,
    Duplicate,
    RowCounter,
    find_duplicates,
)
from gpt2_lightning.inspect.tokens import (
    Bin,
    Vocabulary,
    edges,
    measure_lengths,
    measure_vocabulary,
)
from tests.corpus import wiki_rows

CHINESE = "河上的旧石桥是由两位曾在铁路上工作过的工程师建造的，人们每天都从桥上走过。\n"


def rows_of(texts: list[str], *, begins: bool = True) -> Rows:
    """Make rows; every one a document, or all of them one."""
    return Rows(lambda: (Row(text, begins or i == 0) for i, text in enumerate(texts)))


def read(rows: Rows) -> RowCounter:
    reader = RowCounter()
    for row in rows:
        reader.add(row)
    reader.end_article()
    return reader


def measure_cleaning(rows: Iterable[Row], cleaner: Cleaner, samples: int) -> CleaningLoss:
    meter = CleaningMeter(cleaner, samples)
    for row in rows:
        meter.add(row.text)
    return meter.loss


@pytest.mark.parametrize(
    "texts",
    [
        wiki_rows(articles=5),
        ["", "words here\n", " \n", " ", "a", "天气 好\n"],
        [""],
        ["one line without an end"],
        [],
    ],
)
@pytest.mark.parametrize("begins", [True, False])
def test_original_text_is_counted_as_for_evaluation(texts: list[str], begins: bool) -> None:
    rows = as_articles(rows_of(texts, begins=begins))
    found = read(rows).text
    assert found.rows == len(texts)
    if not any(texts):
        assert found.bytes == 0
        return
    counts = count_text(rows, by_article=True)
    assert found.articles == len(counts.words)
    assert found.words == counts.words.sum()
    assert found.harness_words == counts.harness_words.sum()
    assert found.bytes == counts.bytes.sum()
    assert found.blank_rows == sum(not text.strip() for text in texts)


@pytest.mark.parametrize(
    ("name", "row", "figures"),
    [
        # characters and punctuation before and after, numbers before and lost
        ("none", " It cost 1 @,@ 250 @.@ 5 dollars . \n", (21, 3, 21, 3, 1, 0)),
        ("detokenize", " It cost 1 @,@ 250 @.@ 5 dollars . \n", (21, 3, 21, 3, 1, 0)),
        ("tutorial", " It cost 1 @,@ 250 @.@ 5 dollars . \n", (21, 3, 18, 0, 1, 1)),
        ("tutorial", " In 1923 , 12 men + 3 dogs \n", (18, 2, 16, 0, 3, 0)),
        # vowel signs are no punctuation, yet that cleaner takes them
        ("tutorial", "पुल", (3, 0, 2, 0, 0, 0)),
        ("detokenize", ' = " A @-@ B " = \n', (7, 5, 7, 5, 0, 0)),
    ],
)
def test_cleaning_loss(name: CleaningName, row: str, figures: tuple[int, ...]) -> None:
    loss = measure_cleaning(rows_of([row]), get_cleaner(name), samples=1)
    assert (
        loss.characters,
        loss.punctuation,
        loss.characters_left,
        loss.punctuation_left,
        loss.numbers,
        loss.numbers_lost,
    ) == figures
    assert [sample.before for sample in loss.samples] == [row]
    assert [sample.after for sample in loss.samples] == [get_cleaner(name).clean(row)]


def test_emptied_rows_and_shares() -> None:
    rows = rows_of([" . . . \n", " \n", " words , 1.5 \n"])
    loss = measure_cleaning(rows, get_cleaner("tutorial"), samples=0)
    assert loss.rows_emptied == 1
    assert loss.share_of_punctuation_lost == 1
    assert loss.share_of_characters_lost == pytest.approx(5 / 12)
    assert loss.share_of_numbers_lost == 1
    assert loss.text_words == 3
    assert loss.samples == []
    assert measure_cleaning([], get_cleaner("tutorial"), samples=2) == CleaningLoss()


def test_samples_are_the_same_under_every_cleaner_and_bounded() -> None:
    rows = rows_of([*wiki_rows(articles=30), "x" * 5000])
    found = [
        measure_cleaning(rows, get_cleaner(name), samples=4)
        for name in ("none", "detokenize", "tutorial")
    ]
    drawn = [[sample.before for sample in loss.samples] for loss in found]
    assert drawn[0] == drawn[1] == drawn[2]
    assert len(set(drawn[0])) == 4
    assert all(40 <= len(text) <= 400 for text in drawn[0])


def test_lengths() -> None:
    pieces = [np.array([1, 1, 5, 5, 5]), np.array([5, 100, 128])]
    found, counts = measure_lengths(pieces)
    assert counts == Counter({1: 2, 5: 4, 100: 1, 128: 1})
    assert (found.units, found.shortest, found.median, found.longest) == (8, 1, 5, 128)
    assert found.mean == 250 / 8
    assert found.percentile_95 == 128
    assert [one for one in found.bins if one.units] == [
        Bin(1, 1, 2),
        Bin(5, 6, 4),
        Bin(97, 128, 2),
    ]
    assert (found.bins[0].low, found.bins[-1].high) == (1, 128)
    assert all(a.high + 1 == b.low for a, b in zip(found.bins, found.bins[1:], strict=False))
    (none,) = measure_lengths([np.array([0, 0])])[0].bins
    assert none == Bin(0, 0, 2)
    assert [edge for edge, _ in zip(edges(), range(9), strict=False)] == [
        -1, 0, 1, 2, 3, 4, 6, 8, 12,
    ]  # fmt: skip


def test_duplicates_but_for_white_space() -> None:
    texts = ["a  stone bridge\n", "an arch", "a stone\tbridge ", "", "  ", "an arch\n", "a stone"]
    rows = rows_of(texts)
    found = find_duplicates(rows, read(rows).digests, None)
    assert found.articles == 2
    assert found.in_training is None
    assert found.examples == [Duplicate(3, 1, "a stone bridge"), Duplicate(6, 2, "an arch")]


def test_articles_of_several_rows_and_of_the_training_split() -> None:
    train = as_articles(rows_of(wiki_rows(articles=6), begins=False))
    other = as_articles(
        rows_of([*wiki_rows(articles=2, seed=1), *wiki_rows(articles=6)[-6:]], begins=False)
    )
    found = find_duplicates(other, read(other).digests, read(train).digests)
    assert found.articles == 0
    assert found.in_training == 1
    (one,) = found.examples_in_training
    assert (one.article, one.repeats) == (3, 6)
    assert one.beginning.startswith("= Bridge 0 5 of stone =")


def vocabulary_of(texts: list[str], model: Path, folder: Path) -> Vocabulary:
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows, cleaner = rows_of(texts), get_cleaner("none")
    write_token_store(
        folder,
        rows,
        cleaner=cleaner,
        tokenizer=tokenizer,
        unit="article",
        shaped_by={"unit": "article"},
    )
    loss = measure_cleaning(rows, cleaner, samples=0)
    found = measure_vocabulary(TokenStore.open(folder), tokenizer, loss)
    ids = tokenizer("".join(texts))["input_ids"]
    assert found.used == len({*ids, tokenizer.eos_token_id})
    assert found.size == len(tokenizer)
    return found


def test_a_vocabulary_that_suits(tiny_model: Path, tmp_path: Path) -> None:
    text = "the old stone bridge of the town\n"
    found = vocabulary_of([text], tiny_model, tmp_path / "store")
    ids = AutoTokenizer.from_pretrained(tiny_model)(text)["input_ids"]
    assert (found.tokens, found.ends_of_text) == (len(ids), 2)
    assert found.tokens_per_word == len(ids) / 7
    assert found.tokens_per_character == len(ids) / len(text)
    assert (found.pieces_of_characters, found.unknown) == (0, 0)


def test_a_vocabulary_that_does_not_suit(tiny_model: Path, tmp_path: Path) -> None:
    found = vocabulary_of([CHINESE], tiny_model, tmp_path / "store")
    assert found.tokens_per_word is None  # such a script has no spaces
    assert found.tokens_per_character is not None
    assert found.tokens_per_character > 2
    assert found.pieces_of_characters > 0.9


def test_a_mark_that_a_cleaner_makes_a_word_is_counted() -> None:
    rows = [Row("the <unk> of <unk> bridge", True), Row("an unknown town", False)]
    found = measure_cleaning(rows, get_cleaner("tutorial"), samples=0)
    assert found.marks_made_words == {"<unk>": ("unk", 2)}
    assert measure_cleaning(rows, get_cleaner("none"), samples=0).marks_made_words == {}
