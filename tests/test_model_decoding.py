"""Past the model's positions: the last half is read anew, each row by its own length."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from gpt2_lightning.model.decoding import continue_rows, forgotten
from gpt2_lightning.model.sampling import SamplingOptions

END = 0
ROOM = 64
PROMPTS = [torch.arange(1, length + 1) for length in (1, 30, 63, 64, 65, 90)]
GREEDY = SamplingOptions(max_new_tokens=100, do_sample=False, no_repeat_ngram_size=3)


@pytest.fixture
def model(opinionated_model: Path) -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(opinionated_model)
    loaded.eval()
    return loaded


def rolled(
    model: PreTrainedModel, prompts: list[torch.Tensor], options: SamplingOptions
) -> list[list[int]]:
    new: list[list[int]] = [[] for _ in prompts]
    for step in continue_rows(model, prompts, range(len(prompts)), options, end_of_text=END):
        for ids, token in zip(new, step, strict=True):
            if token is not None:
                ids.append(token)
    return new


@torch.inference_mode()
def plainly(model: PreTrainedModel, prompt: torch.Tensor, tokens: int) -> tuple[list[int], int]:
    """Return the greedy ids, each from the whole window without a cache, and what was forgotten."""
    ids, begin = prompt.tolist(), 0
    for _ in range(tokens):
        if len(ids) - begin > ROOM:
            begin = len(ids) - ROOM // 2
        ids.append(int(model(torch.tensor([ids[begin:]])).logits[0, -1].argmax()))
    return ids[len(prompt) :], begin


@pytest.mark.slow
def test_greedy_is_the_loop_without_a_cache(model: PreTrainedModel) -> None:
    plain = replace(GREEDY, no_repeat_ngram_size=0)
    for prompt, ours in zip(PROMPTS, rolled(model, PROMPTS, plain), strict=True):
        expected, begin = plainly(model, prompt, 100)
        assert ours == expected[: len(ours)]
        if len(ours) == 100:
            assert forgotten(len(prompt), 100, ROOM) == begin > 0


@pytest.mark.slow
@pytest.mark.parametrize("options", [GREEDY, replace(GREEDY, do_sample=True, temperature=1.0)])
def test_a_row_rolls_by_its_own_length(model: PreTrainedModel, options: SamplingOptions) -> None:
    together = rolled(model, PROMPTS, options)
    for seed, prompt in enumerate(PROMPTS):
        alone = [
            step[0]
            for step in continue_rows(model, [prompt], [seed], options, end_of_text=END)
            if step[0] is not None
        ]
        assert alone == together[seed]
    assert max(map(len, together)) == 100


def test_the_options_look_back_beyond_the_window(model: PreTrainedModel) -> None:
    for prompt, ids in zip(PROMPTS, rolled(model, PROMPTS, GREEDY), strict=True):
        text = prompt.tolist() + ids
        runs = list(zip(text, text[1:], text[2:], strict=False))
        assert len(set(runs)) == len(runs)


def test_a_row_that_has_ended_does_not_hold_up_the_others(model: PreTrainedModel) -> None:
    plain = replace(GREEDY, no_repeat_ngram_size=0)
    long, _ = plainly(model, PROMPTS[2], 100)
    end = next(token for token in long if token not in plainly(model, PROMPTS[1], 100)[0])
    steps = list(continue_rows(model, [PROMPTS[1], PROMPTS[2]], [0, 0], plain, end_of_text=end))
    assert [step[0] for step in steps] == plainly(model, PROMPTS[1], 100)[0]
    shown = long.index(end)
    assert [step[1] for step in steps] == [*long[:shown], *[None] * (100 - shown)]


@pytest.mark.parametrize(
    ("prompt", "new", "tokens"), [(10, 54, 0), (10, 55, 0), (10, 56, 33), (70, 1, 38), (70, 33, 38)]
)
def test_what_was_forgotten(prompt: int, new: int, tokens: int) -> None:
    assert forgotten(prompt, new, ROOM) == tokens
