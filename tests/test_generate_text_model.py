"""The Python API, and prompts in batches of like length."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import gpt2_lightning
from gpt2_lightning import load
from gpt2_lightning.data.prompts import encode_prompt
from gpt2_lightning.errors import UsageError
from gpt2_lightning.generate import drawing
from gpt2_lightning.generate.drawing import Sample, draw, stream
from gpt2_lightning.generate.text_model import SamplingKeywords, TextModel
from gpt2_lightning.model.decoding import decode
from gpt2_lightning.model.sampling import SamplingOptions
from gpt2_lightning.model.sequence import TokenSequence

PROMPTS = [
    "the river",
    "",
    "a",
    "old stone and the town of 1923, which two engineers had",
    "人工智能",
    "by 😀",
    "It's known for",
    "two two two two two two two two",
]
SHORT = SamplingOptions(max_new_tokens=10, seed=7)


@pytest.fixture
def model(opinionated_model: Path) -> TextModel:
    return load(str(opinionated_model), device="cpu")


def test_the_three_lines(model: TextModel) -> None:
    text = model.generate("the river", max_new_tokens=20)
    assert isinstance(text, str)
    assert text
    assert text == model.generate("the river", max_new_tokens=20, seed=0)
    assert text != model.generate("the river", max_new_tokens=20, seed=1)


def test_an_unknown_option_is_answered_with_the_right_one(model: TextModel) -> None:
    foreign: dict[str, Any] = {"max_tokens": 5}
    with pytest.raises(TypeError, match=r"max_tokens: there is no such .* mean max_new_tokens\?"):
        model.generate("the river", **foreign)
    with pytest.raises(TypeError, match=r"Did you mean temperature\?"):
        model.stream("the river", **{"temprature": 1.0})  # type: ignore[arg-type] # the mistake
    with pytest.raises(UsageError, match=r"^temperature 0: .*\(do_sample false for greedy\)"):
        model.generate("the river", temperature=0)


def test_messages_of_load_name_its_arguments(opinionated_model: Path) -> None:
    with pytest.raises(UsageError, match=r"^name nowhere: no model was found there"):
        load("nowhere")
    with pytest.raises(UsageError, match=r"^device gpu: .* device cpu always works"):
        load(str(opinionated_model), device="gpu")


def test_one_or_many(model: TextModel) -> None:
    one = model.generate("the river", max_new_tokens=4, seed=3)
    assert model.generate(["the river"], max_new_tokens=4, seed=3) == [one]
    two = model.generate("the river", max_new_tokens=4, seed=3, num_return_sequences=2)
    assert two[0] == one
    assert len(two) == 2
    assert model.generate("the river", max_new_tokens=4, seed=3, num_return_sequences=1) == [one]
    both = model.generate(["a", "the river"], max_new_tokens=4, seed=3, num_return_sequences=2)
    assert [len(samples) for samples in both] == [2, 2]
    assert both[1] == two
    assert model.generate([]) == []
    assert model.generate([], num_return_sequences=2) == []
    with pytest.raises(UsageError, match=r"^num_return_sequences 0"):
        model.generate("a", num_return_sequences=0)


def test_there_is_nothing_else_to_be_had_from_the_package() -> None:
    with pytest.raises(AttributeError, match="no attribute 'save'"):
        gpt2_lightning.save  # type: ignore[attr-defined] # noqa: B018 - wrong on purpose


def test_the_keywords_are_the_options() -> None:
    options = {field.name for field in fields(SamplingOptions)}
    assert set(SamplingKeywords.__annotations__) == options - {"num_return_sequences"}


def test_a_greedy_batch_is_transformers_own_on_the_same_folder(opinionated_model: Path) -> None:
    model = load(str(opinionated_model), device="cpu")
    ours = model.generate(PROMPTS, do_sample=False, max_new_tokens=10)
    reference: Any = AutoModelForCausalLM.from_pretrained(opinionated_model)
    tokenizer: Any = AutoTokenizer.from_pretrained(opinionated_model)
    for prompt, text in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"] or [tokenizer.eos_token_id]])
        output = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=10,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        assert tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True) == text
        assert model.generate(prompt, do_sample=False, max_new_tokens=10) == text


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3, 5, 100])
def test_samples_come_in_the_prompts_order_whatever_the_batch(
    model: TextModel, batch_size: int
) -> None:
    options = replace(SHORT, repetition_penalty=1.2, no_repeat_ngram_size=1, stop=["e"])
    told: list[tuple[int, int]] = []
    found = draw(
        model.model,
        model.tokenizer,
        PROMPTS,
        options,
        batch_size=batch_size,
        advance=lambda tokens, total: told.append((tokens, total)),
    )
    assert [(sample.prompt, sample.seed) for sample in found] == [
        (prompt, seed) for prompt in PROMPTS for seed in (7, 8, 9)
    ]
    for sample in found:
        assert sample.seed is not None
        alone = replace(options, num_return_sequences=1, seed=sample.seed)
        assert draw(model.model, model.tokenizer, [sample.prompt], alone) == [sample]
        assert "e" not in sample.text
    assert any(sample.ended for sample in found)
    assert not all(sample.ended for sample in found)
    assert {total for _, total in told} == {24 * 10}
    assert sum(tokens for tokens, _ in told) == 24 * 10


def test_prompts_of_like_length_share_a_batch(
    model: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[int]] = []

    def spy(model: Any, sequences: list[TokenSequence]) -> Any:
        batches.append([len(it.prompt) for it in sequences])
        return decode(model, sequences)

    monkeypatch.setattr(drawing, "decode", spy)
    draw(model.model, model.tokenizer, PROMPTS, SHORT, batch_size=6)
    lengths = [length for batch in batches for length in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert [len(batch) for batch in batches] == [6, 6, 6, 6]


def test_beams_are_the_likeliest_first(model: TextModel) -> None:
    options = SamplingOptions(
        max_new_tokens=6, do_sample=False, num_beams=4, num_return_sequences=3
    )
    found = draw(model.model, model.tokenizer, PROMPTS[:3], options, batch_size=8)
    assert [sample.prompt for sample in found] == [p for p in PROMPTS[:3] for _ in range(3)]
    assert all(sample.seed is None for sample in found)
    best = replace(options, num_return_sequences=1)
    for start in (0, 3, 6):
        prompt = found[start].prompt
        assert draw(model.model, model.tokenizer, [prompt], best) == [found[start]]
        assert len({sample.text for sample in found[start : start + 3]}) == 3


def drawn_by(model: TextModel, prompt: str, options: SamplingOptions) -> tuple[list[str], Sample]:
    pieces = stream(model.model, model.tokenizer, prompt, options, roll=True)
    shown = []
    while True:
        try:
            shown.append(next(pieces))
        except StopIteration as end:
            return shown, end.value


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 3.0, "top_k": 0, "top_p": 1.0},  # bytes of all kinds
        {"stop": ["e", "th"]},
        {"do_sample": False},
        {"max_new_tokens": 80, "repetition_penalty": 1.3},
    ],
    ids=str,
)
def test_streaming_is_generating(model: TextModel, prompt: str, changes: dict[str, Any]) -> None:
    options = replace(SHORT, num_return_sequences=1, **changes)
    shown, sample = drawn_by(model, prompt, options)
    assert [sample] == draw(model.model, model.tokenizer, [prompt], options, roll=True)
    assert "".join(shown) == sample.text
    assert len(shown) > 1 or len(sample.text) < 3 or sample.ended


def test_a_stream_can_be_left(model: TextModel) -> None:
    pieces = model.stream("the river", max_new_tokens=30)
    assert next(pieces)
    pieces.close()
    with pytest.raises(StopIteration):
        next(pieces)


def test_mistakes_come_at_the_call(model: TextModel) -> None:
    with pytest.raises(UsageError, match=r"^max_new_tokens 70: .* 64 positions"):
        model.stream("a", max_new_tokens=70)
    with pytest.raises(UsageError, match=r"^max_new_tokens 70: .* 64 positions"):
        model.generate("a", max_new_tokens=70)
    with pytest.raises(UsageError, match=r"^num_beams 2"):
        model.stream("a", do_sample=False, num_beams=2)
    with pytest.raises(UsageError, match="not UTF-8"):
        model.generate("a \udcff b")
    with pytest.raises(UsageError, match=r"^temperature -1"):
        model.generate("a", temperature=-1.0)


def test_rolling_goes_on_where_it_is_asked_for(model: TextModel) -> None:
    options = SamplingOptions(max_new_tokens=80, num_return_sequences=1, no_repeat_ngram_size=4)
    long, short = draw(
        model.model, model.tokenizer, [PROMPTS[3] * 3, "a"], options, roll=True, batch_size=2
    )
    assert long.forgotten > short.forgotten
    assert model.generate("a", roll=True, max_new_tokens=80, no_repeat_ngram_size=4) == short.text


def test_max_length_counts_the_prompt(model: TextModel) -> None:
    prompts = ["the river", "a"]
    sizes = [len(encode_prompt(model.tokenizer, prompt)) for prompt in prompts]
    asked = [
        model.generate(prompt, max_new_tokens=20 - size, seed=3)
        for prompt, size in zip(prompts, sizes, strict=True)
    ]
    assert model.generate(prompts, max_length=20, seed=3) == asked
    assert "".join(model.stream("the river", max_length=20, seed=3)) == asked[0]
    with pytest.raises(UsageError, match="max_length 20: max_new_tokens 5 is given, too"):
        model.generate("a", max_length=20, max_new_tokens=5)
    with pytest.raises(UsageError, match="it counts the prompt, which has"):
        model.generate("the river", max_length=1)
