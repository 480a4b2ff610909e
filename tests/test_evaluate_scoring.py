"""Scores against plain loops over transformers: one window at a time, whole logits, exact sums."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel

from gpt2_lightning.errors import UsageError
from gpt2_lightning.evaluate import scoring
from gpt2_lightning.evaluate.scoring import (
    Window,
    block_windows,
    rolling_windows,
    score,
    sliding_windows,
)
from gpt2_lightning.model import loss

IDS = np.random.default_rng(0).integers(0, 299, 333).astype(np.uint16)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> PreTrainedModel:
    found: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    return found


def plain_windows(
    model: PreTrainedModel, ids: npt.NDArray[Any], context: int, stride: int
) -> Iterator[tuple[torch.Tensor, int]]:
    """Yield each window's nats per token, and how many of them, at its end, are new."""
    run = torch.from_numpy(ids.astype(np.int64))
    scored = 0
    for begin in range(0, len(run), stride):
        end = min(begin + context, len(run))
        with torch.no_grad():
            logits = model(run[None, begin:end]).logits[0].double()
        yield cross_entropy(logits[:-1], run[begin + 1 : end], reduction="none"), end - scored
        scored = end
        if end == len(run):
            return


@pytest.mark.slow
@pytest.mark.parametrize("stride", [32, 16, 8, 1])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_equals_a_plain_loop(model: PreTrainedModel, stride: int, batch_size: int) -> None:
    windows = sliding_windows(0, len(IDS), context=32, stride=stride)
    found = score(model, IDS, windows, batch_size=batch_size)
    wanted = predicted = 0.0
    for nats, new in plain_windows(model, IDS, 32, stride):
        wanted += nats[-new:].sum().item()  # a window's first has no nats
        predicted += min(new, len(nats))
    assert found.total_predicted == predicted
    assert found.total_nats == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_is_close_to_the_loop_of_the_hubs_page(model: PreTrainedModel, stride: int) -> None:
    """The page weighs the mean of a window's new tokens by one less than there are."""
    total = count = 0.0
    for nats, new in plain_windows(model, IDS, 32, stride):
        total += nats[-new:].mean().item() * (new - 1)
        count += new - 1
    windows = sliding_windows(0, len(IDS), context=32, stride=stride)
    found = score(model, IDS, windows, batch_size=4)
    ours = math.exp(found.total_nats / found.total_predicted)
    # the shorter the windows, the more the page's weights matter; equal where strides are whole
    assert ours == pytest.approx(math.exp(total / count), rel=1e-6 if stride == 32 else 1e-2)


def test_units_are_summed_apart(model: PreTrainedModel) -> None:
    spans = [(0, 100), (100, 110), (110, 333)]
    windows = [
        window
        for unit, (begin, end) in enumerate(spans)
        for window in rolling_windows(begin, end, context=64, unit=unit)
    ]
    together = score(model, IDS, windows, batch_size=4, units=3)
    for unit, (begin, end) in enumerate(spans):
        alone = score(
            model, IDS[begin:end], rolling_windows(0, end - begin, context=64), batch_size=1
        )
        assert together.nats[unit] == pytest.approx(alone.total_nats, rel=1e-6)
        assert together.predicted[unit] == alone.total_predicted == end - begin - 1


@pytest.mark.parametrize("rows", [7, 512])
def test_neither_batches_nor_pieces_change_the_answer(
    model: PreTrainedModel, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = list(sliding_windows(0, len(IDS), context=64, stride=16))
    wanted = score(model, IDS, windows, batch_size=1).total_nats
    monkeypatch.setattr(loss, "ROWS_AT_A_TIME", rows)
    for batch_size in (1, 4, 16):
        found = score(model, IDS, windows, batch_size=batch_size).total_nats
        assert found == pytest.approx(wanted, rel=1e-7)


def test_bf16_is_within_half_a_percent(tiny_model: Path) -> None:
    half: Any = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).eval()
    whole: Any = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    perplexities = []
    for model in (half, whole):
        windows = sliding_windows(0, len(IDS), context=64, stride=32)
        found = score(model, IDS, windows, batch_size=4)
        perplexities.append(math.exp(found.total_nats / found.total_predicted))
    assert perplexities[0] == pytest.approx(perplexities[1], rel=5e-3)
    assert perplexities[0] != perplexities[1]


def test_logits_are_taken_where_a_token_is_scored(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def watched(hidden: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        seen.append(len(hidden))
        return loss.token_nats(hidden, *others)

    monkeypatch.setattr(scoring, "token_nats", watched)
    found = score(model, IDS, [Window(0, 60, 64), Window(4, 61, 65)], batch_size=2)
    assert seen == [8]
    assert found.total_predicted == 8


def test_what_is_no_number_is_refused(tiny_model: Path) -> None:
    broken: Any = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    broken.transformer.h[1].mlp.c_fc.weight.data[0, 0] = math.nan
    with pytest.raises(UsageError, match="--model: its logits are not numbers"):
        score(broken, IDS, [Window(0, 1, 64)], batch_size=1)


def test_disjoint_windows_do_not_score_their_first() -> None:
    windows = list(sliding_windows(1, 11, context=4, stride=4))
    assert windows == [Window(1, 2, 5), Window(5, 6, 9), Window(9, 10, 11)]


def test_sliding_windows_score_each_once_with_what_context_there_is() -> None:
    windows = list(sliding_windows(0, 11, context=4, stride=2))
    assert windows == [
        Window(0, 1, 4),
        Window(2, 4, 6),
        Window(4, 6, 8),
        Window(6, 8, 10),
        Window(8, 10, 11),
    ]


def test_a_text_shorter_than_the_context_is_one_window() -> None:
    assert list(sliding_windows(3, 6, context=8, stride=4)) == [Window(3, 4, 6)]


def test_a_last_window_of_one_id_that_has_no_context_scores_nothing() -> None:
    assert list(sliding_windows(0, 9, context=4, stride=4)) == [Window(0, 1, 4), Window(4, 5, 8)]


def test_rolling_windows_score_a_whole_context_and_the_last_reaches_back() -> None:
    # 0 is the end-of-text, 1 to 9 the article
    windows = list(rolling_windows(0, 10, context=4, unit=7))
    assert windows == [Window(0, 1, 5, 7), Window(4, 5, 9, 7), Window(5, 9, 10, 7)]


def test_rolling_windows_of_a_short_article() -> None:
    assert list(rolling_windows(20, 23, context=4)) == [Window(20, 21, 23)]
    assert list(rolling_windows(20, 21, context=4)) == []


def test_blocks_predict_every_id_but_the_leading_end_of_text() -> None:
    ids = np.arange(10)
    assert list(block_windows(ids, block_size=4)) == [
        Window(0, 1, 5),
        Window(4, 5, 9),
        Window(8, 9, 10),
    ]
    assert list(block_windows(ids[:9], block_size=4)) == [Window(0, 1, 5), Window(4, 5, 9)]
    # an end-of-text (0) begins a document; the token after a document's last is its last target
    ids = np.asarray([0, 1, 1, 0, 1, 1, 0, 0, 1, 0])
    assert list(block_windows(ids, block_size=4, begins=0)) == [
        Window(0, 1, 4),
        Window(3, 4, 5),
        Window(4, 5, 7),
        Window(6, 7, 8),
        Window(7, 8, 9),
        Window(8, 9, 10),
    ]
