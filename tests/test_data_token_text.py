"""Text from tokens: Chinese as it went in, whole characters, passages that end at words."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from gpt2_lightning.data.token_text import (
    TextAssembler,
    TokenBytes,
    decoder,
    passage,
    whole_characters,
)
from gpt2_lightning.data.tokenizer import load_tokenizer, train_tokenizer
from gpt2_lightning.generate.text_model import TextModel
from tests.corpus import wiki_rows

CHINESE = "从前有一座山，山里有一座庙。庙里有3.5个“和尚”……在Python里！"
VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *dict.fromkeys("从前有一座山，里庙。个“”和尚…在！"),
]
VOCABULARY += ["3", ".", "5", "Python", "walk", "##ing", "hello", "world", ",", "I", "a"]


@pytest.fixture
def chinese_model(tmp_path: Path) -> Path:
    """A tiny GPT-2 with BERT's tokenizer, as Chinese GPT-2s have it: vocab.txt and no eos."""
    folder = tmp_path / "chinese"
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(VOCABULARY), n_positions=64, n_embd=32, n_layer=2, n_head=2)
    ).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.parametrize("text", [CHINESE, "hello, walking world", "I walk山a"])
def test_chinese_text_comes_out_as_it_went_in(chinese_model: Path, text: str) -> None:
    tokenizer = load_tokenizer(str(chinese_model))
    ids = ids_of(tokenizer, text)
    assert tokenizer.unk_token_id not in ids
    decode = decoder(tokenizer)
    assert decode(ids) == text
    for count in range(len(ids)):
        assert text.startswith(decode(ids[:count]))  # more ids only ever add to it
    assert TextAssembler(tokenizer).add_all(ids) == text
    assembler = TextAssembler(TokenBytes(tokenizer), [], int(tokenizer.eos_token_id))
    pieces = [assembler.add(token, None, last=False).text for token in ids]
    assert "".join(pieces) == text
    assembler = TextAssembler(TokenBytes(tokenizer), [], int(tokenizer.eos_token_id))
    assert assembler.add_prompt(ids, None, last=True).text == text  # an echo


@pytest.mark.parametrize(
    ("prompt", "text"),
    [("walk", "ing hello"), ("hello", " world"), ("一座", "山"), ("hello", ", world"), ("I", "山")],
)
def test_a_continuation_joins_its_prompt(chinese_model: Path, prompt: str, text: str) -> None:
    tokenizer = load_tokenizer(str(chinese_model))
    ids = ids_of(tokenizer, prompt + text)
    read, new = ids[: len(ids_of(tokenizer, prompt))], ids[len(ids_of(tokenizer, prompt)) :]
    assert read == ids_of(tokenizer, prompt)
    assert decoder(tokenizer, after=read)(new) == text
    assembler = TextAssembler(TokenBytes(tokenizer), [], int(tokenizer.eos_token_id), read)
    assert "".join(assembler.add(token, None, last=False).text for token in new) == text


def test_a_chinese_model_writes_no_blanks(chinese_model: Path) -> None:
    tokenizer = load_tokenizer(str(chinese_model))
    model = TextModel(GPT2LMHeadModel.from_pretrained(chinese_model).eval(), tokenizer)
    text = model.generate("从前", max_new_tokens=20, seed=3)
    assert len(text) > 10
    assert " 山" not in text
    assert "山 " not in text
    streamed = "".join(model.stream("从前", max_new_tokens=20, seed=3))
    assert streamed == text


def test_bytes_of_tokenizers_that_fall_back_to_them() -> None:
    vocabulary = {"</s>": 0, "<unk>": 1, "▁a": 2, "▁b": 3}
    vocabulary |= {f"<0x{byte:02X}>": byte + 4 for byte in range(256)}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    ids = [2, *(byte + 4 for byte in "山😀".encode()), 3]
    assert decoder(tokenizer)(ids) == "a山😀 b"
    assembler = TextAssembler(TokenBytes(tokenizer), [], 0)
    assert "".join(assembler.add(token, None, last=False).text for token in ids) == "a山😀 b"


def test_bytes_of_a_byte_level_tokenizer_without_all_bytes() -> None:
    tokenizer = without_unused_bytes()
    ids = ids_of(tokenizer, "龙 old")
    assert len(ids) > 3  # the character is of several tokens
    assembler = TextAssembler(TokenBytes(tokenizer), [], int(tokenizer.eos_token_id))
    assert "".join(assembler.add(token, None, last=False).text for token in ids) == "龙 old"


def without_unused_bytes() -> PreTrainedTokenizerBase:
    """A byte-level BPE without the bytes that no UTF-8 text holds, as SmolLM2's is."""
    state = json.loads(train_tokenizer(["the old bridge " * 9], 270).backend_tokenizer.to_str())
    unused = {"À", "Á", *"õö÷øùúûüýþÿ"}
    vocabulary = [token for token in state["model"]["vocab"] if token not in unused]
    state["model"]["vocab"] = {token: id_ for id_, token in enumerate(vocabulary)}
    state["added_tokens"] = []
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        eos_token="<|endoftext|>",
    )


def passages(text: str, most: int) -> Iterator[str]:
    """Yield the passage from every place of a text, with few tokens to a character."""
    tokenizer = train_tokenizer(wiki_rows(articles=8), 300)
    parts = text.split("|")
    ids = np.array(
        [tokenizer.eos_token_id]
        + [id_ for part in parts for id_ in [*ids_of(tokenizer, part), tokenizer.eos_token_id]]
    )
    for begins in range(len(ids)):
        place = passage(tokenizer, ids, begins, most=most)
        if place is not None:
            assert begins <= place.start < place.stop <= place.start + most
            yield decoder(tokenizer)(ids[place].tolist())


def test_passages_begin_and_end_at_words_of_one_article() -> None:
    text = "Homarus gammarus, known as the lobster|Tiny|It's an old town."
    words = {"Homarus", "gammarus", "known", "as", "the", "lobster", "Tiny", "It", "s", "an"}
    words |= {"old", "town"}
    found = list(passages(text, 16))
    assert found[0].startswith("Homarus")
    assert len(found) > 20
    for one in found:
        assert set("".join(c if c.isalnum() else " " for c in one).split()) <= words, one
        assert any(one in article for article in text.split("|"))


def test_passages_of_chinese_begin_and_end_at_characters() -> None:
    text = "第68章　小明的书包|他去学校。"
    found = list(passages(text, 16))
    assert found[0] == "第68章　小"
    assert len(found) > 20
    for one in found:
        assert "\ufffd" not in one
        assert any(one in article for article in text.split("|"))


def test_one_long_word_is_cut_at_characters() -> None:
    found = list(passages("é" * 30, 7))
    assert found
    assert all(set(one) == {"é"} for one in found)


def test_the_vocabulary_is_not_written_out_for_each_text(
    chinese_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(str(chinese_model))
    backend: Any = tokenizer
    its_decoder = SimpleNamespace(decoder=backend.backend_tokenizer.decoder)  # and no to_str
    monkeypatch.setattr(type(tokenizer), "backend_tokenizer", its_decoder)
    ids = ids_of(tokenizer, CHINESE)
    assert decoder(tokenizer, after=ids[:3])(ids[3:]) == CHINESE[3:]


def test_a_long_text_is_cut_into_pieces_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train_tokenizer(wiki_rows(articles=8), 300)
    ids = ids_of(tokenizer, 40 * CHINESE)
    decoded = []
    decode = type(tokenizer).decode

    def counted(self: PreTrainedTokenizerFast, ids: list[int], **options: Any) -> Any:
        decoded.append(len(ids))
        return decode(self, ids, **options)

    monkeypatch.setattr(type(tokenizer), "decode", counted)
    pieces = whole_characters(tokenizer, ids)
    assert "".join(text for text, _ in pieces) == 40 * CHINESE
    assert sum(tokens for _, tokens in pieces) == len(ids)
    assert sum(decoded) < 4 * len(ids)  # a character of Chinese has three bytes, each a token


def test_tokens_that_are_parts_of_characters_are_counted() -> None:
    tokenizer = train_tokenizer(["the old bridge " * 9], 270)
    assert whole_characters(tokenizer, ids_of(tokenizer, "é龙x")) == [("é", 2), ("龙", 3), ("x", 1)]


def test_the_loaded_tokenizer_is_the_folders(chinese_model: Path) -> None:
    assert type(AutoTokenizer.from_pretrained(chinese_model)).__name__ == "BertTokenizer"
