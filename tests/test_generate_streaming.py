"""Pieces of text: whole characters, nothing of a stop string, and nothing missing."""

import random
from collections.abc import Iterator

import pytest
from transformers import PreTrainedTokenizerBase

from gpt2_lightning.data.token_text import decoder
from gpt2_lightning.data.tokenizer import train_tokenizer
from gpt2_lightning.generate.drawing import text_pieces
from gpt2_lightning.model.decoding import completes_stop
from tests.corpus import wiki_rows


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """Few tokens, so that a Chinese character is three of them and an emoji four."""
    return train_tokenizer(wiki_rows(articles=8), 300)


TEXTS = [
    "the river was built",
    "从前有一座山，山里有一座庙。",
    "a 😀 b 👩‍👩‍👧 c 🇨🇳",
    "naïve café — “stone”\n\nGänsefüßchen",
    "\ufffd is a character, too \ufffd",
]


@pytest.mark.parametrize("text", TEXTS)
def test_every_piece_is_whole_and_comes_at_once(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    ids = tokenizer(text)["input_ids"]
    assert len(ids) > 2
    decode = decoder(tokenizer)
    taken: list[int] = []

    def tokens() -> Iterator[int]:
        for count, token in enumerate(ids, 1):
            taken.append(count)
            yield token

    shown = ""
    for piece in text_pieces(tokens(), decode):
        assert piece
        shown += piece
        assert text.startswith(shown)
        # nothing is held back but bytes of a character that is not whole yet
        assert decode(ids[: taken[-1]]).rstrip("\ufffd") == shown.rstrip("\ufffd")
    assert shown == text
    assert taken == list(range(1, len(ids) + 1))


def test_bytes_that_make_no_character(tokenizer: PreTrainedTokenizerBase) -> None:
    decode = decoder(tokenizer)
    chance = random.Random(0)
    for _ in range(200):
        ids = [chance.randrange(256) for _ in range(30)]
        pieces = list(text_pieces(ids, decode))
        assert "".join(pieces) == decode(ids)
        assert not any(piece.endswith("\ufffd") for piece in pieces[:-1])


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", [" th", "wo "], "one t"),
        ("one two tw", ["two three"], "one two tw"),  # it began, and did not come
        ("ototwo", ["otw"], "ot"),
        ("从前有一座山。山里", ["。"], "从前有一座山"),
        ("a 😀 b 😁 c", ["😁"], "a 😀 b "),
        ("one\n\ntwo", ["\n\n"], "one"),
        ("two", ["two"], ""),
    ],
)
def test_nothing_of_a_stop_string_is_shown(
    tokenizer: PreTrainedTokenizerBase, text: str, stop: list[str], shown: str
) -> None:
    ids = tokenizer(text)["input_ids"]
    pieces = list(text_pieces(ids, decoder(tokenizer), stop))
    assert "".join(pieces) == shown
    seen = ""
    for piece in pieces:
        seen += piece
        assert shown.startswith(seen)


@pytest.mark.parametrize("stop", ["从前", "前有一", "😀", "two three"])
def test_the_token_that_completes_a_stop_string_is_seen(
    tokenizer: PreTrainedTokenizerBase, stop: str
) -> None:
    decode = decoder(tokenizer)
    ids = tokenizer("one two three four, 从前有一座山 😀 at the end")["input_ids"]
    completed = [
        count for count in range(1, len(ids) + 1) if completes_stop([stop], ids[:count], decode)
    ]
    assert completed[0] == next(
        count for count in range(1, len(ids) + 1) if stop in decode(ids[:count])
    )


def test_the_tail_alone_does_not_stop_a_text() -> None:
    def decode(ids: list[int]) -> str:
        """Mark pieces of words where there is nothing before them, as WordPiece does."""
        words = "".join(chr(97 + token) for token in ids)
        return words if ids[0] == 0 else "##" + words

    assert decode([1, 2]) == "##bc"
    assert not completes_stop(["##"], [0, *[1] * 20], decode)
    assert completes_stop(["##"], [*[1] * 20], decode)


def test_it_reads_no_further_than_the_stop_string(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("one two three")["input_ids"]
    stream = iter(ids)
    pieces = text_pieces(stream, decoder(tokenizer), ["two"])
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            read = end.value
            break
    assert decoder(tokenizer)(read).endswith("two")
    assert read + list(stream) == ids
