import json
import random
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from gpt2_lightning.data.articles import Row, word_chunks
from gpt2_lightning.data.cleaning import get_cleaner
from gpt2_lightning.data.encoding import Encoder
from gpt2_lightning.data.token_store import (
    TokenStore,
    primed_xz_bits_per_byte,
    store_name,
)
from gpt2_lightning.data.tokenizer import (
    keeps_every_byte,
    load_tokenizer,
    lost_by_tokens,
    lost_text,
)
from gpt2_lightning.data.tokenizing import write_token_store
from gpt2_lightning.errors import UsageError
from gpt2_lightning.inspect.rows import RowCounter
from tests.corpus import wiki_rows
from tests.test_data_token_text import without_unused_bytes
from tests.test_data_tokenizer import bert_folder

ROWS = [
    Row(" = One = \n", True),
    Row(" a bridge , of stone \n", False),
    Row(" \n", False),
    Row(" = Two = \n", True),
    Row(" 中文 \n", False),
]


@pytest.fixture
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(tiny_model))


def write(
    folder: Path,
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    cleaning: str = "none",
    unit: str = "article",
) -> TokenStore:
    write_token_store(
        folder,
        rows,
        cleaner=get_cleaner(cleaning),  # type: ignore[arg-type] # parametrised by name
        tokenizer=tokenizer,
        unit=unit,  # type: ignore[arg-type] # parametrised by name
        shaped_by={"a": 1},
    )
    return TokenStore.open(folder)


def test_articles_end_with_end_of_text(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    store = write(tmp_path / "store", ROWS, tokenizer)
    eos = tokenizer.eos_token_id
    articles = ["".join(row.text for row in part) for part in (ROWS[:3], ROWS[3:])]
    one, two = (tokenizer(text)["input_ids"] for text in articles)
    assert store.ids.tolist() == [eos, *one, eos, *two, eos]
    assert store.starts.tolist() == [1, 2 + len(one), 3 + len(one) + len(two)]
    assert store.ids.dtype == np.uint16
    text = "".join(articles)
    manifest = store.manifest
    assert (manifest.tokens, manifest.units, manifest.articles) == (len(store.ids), 2, 2)
    assert (manifest.rows, manifest.words) == (5, len(text.split()))
    assert manifest.bytes == manifest.cleaned_bytes == len(text.encode())
    assert manifest.shaped_by == {"a": 1}


def test_rows_stand_alone_without_blank_ones(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    store = write(tmp_path / "store", ROWS, tokenizer, cleaning="tutorial", unit="row")
    kept = ["One", "a bridge   of stone", "Two", "中文"]
    assert store.manifest.units == 4
    for index, text in enumerate(kept):
        ids = store.ids[store.starts[index] : store.starts[index + 1]]
        assert ids.tolist() == tokenizer(text)["input_ids"]


def test_cutting_long_text_changes_no_id(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(wiki_rows(articles=6)) + "\n\n  \n x" + "no space at all" * 3 + " \t\n end"
    lines = [Row(line + "\n", index == 0) for index, line in enumerate(text.split("\n"))]
    whole = write(tmp_path / "whole", [Row("".join(r.text for r in lines), True)], tokenizer)
    monkeypatch.setattr("gpt2_lightning.data.tokenizing.CHARACTERS_PER_PIECE", 7)
    monkeypatch.setattr("gpt2_lightning.data.tokenizing.CHARACTERS_PER_BATCH", 30)
    pieces = write(tmp_path / "pieces", lines, tokenizer)
    assert np.array_equal(whole.ids, pieces.ids)
    assert np.array_equal(whole.starts, pieces.starts)
    assert tokenizer.decode(pieces.ids[1:-1].tolist()) == "".join(row.text for row in lines)


def test_a_text_without_any_row(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    store = write(tmp_path / "store", [], tokenizer, unit="row")
    assert store.manifest.units == 0
    assert len(store.ids) == 0


def test_nothing_is_left_of_a_writing_that_failed(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    def broken() -> Iterator[Row]:
        yield Row("a bridge", True)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        write(tmp_path / "store", broken(), tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_the_name_tells_every_change() -> None:
    base = {"rows": "x", "cleaning": ["none", 1]}
    assert store_name(base) == store_name(dict(reversed(base.items())))
    assert store_name(base) != store_name({**base, "cleaning": ["none", 2]})


def test_what_is_lost_is_decided_by_the_text(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert write(tmp_path / "all", ROWS, tokenizer).manifest.lost == []
    assert write(tmp_path / "cleaned", ROWS, tokenizer, "tutorial", "row").manifest.lost == []
    # its vocabulary lacks bytes that no text holds, as SmolLM2's does
    fewer = without_unused_bytes()
    assert not keeps_every_byte(fewer)
    assert write(tmp_path / "fewer", ROWS, fewer).manifest.lost == []
    words = load_tokenizer(str(bert_folder(tmp_path / "bert", sep=True)))
    lossy = write(tmp_path / "words", ROWS, words).manifest.lost
    assert lossy is not None
    assert "line ends" in lossy
    assert "characters that are not in the vocabulary" in lossy


@pytest.mark.parametrize(
    ("text", "back", "lost"),
    [
        ("a b", "a b", []),
        ("a b", " a b", []),  # a space before every text
        ("a\nb", "a b", ["line ends"]),
        ("A b\n", "a b", ["line ends", "capital letters"]),
        ("a  b", "a b", ["spaces"]),
        ("café", "cafe", ["the form of some characters"]),
    ],
)
def test_what_is_lost_is_named(text: str, back: str, lost: list[str]) -> None:
    assert lost_text(text, back, unknown=False) == lost


def test_a_store_of_an_earlier_version_opens(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    store = write(tmp_path / "store", ROWS, tokenizer)
    file = tmp_path / "store" / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    del manifest["lost"]
    file.write_text(json.dumps(manifest), encoding="utf-8")
    opened = TokenStore.open(tmp_path / "store").manifest
    assert opened.lost is None
    assert opened.tokens == store.manifest.tokens
    assert lost_by_tokens(opened.lost, tokenizer) == ""
    assert "an earlier version" in lost_by_tokens(opened.lost, without_unused_bytes())
    assert lost_by_tokens(["line ends", "spaces"], tokenizer) == "line ends and spaces"


def test_a_long_text_is_cut_before_white_space_and_a_long_word_is_not() -> None:
    text = "one  two\nthree " * 50
    parts = list(word_chunks(text, 20))
    assert "".join(parts) == text
    assert all(20 <= len(part) < 30 for part in parts[:-1])
    assert all(part[0].isspace() for part in parts[1:])
    assert [word for part in parts for word in part.split()] == text.split()
    assert list(word_chunks("x" * 100, 20)) == ["x" * 100]
    assert list(word_chunks("", 20)) == [""]


def test_the_words_of_a_giant_line_are_not_listed(tmp_path: Path) -> None:
    line = "a bc " * 200_000
    reader = RowCounter()
    tracemalloc.start()
    try:
        reader.add(Row(line, True))
        reader.end_article()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reader.text.words == 400_000
    assert peak < 3 * len(line)  # a stretch, and the line as bytes; each word is 50 bytes


WITHOUT_BLANKS = {
    "Chinese": "".join(chr(0x4E00 + number * number % 499) for number in range(3000)),
    "quotes": "don't''s12,e\u0301🙂<|endoftext|>''ll的一是" * 120,
    "one letter": "=" * 4000,
    "blanks": ("x" + " " * 700 + "\n" * 9) * 5,
}


@pytest.mark.parametrize("name", WITHOUT_BLANKS)
@pytest.mark.parametrize("kind", ["trained", "bert"])
def test_windows_give_the_ids_of_the_whole(
    name: str,
    kind: str,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gpt2_lightning.data.encoding.WINDOW", 600)
    monkeypatch.setattr("gpt2_lightning.data.encoding.OVERLAP", 400)
    monkeypatch.setattr("gpt2_lightning.data.tokenizing.CHARACTERS_PER_PIECE", 600)
    text = WITHOUT_BLANKS[name]
    if kind == "bert":
        tokenizer = load_tokenizer(str(bert_folder(tmp_path / "bert", sep=True)))
    encoder = Encoder(tokenizer)
    windows = encoder._in_windows(text)
    assert bool(windows) == (name in ("Chinese", "quotes", "one letter") or kind == "trained")
    whole = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    store = write(tmp_path / "store", [Row(text, True)], tokenizer)
    assert store.ids[1:-1].tolist() == whole
    assert (store.manifest.lost == []) == (kind == "trained")


def test_no_cut_before_what_only_python_takes_for_a_blank(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt2_lightning.data.tokenizing.CHARACTERS_PER_PIECE", 20)
    tokenizer.add_tokens(["!\x1c"])  # else each byte is a token of its own, wherever it is cut
    text = "".join(f"{'a' * n}!\x1c?{' b' * (n % 3)}" for n in range(30))
    store = write(tmp_path / "store", [Row(text, True)], tokenizer)
    assert store.ids[1:-1].tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_text_seen_before_costs_next_to_nothing() -> None:
    text = bytes(random.Random(0).choices(b"abcdefgh ", k=20_000))
    assert primed_xz_bits_per_byte(text, text) < 0.05


def test_new_text_costs_its_entropy() -> None:
    chance = random.Random(0)
    train, held_out = (bytes(chance.choices(range(16), k=20_000)) for _ in range(2))
    assert 4.0 <= primed_xz_bits_per_byte(train, held_out) < 4.6  # 16 equal values: 4 bits


def test_a_tokenizers_panic_is_a_message(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):  # as pyo3 makes it: no Exception
        pass

    class Panicking:  # a Rust object's methods cannot be replaced
        def __getattr__(self, name: str) -> Any:
            return getattr(backend, name)

        def encode_batch_fast(self, texts: list[str], **options: object) -> None:
            raise PanicException("Onig: Regex search error: match-stack limit over")

    backend, panicking = tokenizer.backend_tokenizer, Panicking()
    monkeypatch.setattr(type(tokenizer), "backend_tokenizer", property(lambda _: panicking))
    with pytest.raises(UsageError, match=r"failed \(Onig: .*limit over\) on a piece of 5 char"):
        write(tmp_path / "store", [Row("short", True)], tokenizer)
    assert not list(tmp_path.iterdir())
