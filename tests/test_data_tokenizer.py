import json
import logging
from pathlib import Path

import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer

from gpt2_lightning.data.tokenizer import (
    END_OF_TEXT,
    _sample,
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


def test_training_is_that_of_the_library() -> None:
    """The words that are cut, and no others, make a difference."""
    texts = [*wiki_rows(articles=5), " ünï'll don't 中文。  x\t\n\n" * 50, "=" * 500 + "\n"]
    library = ByteLevelBPETokenizer()
    library.train_from_iterator(texts, vocab_size=599, min_frequency=2, show_progress=False)
    merges = json.loads(library.to_str())["model"]["merges"]
    ours = json.loads(train_tokenizer(texts, 600).backend_tokenizer.to_str())["model"]["merges"]
    assert len(merges) > 150
    assert ours == merges


@pytest.mark.slow
def test_a_text_without_blanks_is_learned_from_in_pieces(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("gpt2_lightning"), "propagate", True)
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("gpt2_lightning.data.tokenizer.MOST_LEARNED", 1 << 18)
    text = "".join(chr(0x4E00 + number * number % 997) for number in range(1 << 19))
    tokenizer = train_tokenizer([text], 700)
    assert tokenizer.decode(tokenizer(text[:100])["input_ids"]) == text[:100]
    assert "is trained on one in 2 of 524,288 characters without a space" in caplog.text
    learned = list(_sample([text, "some words\n"]))
    assert [len(part) for part in learned] == [1 << 16] * 4 + [11]
    assert learned[1] == text[2 << 16 : 3 << 16]
    whole = list(_sample([text[: 1 << 18]]))
    assert "".join(whole) == text[: 1 << 18]


def test_vocabulary_below_the_bytes_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--data\.vocab_size 256: must be >= 257"):
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


# of a release of tokenizers that is older than the transformers that calls it
@pytest.mark.filterwarnings("ignore:Deprecated in 0.9.0:DeprecationWarning")
def test_separator_stands_in_for_end_of_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("gpt2_lightning"), "propagate", True)
    tokenizer = load_tokenizer(str(bert_folder(tmp_path / "bert", sep=True)))
    assert tokenizer.eos_token == "[SEP]"
    assert tokenizer.pad_token == "[PAD]"
    assert "its separator [SEP] is used instead" in caplog.text
    assert not keeps_every_byte(tokenizer)
    # no word reaches over white space, so a text may be tokenized in pieces
    assert cuts_at_spaces(tokenizer)
