"""Ids put together from those of distinct words are the ids of the whole text."""

import random
from pathlib import Path

import pytest

from gpt2_lightning.data.encoding import Encoder
from gpt2_lightning.data.tokenizer import load_tokenizer, train_tokenizer
from tests.test_data_tokenizer import bert_folder

# blanks of all kinds, what is a blank to Python alone (U+001C), and what is beside them
PARTS = [
    " ",
    " ",
    " ",
    "  ",
    "\n",
    "\t",
    "\r\n",
    "\x0b",
    "\x1c",
    "\x85",
    "\xa0",
    "\u2003",
    "\u3000",
]
PARTS += ["a", "b7", "'s", "'", ".", "\x00", "é", "e\u0301", "“", "Я", "的", "🙂", "-@-"]


def odd_texts(seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(PARTS, k=draw.randrange(60))) for _ in range(300)]


@pytest.mark.parametrize("kind", ["trained", "bert"])
@pytest.mark.parametrize("added", ["", "<|endoftext|>"])
def test_ids_of_words_are_those_of_the_whole(kind: str, added: str, tmp_path: Path) -> None:
    texts = [added.join([text, *[" "] * bool(added)]) for text in odd_texts(0)]
    # trained on the same blanks, so that it has tokens of several
    tokenizer = train_tokenizer(odd_texts(1) * 3, 600)
    if kind == "bert":
        tokenizer = load_tokenizer(str(bert_folder(tmp_path / "bert", sep=True)))
    encoder = Encoder(tokenizer)
    assert encoder([]) == []
    found = [encoder(texts[at : at + 50]) for at in range(0, len(texts), 50)]
    whole = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert [ids.tolist() for batch in found for ids in batch] == whole
    assert bool(encoder._known) == (kind == "bert" or not added)
    assert encoder(["", ""])[1].tolist() == []


def test_a_word_that_repeats_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(train_tokenizer(odd_texts(1), 300))
    seen: list[str] = []
    ids = encoder._ids

    def noted(texts: list[str]) -> list[list[int]]:
        seen.extend(texts)
        return ids(texts)

    monkeypatch.setattr(encoder, "_ids", noted)
    for _ in range(2):
        encoder(["a bridge and a bridge"] * 2)
    assert sorted(seen) == [" a", " and", " bridge", "a"]
