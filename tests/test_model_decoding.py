"""Past the model's positions: the last half is read anew, each row by its own length."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from gpt2_lightning.model.decoding import SPARE_COLUMNS, Batch, decode
from gpt2_lightning.model.sampling import SamplingOptions
from gpt2_lightning.model.sequence import TokenSequence, draw

END = 0
ROOM = 64
PROMPTS = [torch.arange(1, length + 1) for length in (1, 30, 63, 64, 65, 90)]
GREEDY = SamplingOptions(max_new_tokens=100, do_sample=False, no_repeat_ngram_size=3)


@pytest.fixture
def model(opinionated_model: Path) -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(opinionated_model)
    loaded.eval()
    return loaded


def sequence_of(
    prompt: torch.Tensor, options: SamplingOptions = GREEDY, seed: int = 0, end: int = END
) -> TokenSequence:
    return TokenSequence(prompt.tolist(), options, seed, end_of_text=end)


def rolled(
    model: PreTrainedModel, prompts: list[torch.Tensor], options: SamplingOptions
) -> list[TokenSequence]:
    sequences = [sequence_of(prompt, options, seed) for seed, prompt in enumerate(prompts)]
    for drawn in decode(model, sequences):
        assert all(
            it.new[-1] == token for it, token in zip(drawn.sequences, drawn.tokens, strict=True)
        )
    return sequences


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
        assert ours.text_ids == expected[: len(ours.text_ids)]
        if len(ours.text_ids) == 100:
            assert ours.forgotten == begin > 0


@pytest.mark.slow
@pytest.mark.parametrize("options", [GREEDY, replace(GREEDY, do_sample=True, temperature=1.0)])
def test_a_row_rolls_by_its_own_length(model: PreTrainedModel, options: SamplingOptions) -> None:
    together = rolled(model, PROMPTS, options)
    for seed, prompt in enumerate(PROMPTS):
        alone = sequence_of(prompt, options, seed)
        for _ in decode(model, [alone]):
            pass
        assert alone.new == together[seed].new
    assert max(len(it.new) for it in together) == 100


def test_the_options_look_back_beyond_the_window(model: PreTrainedModel) -> None:
    for sequence in rolled(model, PROMPTS, GREEDY):
        text = sequence.prompt + sequence.text_ids
        runs = list(zip(text, text[1:], text[2:], strict=False))
        assert len(set(runs)) == len(runs)


def test_a_row_that_has_ended_does_not_hold_up_the_others(model: PreTrainedModel) -> None:
    plain = replace(GREEDY, no_repeat_ngram_size=0)
    long, _ = plainly(model, PROMPTS[2], 100)
    end = next(token for token in long if token not in plainly(model, PROMPTS[1], 100)[0])
    other, ends = (sequence_of(prompt, plain, end=end) for prompt in PROMPTS[1:3])
    rows = [len(drawn.sequences) for drawn in decode(model, [other, ends])]
    assert other.new == plainly(model, PROMPTS[1], 100)[0]
    shown = long.index(end)
    assert ends.text_ids == long[:shown]
    assert rows == [2] * (shown + 1) + [1] * (99 - shown)


@pytest.mark.parametrize(
    ("prompt", "new", "tokens"), [(10, 54, 0), (10, 55, 0), (10, 56, 33), (70, 1, 38), (70, 33, 38)]
)
def test_what_was_forgotten(model: PreTrainedModel, prompt: int, new: int, tokens: int) -> None:
    options = replace(GREEDY, max_new_tokens=new, min_new_tokens=new)
    assert rolled(model, [torch.arange(1, prompt + 1)], options)[0].forgotten == tokens


@pytest.mark.slow
@torch.inference_mode()
def test_whoever_joins_and_leaves_the_text_is_the_same(model: PreTrainedModel) -> None:
    """Rows of all lengths come and go until the columns are full and are moved."""
    plain = replace(GREEDY, max_new_tokens=30, do_sample=True, temperature=1.5, top_k=0)
    waiting = [sequence_of(torch.arange(1, 2 + 7 * n % 60), plain, n) for n in range(20)]
    batch, every, steps = Batch(model, 3), list(waiting), 0
    while waiting or batch.sequences:
        joining = [waiting.pop() for _ in range(min(len(waiting), 3 - len(batch.sequences)))]
        for drawn in ([batch.step()] if batch.sequences else []) + (
            [batch.join(joining)] if joining else []
        ):
            for sequence, token in zip(drawn.sequences, drawn.tokens, strict=True):
                sequence.add(token)
        batch.leave([it for it in batch.sequences if it.ended])
        steps += 1
    assert steps > ROOM + SPARE_COLUMNS
    for seed, sequence in enumerate(every):
        alone = sequence_of(torch.tensor(sequence.prompt), plain, seed)
        for _ in decode(model, [alone]):
            pass
        assert alone.new == sequence.new
        assert alone.forgotten == sequence.forgotten
    assert any(sequence.forgotten for sequence in every)


def test_what_is_drawn_depends_on_no_other_options_in_the_batch() -> None:
    chance = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(5, 300, generator=chance)
    options = [
        SamplingOptions(),
        SamplingOptions(do_sample=False, min_new_tokens=1),
        SamplingOptions(top_k=0, min_p=0.01, repetition_penalty=1.4),
        SamplingOptions(),
        SamplingOptions(temperature=2.0, typical_p=0.9, no_repeat_ngram_size=1),
    ]
    sequences = [sequence_of(PROMPTS[1], it, seed) for seed, it in enumerate(options)]
    kept = logits.clone()
    together = draw(sequences, logits)
    assert torch.equal(logits, kept)
    for row, it in enumerate(options):
        assert draw([sequence_of(PROMPTS[1], it, row)], logits[row, None]) == [together[row]]
    assert len(set(together)) > 3
