from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.data.token_text import whole_characters
from gpt2_lightning.data.tokenizer import train_tokenizer
from gpt2_lightning.fit.records import nats_of, passage_of, split_facts


def test_surprisal_draws_nothing_and_leaves_the_model_as_it_was(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model).train()  # dropout 0.1
    ids = torch.arange(20)
    state = torch.get_rng_state()
    first = nats_of(model, ids, ids + 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nats_of(model, ids, ids + 1) == first
    assert len(first) == 20


def test_the_passage_is_the_beginning_of_an_article_up_to_a_word(
    wiki_folder: Path, tiny_model: Path
) -> None:
    words: dict[str, Any] = {"tokenizer": str(tiny_model), "block_size": 64}
    rows = wiki_folder / "wiki.valid.raw"
    for blocks, starts_with_end_of_text in (("pack", True), ("pad", False)):
        data = WikiTextDataModule(str(wiki_folder), blocks=blocks, **words)  # type: ignore[arg-type] # a str in a loop
        data.prepare(["validation"])
        data.setup("validate")
        inputs, targets = passage_of(data)
        assert 32 < len(inputs) == len(targets) <= 64
        assert torch.equal(inputs[1:], targets[:-1])
        assert data.tokenizer.eos_token_id not in targets
        assert (int(inputs[0]) == data.tokenizer.eos_token_id) is starts_with_end_of_text
        text = rows.read_text(encoding="utf-8")
        said = data.decode(targets.tolist())
        assert said in text
        assert not text[text.index(said) + len(said)].isalnum()


def test_tokens_are_shown_as_whole_characters() -> None:
    tokenizer = train_tokenizer(["the old bridge " * 9], 270)
    text = "the café 😀 \ufffd 龙, old"
    ids = tokenizer(text)["input_ids"]
    pieces = whole_characters(tokenizer, ids[1:], after=ids[:1])
    assert "".join(piece for piece, _ in pieces) == text[len(tokenizer.decode(ids[:1])) :]
    assert sum(tokens for _, tokens in pieces) == len(ids) - 1
    assert {"é", "😀", "龙"} <= {piece.strip() for piece, _ in pieces}
    assert dict(pieces)["😀"] == 4  # four bytes


def test_facts_of_padded_and_cleaned_text(wiki_folder: Path, tiny_model: Path) -> None:
    data = WikiTextDataModule(
        str(wiki_folder),
        tokenizer=str(tiny_model),
        cleaning="tutorial",
        blocks="pad",
        block_size=32,
    )
    data.prepare(["validation"])
    data.setup("validate")
    facts = split_facts(data, "validation")
    rows = (wiki_folder / "wiki.valid.raw").read_text(encoding="utf-8").split("\n")[:-1]
    cleaned = [text for text in (data.cleaner.clean(row) for row in rows) if text]
    lengths = [len(data.tokenizer(text)["input_ids"]) for text in cleaned]
    kept = sum(min(length, 32) for length in lengths)
    assert (facts["rows"], facts["blocks"]) == (len(rows), len(cleaned))
    assert facts["tokens"] == sum(lengths)
    assert facts["cut_off"] == pytest.approx(1 - kept / sum(lengths))
    assert facts["padded"] == pytest.approx(1 - kept / (32 * len(cleaned)))
    assert facts["cleaned_away"] == pytest.approx(
        1 - sum(len(text.encode()) for text in cleaned) / facts["bytes"]
    )
    assert facts["cut_off"] > 0.1
    assert facts["padded"] > 0.1
