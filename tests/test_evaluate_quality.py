import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from gpt2_lightning.evaluate.quality import Quality, distinct_n, measure, repeated_n
from gpt2_lightning.run_folder import read_scalars
from tests.command_line import fine_tuning, fit


@pytest.mark.parametrize(
    ("samples", "n", "share"),
    [
        ([[1, 2, 3]], 1, 1),
        ([[1, 2, 3], [1, 2]], 1, 3 / 5),
        ([[1, 2, 3], [1, 2]], 2, 2 / 3),
        ([[1, 2, 3], [1, 2]], 3, 1),
        ([[1, 2], [2, 1]], 2, 1),  # order counts
        ([[1, 2], [3, 1], [2]], 2, 1),  # no n-gram reaches from one sample into the next
        ([[1, 1, 1, 1, 1]], 2, 1 / 4),
        ([[1, 2], [3]], 3, None),
        ([[]], 1, None),
        ([], 1, None),
    ],
)
def test_distinct_n(samples: list[list[int]], n: int, share: float | None) -> None:
    assert distinct_n(samples, n) == share


@pytest.mark.parametrize(
    ("samples", "n", "share"),
    [
        ([[1, 2, 3, 4, 5]], 4, 0),
        ([[1, 1, 1, 1, 1]], 4, 1 / 2),
        ([[1, 2, 1, 2, 1, 2, 1]], 4, 1 / 2),  # two of four
        ([[1, 1, 1, 1, 1], [1, 1, 1, 1]], 4, 1 / 4),  # samples weigh alike; they share nothing
        ([[1, 1, 1, 1, 1], [1, 1, 1]], 4, 1 / 2),  # too short to have a 4-gram
        ([[1, 1, 1], []], 4, None),
        ([], 4, None),
    ],
)
def test_repeated_n(samples: list[list[int]], n: int, share: float | None) -> None:
    assert repeated_n(samples, n) == share


def test_all_numbers_of_some_samples() -> None:
    samples = [[1, 2, 3, 4, 5], [7, 7, 7, 7, 7], []]
    training = np.array([9, 2, 3, 4, 9, 7], np.uint16)
    quality = measure(samples, [True, False, True], training)
    assert quality == Quality(
        distinct_2=5 / 8,
        distinct_3=4 / 6,
        repeated_4=1 / 4,
        ended=2 / 3,
        longest_copy=3,
        longest_copies=[3, 1, 0],
    )
    assert Quality(**json.loads(json.dumps(asdict(quality)))) == quality


def test_what_cannot_be_counted_is_none() -> None:
    assert measure([[1]], [False]) == Quality(None, None, None, 0, None, [])
    assert measure([], [], np.ones(3, np.uint16)) == Quality(None, None, None, None, None, [])


@pytest.mark.slow
def test_a_run_logs_the_quality_of_its_samples(wiki_folder: Path, tiny_model: Path) -> None:
    words = fine_tuning(wiki_folder, tiny_model)
    run = fit(*words, "--trainer.max_steps=1", "--model.sampling.max_new_tokens=8")
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    table = read_scalars(run)
    for step in (0, 1):  # before training, and after its one step
        samples = [row for row in rows if row["step"] == step]
        logged = {name: value for name, value in table[step].items() if name.startswith("samples/")}
        assert logged.keys() == {
            "samples/distinct_2",
            "samples/repeated_4",
            "samples/ended",
            "samples/longest_copy",
        }
        assert len(samples) == 9
        assert 1 <= logged["samples/longest_copy"] <= 8
        assert logged["samples/longest_copy"] == max(row["longest_copy"] for row in samples)
        assert logged["samples/ended"] == pytest.approx(sum(row["ended"] for row in samples) / 9)
        assert 0 < logged["samples/distinct_2"] <= 1
