import random
import tracemalloc

import pytest

from gpt2_lightning.data.articles import Row, Rows, split_rows


def articles(count: int, seed: int = 0) -> list[list[Row]]:
    chance = random.Random(seed)
    return [
        [
            Row(f"{index} {line} {'x' * chance.randint(1, 60)}\n", line == 0)
            for line in range(chance.randint(1, 9))
        ]
        for index in range(count)
    ]


def as_rows(parts: list[list[Row]]) -> Rows:
    flat = [row for part in parts for row in part]
    return Rows(lambda: iter(flat))


def text(rows: Rows) -> str:
    return "".join(row.text for row in rows)


def test_whole_articles_are_held_out_and_nothing_is_lost() -> None:
    parts = articles(200)
    splitting = split_rows(as_rows(parts), ["validation", "test"])
    assert splitting.articles is not None
    found = {name: list(rows) for name, rows in splitting.rows.items()}
    assert sorted(row for rows in found.values() for row in rows) == sorted(
        row for part in parts for row in part
    )
    owner = {row: name for name, rows in found.items() for row in rows}
    assert all(len({owner[row] for row in part}) == 1 for part in parts)
    whole = len(text(as_rows(parts)))
    for name in ("validation", "test"):
        assert 0.04 < len(text(splitting.rows[name])) / whole < 0.07


def test_the_choice_does_not_depend_on_the_order_of_articles() -> None:
    parts = articles(60)
    one = split_rows(as_rows(parts), ["validation", "test"])
    other = split_rows(as_rows(parts[::-1]), ["validation", "test"])
    for name in one.rows:
        assert sorted(one.rows[name]) == sorted(other.rows[name])


def test_few_articles_are_cut_by_position_at_line_ends() -> None:
    lines = [f"line {index} {'x' * (index % 7)}\n" for index in range(400)]
    rows = Rows(lambda: (Row(line, index == 0) for index, line in enumerate(lines)))
    splitting = split_rows(rows, ["validation", "test"])
    assert splitting.articles is None
    parts = [text(splitting.rows[name]) for name in ("train", "validation", "test")]
    assert "".join(parts) == "".join(lines)
    assert all(part.endswith("\n") for part in parts)
    whole = len("".join(lines))
    assert [round(len(part) / whole, 2) for part in parts] == [0.9, 0.05, 0.05]
    assert next(iter(splitting.rows["validation"])).begins


def test_one_long_document_of_many_lines_is_cut_too() -> None:
    rows = Rows(lambda: iter([Row("a line\n" * 1000, True)]))
    splitting = split_rows(rows, ["test"])
    assert text(splitting.rows["train"]) + text(splitting.rows["test"]) == "a line\n" * 1000
    assert len(text(splitting.rows["test"])) == 350


def test_only_missing_splits_are_taken() -> None:
    assert set(split_rows(as_rows(articles(30)), ["validation"]).rows) == {"train", "validation"}


def test_a_split_of_giants_still_gets_an_article() -> None:
    parts = [[Row(f"{index}" * 1000 + "\n", True)] for index in range(20)]
    splitting = split_rows(as_rows(parts), ["validation", "test"])
    assert all(text(rows) for rows in splitting.rows.values())


def test_a_text_of_one_line_is_cut_between_words() -> None:
    line = "".join(f"word{index} " for index in range(1000))
    rows = Rows(lambda: iter([Row(line, True)]))
    splitting = split_rows(rows, ["validation", "test"])
    parts = [text(splitting.rows[name]) for name in ("train", "validation", "test")]
    assert "".join(parts) == line
    assert all(len(part) > 300 for part in parts)
    assert all(part.strip().startswith("word") for part in parts)


def test_a_document_stays_one_row() -> None:
    documents = [Row(f"first line {index}\nsecond line\n", True) for index in range(10)]
    splitting = split_rows(Rows(lambda: iter(documents)), ["test"])
    train, test = list(splitting.rows["train"]), list(splitting.rows["test"])
    assert train[:9] == documents[:9]
    assert len(train) + len(test) <= 11  # at most the last one is in two parts


@pytest.mark.parametrize("character", ["x", "字"])
def test_a_text_without_blanks_is_cut_between_characters(character: str) -> None:
    rows = Rows(lambda: iter([Row(character * 1000 + "\n", True)]))
    splitting = split_rows(rows, ["validation", "test"])
    parts = [text(splitting.rows[name]) for name in ("train", "validation", "test")]
    assert "".join(parts) == character * 1000 + "\n"
    assert [round(len(part) / 1000, 2) for part in parts] == [0.9, 0.05, 0.05]


def test_a_text_that_is_cut_keeps_the_mark_of_its_beginning() -> None:
    rows = Rows(lambda: iter([Row("one two three " * 30, True), Row("four five " * 90, True)]))
    train = list(split_rows(rows, ["test"]).rows["train"])
    assert [row.begins for row in train] == [True, True]


def test_a_giant_line_is_cut_without_a_list_of_its_words() -> None:
    line = "a bc " * 200_000
    splitting = split_rows(Rows(lambda: iter([Row(line, True)])), ["validation", "test"])
    tracemalloc.start()
    try:
        size = len(text(splitting.rows["train"]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size == pytest.approx(0.9 * len(line), abs=5)
    assert peak < 3 * len(line)  # the cut text, and the copy that joins it; each word is 50 bytes
