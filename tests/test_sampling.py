import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from gpt2_lightning.errors import UsageError
from gpt2_lightning.model.generation import generate
from gpt2_lightning.model.processors import RowNoise
from gpt2_lightning.model.sampling import SamplingOptions

END = 0  # never the likeliest here


@pytest.fixture
def model(tiny_model: Path) -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():  # a random model is nearly flat; make it have opinions
        for parameter in loaded.parameters():
            parameter.mul_(3)
    loaded.eval()
    return loaded


PROMPTS = [torch.tensor(ids) for ids in ([5], [7, 8, 9], list(range(20, 40)), [3, 4])]
OPTIONS = SamplingOptions(max_new_tokens=12, num_return_sequences=2, seed=7)


def test_a_sample_is_the_same_alone_and_in_a_batch(model: PreTrainedModel) -> None:
    together = generate(model, PROMPTS, OPTIONS, end_of_text=END)
    alone = [generate(model, [prompt], OPTIONS, end_of_text=END)[0] for prompt in PROMPTS]
    assert together == alone
    one = replace(OPTIONS, num_return_sequences=1, seed=8)
    assert generate(model, [PROMPTS[1]], one, end_of_text=END)[0][0] == together[1][1]


def test_seeds_differ(model: PreTrainedModel) -> None:
    first, second = generate(model, [PROMPTS[0]], OPTIONS, end_of_text=END)[0]
    assert first != second


def test_greedy_is_transformers_greedy(model: PreTrainedModel) -> None:
    greedy = SamplingOptions(max_new_tokens=8, do_sample=False, num_return_sequences=1)
    ours = generate(model, PROMPTS, greedy, end_of_text=END)
    for prompt, samples in zip(PROMPTS, ours, strict=True):
        theirs = cast(Any, model).generate(
            prompt.unsqueeze(0),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=END,
            pad_token_id=END,
        )
        assert theirs[0, len(prompt) :].tolist() == samples[0]


def test_random_state_and_mode_are_left_alone(model: PreTrainedModel) -> None:
    model.train()
    before = torch.get_rng_state()
    generate(model, PROMPTS[:1], OPTIONS, end_of_text=END)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training


def test_the_models_own_settings_are_not_mixed_in(
    model: PreTrainedModel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = generate(model, PROMPTS, OPTIONS, end_of_text=END)
    theirs = GenerationConfig(
        do_sample=True, temperature=0.1, repetition_penalty=5.0, no_repeat_ngram_size=2
    )
    model.generation_config = theirs
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    assert generate(model, PROMPTS, OPTIONS, end_of_text=END) == plain
    assert model.generation_config is theirs
    assert not caplog.records


def test_noise_draws_from_the_distribution() -> None:
    scores = torch.tensor([0.5, 0.3, 0.2]).log()
    rows = 4000
    drawn = RowNoise(list(range(rows)))(torch.empty(0), scores.expand(rows, 3)).argmax(-1)
    shares = torch.bincount(drawn, minlength=3) / rows
    assert shares.tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.03)


def test_top_k_one_is_greedy(model: PreTrainedModel) -> None:
    greedy = SamplingOptions(max_new_tokens=8, do_sample=False, num_return_sequences=1)
    only = SamplingOptions(max_new_tokens=8, top_k=1, num_return_sequences=1, seed=3)
    assert generate(model, PROMPTS, greedy, end_of_text=END) == generate(
        model, PROMPTS, only, end_of_text=END
    )


def test_the_end_of_text_ends_a_sample_and_is_left_out(model: PreTrainedModel) -> None:
    free = generate(model, [PROMPTS[1]], OPTIONS, end_of_text=END)[0][0]
    stop = free[4]
    cut = generate(model, [PROMPTS[1]], OPTIONS, end_of_text=stop)[0][0]
    assert cut == free[: free.index(stop)]


def test_too_long_for_the_positions(model: PreTrainedModel) -> None:
    options = replace(OPTIONS, max_new_tokens=60)
    with pytest.raises(UsageError, match=r"max_new_tokens 60: .*64 positions. --max_new_tokens 44"):
        generate(model, PROMPTS, options, end_of_text=END)
    with pytest.raises(UsageError, match="Shorten the prompt to less than 64 tokens"):
        generate(model, [torch.zeros(64, dtype=torch.long)], options, end_of_text=END)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "--temperature 0.0: it has to be above 0"),
        ({"top_p": 1.5}, "--top_p 1.5"),
        ({"top_k": -1}, "--top_k -1"),
        ({"max_new_tokens": 0}, "--max_new_tokens 0"),
        ({"num_return_sequences": 0}, "--num_return_sequences 0"),
        (
            {"do_sample": False, "num_return_sequences": 3},
            "--num_return_sequences 3: without --do_sample",
        ),
    ],
)
def test_options_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(SamplingOptions(), **options).check()  # type: ignore[arg-type] # wrong on purpose
