import json
import logging
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from gpt2_lightning.data.tokenizer import (
    END_OF_TEXT,
    cuts_at_spaces,
    keeps_every_byte,
    load_tokenizer,
    save_tokenizer_files,
    tokenizer_digest,
    tokenizer_files,
    train_tokenizer,
)
from gpt2_lightning.errors import UsageError
from tests.corpus import wiki_rows


def test_trained_tokenizer_keeps_every_byte_and_ends_with_end_of_text() -> None:
    tokenizer = train_tokenizer(wiki_rows(articles=5), 400)
    assert 257 <= len(tokenizer) <= 400
    assert tokenizer.eos_token == END_OF_TEXT
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    text = " unseen: ünïcödé 中文 🙂\n\n  <tab>\t\x00"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert keeps_every_byte(tokenizer)
    assert cuts_at_spaces(tokenizer)
    assert len(tokenizer("<|endoftext|>")["input_ids"]) == 1


def test_training_is_repeatable() -> None:
    one, other = (train_tokenizer(wiki_rows(articles=5), 350) for _ in range(2))
    assert tokenizer_digest(one) == tokenizer_digest(other)
    assert tokenizer_digest(one) != tokenizer_digest(train_tokenizer(wiki_rows(articles=5), 300))


def test_vocabulary_below_the_bytes_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--data\.vocab_size 256: .*at least 257"):
        train_tokenizer(["text"], 256)


def test_files_carry_the_tokenizer(tmp_path: Path, tiny_model: Path) -> None:
    original = load_tokenizer(str(tiny_model))
    save_tokenizer_files(tokenizer_files(original), tmp_path / "copy")
    copy = AutoTokenizer.from_pretrained(tmp_path / "copy")
    text = "the bridge of 1923 <|endoftext|> 中"
    assert copy(text)["input_ids"] == original(text)["input_ids"]
    assert tokenizer_digest(load_tokenizer(str(tmp_path / "copy"))) == tokenizer_digest(original)


def test_no_tokenizer_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--data\.tokenizer .*: no tokenizer was found there"):
        load_tokenizer(str(tmp_path))


def bert_folder(folder: Path, *, sep: bool) -> Path:
    """A tokenizer as Chinese GPT-2s have it: BERT's, with a separator and no end-of-text."""
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"的一是不了人我在有他这为之大来以个"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    names = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    if not sep:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.sep_token = None
        tokenizer.save_pretrained(folder)
    return folder


def test_separator_stands_in_for_end_of_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("gpt2_lightning"), "propagate", True)
    tokenizer = load_tokenizer(str(bert_folder(tmp_path / "bert", sep=True)))
    assert tokenizer.eos_token == "[SEP]"
    assert tokenizer.pad_token == "[PAD]"
    assert "its separator [SEP] ends each text instead" in caplog.text
    assert not keeps_every_byte(tokenizer)
    # no word reaches over white space, so a text may be tokenized in pieces
    assert cuts_at_spaces(tokenizer)
