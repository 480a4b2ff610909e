"""Options, processors and generation in one batch: ids in, ids out."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gpt2_lightning.errors import UsageError
from gpt2_lightning.model import sequence
from gpt2_lightning.model.decoding import decode, generate
from gpt2_lightning.model.sampling import SamplingOptions
from gpt2_lightning.model.sequence import TokenSequence, exponential, penalized, with_noise

END = 0  # never the likeliest here
TIE = 1e-4  # between two logits that fp32 may put in either order


@pytest.fixture
def model(opinionated_model: Path) -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(opinionated_model)
    loaded.eval()
    return loaded


PROMPTS = [
    torch.tensor(ids)
    for ids in (
        [5],
        [7, 8, 9],
        list(range(20, 40)),
        [3, 4],
        [END],  # as an empty prompt
        [9, 8, 7, END, 6],
        list(range(100, 141)),
        [50, 60, 50, 60, 50],
    )
]
OPTIONS = SamplingOptions(max_new_tokens=12, num_return_sequences=2, seed=7)
GREEDY = SamplingOptions(max_new_tokens=12, do_sample=False)


def theirs(model: PreTrainedModel, prompt: torch.Tensor, **settings: Any) -> list[list[int]]:
    """Return the new ids of transformers' own generate, for one prompt."""
    output = cast(Any, model).generate(
        prompt.unsqueeze(0),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=12,
        eos_token_id=END,
        pad_token_id=END,
        **settings,
    )
    rows: list[list[int]] = output[:, len(prompt) :].tolist()
    return [row[: row.index(END)] if END in row else row for row in rows]


@torch.inference_mode()
def assert_same_but_for_ties(
    model: PreTrainedModel, prompt: torch.Tensor, ours: list[int], expected: list[int]
) -> None:
    """Let two greedy texts part only where the two best logits are as good as equal."""
    if ours == expected:
        return
    same = next(n for n, (a, b) in enumerate(zip(ours, expected, strict=False)) if a != b)
    best = model(torch.cat([prompt, torch.tensor(ours[:same])])[None].long()).logits[0, -1].topk(2)
    assert best.values[0] - best.values[1] <= TIE, f"token {same}"


def test_a_sample_is_the_same_alone_and_in_a_batch(model: PreTrainedModel) -> None:
    together = generate(model, PROMPTS, OPTIONS, end_of_text=END)
    alone = [generate(model, [prompt], OPTIONS, end_of_text=END)[0] for prompt in PROMPTS]
    assert together == alone
    one = replace(OPTIONS, num_return_sequences=1, seed=8)
    assert generate(model, [PROMPTS[1]], one, end_of_text=END)[0][0] == together[1][1]


def test_seeds_differ(model: PreTrainedModel) -> None:
    first, second = generate(model, [PROMPTS[0]], OPTIONS, end_of_text=END)[0]
    assert first != second


class Noise(LogitsProcessor):
    """Gumbel noise of a row, for transformers' own greedy search."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores with noise."""
        return scores - exponential([self.generator], scores.shape[-1]).log()


def test_the_defaults_draw_what_they_always_drew(model: PreTrainedModel) -> None:
    ours = generate(model, PROMPTS[:4], SamplingOptions(max_new_tokens=12), end_of_text=END)
    for prompt, samples in zip(PROMPTS[:4], ours, strict=True):
        for seed, sample in enumerate(samples):
            processors = LogitsProcessorList(
                [
                    TemperatureLogitsWarper(0.7),
                    TopKLogitsWarper(50),
                    TopPLogitsWarper(0.95),
                    Noise(seed),
                ]
            )
            assert theirs(model, prompt, do_sample=False, logits_processor=processors) == [sample]
    assert len(ours[0]) == 3


# Each against transformers' own, a prompt at a time; all change the plain greedy text.
LOOKING_BACK: dict[str, dict[str, Any]] = {
    "plain": {},
    "repetition_penalty": {"repetition_penalty": 1.5},
    "no_repeat_ngram_size 1": {"no_repeat_ngram_size": 1},
    "no_repeat_ngram_size 2": {"no_repeat_ngram_size": 2},
    "num_beams": {"num_beams": 4},
    "beams of three": {"num_beams": 3, "num_return_sequences": 3, "no_repeat_ngram_size": 2},
    "all": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 5},
}


@pytest.mark.parametrize("name", LOOKING_BACK)
def test_a_greedy_batch_is_each_alone_and_transformers_own(
    model: PreTrainedModel, name: str
) -> None:
    settings = LOOKING_BACK[name]
    options = replace(GREEDY, **settings)
    ours = generate(model, PROMPTS, options, end_of_text=END)
    for prompt, samples in zip(PROMPTS, ours, strict=True):
        expected = theirs(model, prompt, do_sample=False, **settings)
        (alone,) = generate(model, [prompt], options, end_of_text=END)
        for found, single, reference in zip(samples, alone, expected, strict=True):
            assert_same_but_for_ties(model, prompt, found, single)
            assert_same_but_for_ties(model, prompt, found, reference)
    if name != "plain":
        assert ours != generate(model, PROMPTS, GREEDY, end_of_text=END)


@pytest.mark.parametrize("settings", [{"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 1}])
def test_padding_is_no_text_that_was_written(
    model: PreTrainedModel, settings: dict[str, Any]
) -> None:
    options = replace(GREEDY, **settings)
    end = generate(model, [PROMPTS[1]], options, end_of_text=END)[0][0][2]  # padding, from here on
    alone = generate(model, [PROMPTS[1]], options, end_of_text=end)[0]
    assert len(alone[0]) == 2
    assert generate(model, [PROMPTS[1], PROMPTS[6]], options, end_of_text=end)[0] == alone


def test_min_new_tokens_holds_the_end_of_text_back(model: PreTrainedModel) -> None:
    free = generate(model, [PROMPTS[2]], GREEDY, end_of_text=END)[0][0]
    end = free[3]
    short = generate(model, [PROMPTS[2]], GREEDY, end_of_text=end)[0][0]
    assert len(short) == free.index(end) < 8
    # padded by others: the tokens count from where each began
    prompts = [PROMPTS[2], PROMPTS[6]]
    longer = generate(model, prompts, replace(GREEDY, min_new_tokens=8), end_of_text=end)[0][0]
    assert len(longer) >= 8
    assert end not in longer


def without_noise(generators: Sequence[torch.Generator], count: int) -> torch.Tensor:
    return torch.ones(len(generators), count)


# Scores of one row, before the noise, against those of transformers' own sampling.
@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 7},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"typical_p": 0.5},
        {"temperature": 1.7},
        {"repetition_penalty": 1.4},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 2},
        {
            **{"top_k": 20, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.9, "temperature": 0.8},
            **{"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "min_new_tokens": 1},
        },
    ],
    ids=lambda settings: " ".join(settings),
)
def test_processors_are_transformers_own_in_its_order(
    model: PreTrainedModel, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    prompt = PROMPTS[7].unsqueeze(0)
    output = cast(Any, model).generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        generation_config=GenerationConfig(
            max_new_tokens=1,
            do_sample=True,
            eos_token_id=END,
            pad_token_id=END,
            output_scores=True,
            output_logits=True,
            return_dict_in_generate=True,
            **(off | settings | {"min_new_tokens": min(1, settings.get("min_new_tokens", 0))}),
        ),
    )
    options = SamplingOptions(**(off | settings))
    monkeypatch.setattr(sequence, "exponential", without_noise)
    row = TokenSequence(PROMPTS[7].tolist(), options, 0, end_of_text=END)
    scores = with_noise(penalized([row], output.logits[0]), options, [row.generator])
    assert torch.equal(scores, output.scores[0])
    assert not torch.equal(scores, output.logits[0])


def test_equals_of_the_last_of_top_k_may_be_drawn_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence, "exponential", without_noise)
    scores = torch.tensor([[1.0, 5.0, 2.0, 2.0, 0.0], [4.0, 3.0, 2.0, 1.0, 0.0]])
    options = SamplingOptions(temperature=1.0, top_k=2, top_p=0.999, num_return_sequences=1)
    none = -float("inf")
    expected = [[none, 5.0, 2.0, 2.0, none], [4.0, 3.0, none, none, none]]
    assert with_noise(scores, options, [torch.Generator()] * 2).tolist() == expected


def test_random_state_and_mode_are_left_alone(model: PreTrainedModel) -> None:
    model.train()
    before = torch.get_rng_state()
    generate(model, PROMPTS[:1], OPTIONS, end_of_text=END)
    generate(model, PROMPTS[:1], replace(GREEDY, num_beams=2), end_of_text=END)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    steps = decode(model, [TokenSequence(PROMPTS[0].tolist(), OPTIONS, 0, end_of_text=END)])
    next(steps)
    steps.close()
    assert model.training


@pytest.mark.parametrize("options", [OPTIONS, replace(GREEDY, num_beams=3)])
def test_the_models_own_settings_are_not_mixed_in(
    model: PreTrainedModel,
    options: SamplingOptions,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = generate(model, PROMPTS, options, end_of_text=END)
    own = GenerationConfig(
        do_sample=True, temperature=0.1, repetition_penalty=5.0, no_repeat_ngram_size=2
    )
    model.generation_config = own
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    assert generate(model, PROMPTS, options, end_of_text=END) == plain
    assert model.generation_config is own
    assert not caplog.records


def test_noise_draws_from_the_distribution() -> None:
    scores = torch.tensor([0.5, 0.3, 0.2]).log()
    rows = 4000
    options = SamplingOptions(temperature=1.0, top_k=0, top_p=1.0)
    generators = [torch.Generator().manual_seed(seed) for seed in range(rows)]
    drawn = with_noise(scores.expand(rows, 3), options, generators).argmax(-1)
    shares = torch.bincount(drawn, minlength=3) / rows
    assert shares.tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.03)


@pytest.mark.parametrize("only", [{"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-9}])
def test_one_token_to_draw_from_is_greedy(model: PreTrainedModel, only: dict[str, Any]) -> None:
    drawn = SamplingOptions(max_new_tokens=12, num_return_sequences=1, seed=3, **only)
    assert generate(model, PROMPTS, GREEDY, end_of_text=END) == generate(
        model, PROMPTS, drawn, end_of_text=END
    )


def test_the_end_of_text_ends_a_sample_and_is_left_out(model: PreTrainedModel) -> None:
    free = generate(model, [PROMPTS[1]], OPTIONS, end_of_text=END)[0][0]
    stop = free[4]
    cut = generate(model, [PROMPTS[1]], OPTIONS, end_of_text=stop)[0][0]
    assert cut == free[: free.index(stop)]


def letters(ids: list[int]) -> str:
    return "".join(chr(0x4E00 + token) for token in ids)  # a character for every token


class Letters:
    """The text of ids, and whether a stop string is in it."""

    def __init__(self, stop: list[str]) -> None:
        self.stop = stop
        self.ids: list[int] = []
        self.stopped = False

    def add(self, token: int) -> None:
        """Take the next token."""
        self.ids.append(token)
        self.stopped = any(string in letters(self.ids) for string in self.stop)


def assembling(stop: list[str]) -> Callable[[list[int]], Letters]:
    return lambda prompt: Letters(stop)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_stop_string_ends_its_row_alone(model: PreTrainedModel, beams: int) -> None:
    plain = replace(GREEDY, num_beams=beams)
    free = generate(model, PROMPTS, plain, end_of_text=END)
    texts = [letters(samples[0]) for samples in free]
    stop = texts[2][3:5]
    options = replace(plain, stop=["absent", stop])
    found = generate(model, PROMPTS, options, end_of_text=END, assemble=assembling(options.stop))
    if beams == 1:  # beams may find another text, since a short one competes with the long
        for row, text in zip(found, texts, strict=True):
            cut = text.find(stop)
            assert letters(row[0]) == (text if cut < 0 else text[: cut + 2])
        assert sum(stop not in text for text in texts) > 1
    short = [row[0] for row in found if len(row[0]) < options.max_new_tokens]
    assert found[2][0] in short
    assert all(letters(ids).endswith(stop) for ids in short)


@pytest.mark.parametrize("beams", [1, 3])
def test_stop_strings_are_looked_for_in_new_text_alone(model: PreTrainedModel, beams: int) -> None:
    plain = replace(GREEDY, num_beams=beams)
    options = replace(plain, stop=[letters(PROMPTS[1].tolist())])
    found = generate(
        model, [PROMPTS[1]], options, end_of_text=END, assemble=assembling(options.stop)
    )
    assert found == generate(model, [PROMPTS[1]], plain, end_of_text=END)
    with pytest.raises(ValueError, match="assemble"):
        generate(model, [PROMPTS[1]], options, end_of_text=END)


def test_too_long_for_the_positions(model: PreTrainedModel) -> None:
    options = replace(OPTIONS, max_new_tokens=60)
    with pytest.raises(UsageError, match=r"max_new_tokens 60: .*64 positions. --max_new_tokens 23"):
        generate(model, PROMPTS, options, end_of_text=END)
    with pytest.raises(UsageError, match="Shorten the prompt to less than 64 tokens"):
        generate(model, [torch.zeros(64, dtype=torch.long)], options, end_of_text=END)


def test_as_many_samples_as_make_sense_where_no_number_is_given() -> None:
    assert SamplingOptions().seeds == [0, 1, 2]
    assert SamplingOptions(do_sample=False, seed=4).seeds == [4]
    assert SamplingOptions(num_return_sequences=2, seed=4).seeds == [4, 5]
    SamplingOptions(do_sample=False).check()
    SamplingOptions(do_sample=False, num_beams=4, num_return_sequences=4).check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "--temperature 0.0: must be >= 0.000001"),
        ({"temperature": float("nan")}, "--temperature nan"),
        ({"top_p": 1.5}, "--top_p 1.5"),
        ({"top_k": -1}, "--top_k -1"),
        ({"min_p": 1.5}, "--min_p 1.5: must be in 0..1"),
        ({"typical_p": 0.0}, "--typical_p 0.0"),
        ({"repetition_penalty": -1.0}, "--repetition_penalty -1.0: must be > 0"),
        ({"no_repeat_ngram_size": -1}, "--no_repeat_ngram_size -1"),
        ({"max_new_tokens": 0}, "--max_new_tokens 0"),
        ({"min_new_tokens": 101}, "--min_new_tokens 101: must be in 0..100"),
        ({"stop": ["a", ""]}, "--stop .*without empty strings"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 2**63}, "--seed 9223372036854775808"),
        ({"num_return_sequences": 0}, "--num_return_sequences 0"),
        (
            {"do_sample": False, "num_return_sequences": 3},
            "--num_return_sequences 3: without --do_sample all",
        ),
        ({"num_beams": 0}, "--num_beams 0"),
        ({"num_beams": 2}, "--num_beams 2: .* Add --do_sample false"),
        (
            {"do_sample": False, "num_beams": 2, "num_return_sequences": 3},
            "--num_return_sequences 3: .* as many as --num_beams 2",
        ),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(SamplingOptions(), **options).check()
