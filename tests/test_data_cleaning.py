import random
import re

import pytest

from gpt2_lightning.data.cleaning import CLEANERS, MARKS, detokenize, get_cleaner, tutorial

DETOKENIZED = [
    (" = Stone Bridge = \n", "= Stone Bridge =\n"),
    (" = = Early years = = \n", "== Early years ==\n"),
    (" = = = The town 's mill = = = \n", "=== The town's mill ===\n"),
    (" \n", "\n"),
    ("", ""),
    (" A plain row . \n", "A plain row.\n"),
    (" A row without its newline .", "A row without its newline."),
    (" a two @-@ arch bridge \n", "a two-arch bridge\n"),
    (" a two @-@ to @-@ four @-@ lane road \n", "a two-to-four-lane road\n"),
    (" 3 @,@ 000 @,@ 000 people \n", "3,000,000 people\n"),
    (" 12 @.@ 5 metres \n", "12.5 metres\n"),
    (" cut off in 1932 @,@  \n", "cut off in 1932,\n"),
    (" stone , brick ; wood : all \n", "stone, brick; wood: all\n"),
    (" Really ? Yes ! \n", "Really? Yes!\n"),
    (" the arch ( built in 1923 ) , still there \n", "the arch (built in 1923), still there\n"),
    (" an aside [ sic ] here \n", "an aside [sic] here\n"),
    (' he said " not now " . \n', 'he said "not now".\n'),
    (' " First " and " second " \n', '"First" and "second"\n'),
    (' ( " The Mill " ) \n', '("The Mill")\n'),
    (' an inch is " and stays \n', 'an inch is " and stays\n'),
    (" it 's the town 's \n", "it's the town's\n"),
    (" they 're here , I 've gone , we 'll see , I 'd say , I 'm \n",
     "they're here, I've gone, we'll see, I'd say, I'm\n"),
    (" they do n't and ca n't . \n", "they don't and can't.\n"),
    (" in the 1980 's . \n", "in the 1980's.\n"),
    (" called ' lions ' by all \n", "called 'lions' by all\n"),
    (" the players ' own room \n", "the players ' own room\n"),
    (" St. Louis and the U.S. Army \n", "St. Louis and the U.S. Army\n"),
    (" it stopped ... and went on \n", "it stopped... and went on\n"),
    (" $ 5 and £ 3 \n", "$5 and £3\n"),
    (" about 50 % of them \n", "about 50% of them\n"),
    (" 1914 – 1918 \n", "1914 – 1918\n"),
    (" .22 calibre \n", ".22 calibre\n"),
    (" see example.org / about \n", "see example.org / about\n"),
    (" 桥 , 1923 \n", "桥, 1923\n"),
    (" <unk> and <unk> , \n", "<unk> and <unk>,\n"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "expected"), DETOKENIZED)
def test_detokenize(row: str, expected: str) -> None:
    assert detokenize(row) == expected


def without_marks(text: str) -> str:
    """Return the text as both tokenised and detokenised rows must have it."""
    return MARKS.sub(r"\1", MARKS.sub(r"\1", text)).replace(" ", "")


def test_detokenize_loses_spaces_and_marks_only() -> None:
    pieces = ["word", "'", '"', "'s", "n't", "(", ")", "[", "]", ",", ".", "@-@", "@,@", "@.@"]
    pieces += ["=", "$", "%", "...", "–", "中", "\u00a0", "\t", "?", "!", ";", ":", "{", "}", "@"]
    chance = random.Random(0)
    for _ in range(3000):
        row = f" {' '.join(chance.choices(pieces, k=chance.randint(0, 25)))} \n"
        assert without_marks(detokenize(row)) == without_marks(row)


def test_detokenize_copes_with_a_long_row() -> None:
    row = " " + "say \" a @-@ b ( c ) 1 @,@ 2 ' s " * 40_000 + "\n"
    assert without_marks(detokenize(row)) == without_marks(row)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (" = Stone Bridge = \n", "Stone Bridge"),
        (" it 's 12 @.@ 5 metres , about . \n", "it  s 12   5 metres   about"),
        ("他说：“你好”, 2023年!", "他说 你好  2023年"),
        (" \n", ""),
        ("snake_case stays, <unk> goes", "snake_case stays   unk  goes"),
        ("ends。 《书》", "ends   书"),
    ],
)
def test_tutorial(row: str, expected: str) -> None:
    assert tutorial(row) == expected
    assert expected == re.sub(r"[^\w\s\u4e00-\u9fff]+", " ", row).strip()


def test_the_table_of_cleaners() -> None:
    assert [(c.name, c.lossless, c.drops_empty) for c in CLEANERS.values()] == [
        ("none", True, False),
        ("detokenize", True, False),
        ("tutorial", False, True),
    ]
    assert get_cleaner("none").clean(" a , b \n") == " a , b \n"
    assert all(cleaner.version >= 1 for cleaner in CLEANERS.values())
