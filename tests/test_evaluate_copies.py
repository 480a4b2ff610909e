from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gpt2_lightning.evaluate import ngrams
from gpt2_lightning.evaluate.ngrams import longest_copies

Ids = npt.NDArray[np.unsignedinteger[Any]]
TEXT = [0, 5, 6, 7, 8, 9, 0, 5, 6, 5, 6, 5, 6, 0]


def by_hand(sample: list[int], text: list[int]) -> int:
    """Return the longest copy by trying every place."""
    longest = 0
    for start in range(len(sample)):
        while start + longest < len(sample) and stands(sample[start : start + longest + 1], text):
            longest += 1
    return longest


def stands(run: list[int], text: list[int]) -> bool:
    return any(text[place : place + len(run)] == run for place in range(len(text)))


@pytest.mark.parametrize(
    ("sample", "tokens"),
    [
        ([], 0),
        ([4], 0),
        ([5], 1),
        ([4, 9, 4], 1),
        ([9, 8, 7], 1),  # the other way round is no copy
        ([4, 6, 7, 8, 4, 5, 6], 3),
        ([5, 6, 5, 6, 5, 6], 6),
        ([5, 6, 5, 6, 5, 6, 5, 6], 6),
        (TEXT, 14),
        ([*TEXT, 0], 14),
        ([0, *TEXT], 14),
    ],
)
@pytest.mark.parametrize("piece", [1, 3, 100])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_a_table_of_copies(
    sample: list[int], tokens: int, piece: int, dtype: type[np.unsignedinteger[Any]]
) -> None:
    text = np.array(TEXT, dtype)
    assert longest_copies([sample], text, piece=piece) == [tokens]
    # each sample by itself, whatever stands beside it
    assert longest_copies([[5, 6], sample, [3]], text, piece=piece) == [2, tokens, 0]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("base", [ngrams.BASE, 1])
def test_copies_as_trying_every_place_finds_them(
    seed: int, base: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # with base 1 the n-grams of the same ids in any order share a hash
    monkeypatch.setattr(ngrams, "BASE", base)
    chance = np.random.default_rng(seed)
    for _ in range(50):
        ids = chance.integers(1, 5)
        text = chance.integers(0, ids, chance.integers(0, 60))
        samples = [
            chance.integers(0, ids + 1, chance.integers(0, 25)).tolist()  # one id is unknown
            for _ in range(chance.integers(0, 5))
        ]
        found = longest_copies(samples, text.astype(np.uint16), piece=int(chance.integers(1, 70)))
        assert found == [by_hand(sample, text.tolist()) for sample in samples]


@pytest.mark.parametrize("piece", [7, 8, 9, 64, 1000])
def test_a_copy_across_the_border_of_chunks(piece: int) -> None:
    text = np.arange(1000, dtype=np.uint16)
    for start in range(0, 40):
        sample = [1000, *range(start, start + 30), 1000]
        assert longest_copies([sample], text, piece=piece) == [30]
    assert longest_copies([[*range(990, 1000), 0]], text, piece=piece) == [10]  # the text's end


def test_repetition_takes_no_longer() -> None:
    text = np.ones(400_000, np.uint16)  # two chunks; a pair of places for each would not fit
    samples = [[1] * 500, [1] * 499 + [2], [2, 1] * 250, [1] * 250 + [2] + [1] * 249]
    assert longest_copies(samples, text) == [500, 499, 1, 250]


def test_ids_above_two_bytes_and_a_mapped_file(tmp_path: Path) -> None:
    ids = np.array([70_000, 4464, 70_001, 65_535, 0], np.uint32)  # 4464 is 70,000 modulo 2^16
    ids.tofile(tmp_path / "ids.bin")
    mapped: Ids = np.memmap(tmp_path / "ids.bin", dtype=np.uint32, mode="r")
    samples = [[70_000, 70_000], [4464, 70_001], [70_001, 65_535, 0], [70_000 - 65_536, 4465]]
    assert longest_copies(samples, mapped) == [1, 2, 3, 1]


def test_an_empty_split_and_no_samples() -> None:
    assert longest_copies([[1, 2]], np.empty(0, np.uint16)) == [0]
    assert longest_copies([], np.ones(3, np.uint16)) == []
