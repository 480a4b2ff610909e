import json
import random
import tracemalloc
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gpt2_lightning.data.token_store import Manifest, TokenStore
from gpt2_lightning.data.tokenizing import Unit
from gpt2_lightning.evaluate.ngrams import measure_overlap

END = 299


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model)


def store_of(folder: Path, units: Sequence[Sequence[int]], unit: Unit = "row") -> TokenStore:
    """Write units of ids as `write_token_store` would."""
    folder.mkdir()
    ids, starts = ([END], []) if unit == "article" else ([], [])
    for one in units:
        starts.append(len(ids))
        ids += [*one, END] if unit == "article" else one
    starts.append(len(ids))
    np.array(ids, np.uint16).tofile(folder / "ids.bin")
    np.array(starts, np.int64).tofile(folder / "starts.bin")
    manifest = Manifest(len(ids), len(units), 1, 1, 1, 1, 0, 1, "uint16", {"unit": unit})
    (folder / "manifest.json").write_text(json.dumps(asdict(manifest)))
    return TokenStore.open(folder)


def grams(units: Sequence[Sequence[int]], n: int) -> list[list[tuple[int, ...]]]:
    return [[tuple(one[i : i + n]) for i in range(len(one) - n + 1)] for one in units]


@pytest.mark.parametrize("unit", ["row", "article"])
@pytest.mark.parametrize("n", [1, 3, 5])
@pytest.mark.parametrize(("held", "piece"), [(1 << 20, 1 << 20), (7, 3), (10, 4)])
def test_as_counted_one_by_one(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    unit: Unit,
    n: int,
    held: int,
    piece: int,
) -> None:
    chance = random.Random(n)
    train, test = (
        [
            chance.choices(range({1: 40, 3: 4, 5: 2}[n]), k=chance.randint(1, 12))
            for _ in range(units)
        ]
        for units in (9, 14)
    )
    known = {gram for one in grams(train, n) for gram in one}
    of_test = grams(test, n)
    found = measure_overlap(
        store_of(tmp_path / "test", test, unit),
        store_of(tmp_path / "train", train, unit),
        tokenizer,
        n=n,
        at_once=held,
        piece=piece,
    )
    assert found.ngrams == sum(map(len, of_test))
    assert found.found == sum(gram in known for one in of_test for gram in one)
    assert found.units == sum(len(one) > 0 for one in of_test)
    assert found.units_touched == sum(any(gram in known for gram in one) for one in of_test)
    if n > 1:
        assert 0 < found.found < found.ngrams


def test_the_longest_passage_is_shown(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    copied = tokenizer("The old stone bridge near the railway")["input_ids"]
    train = [[7, 8, 9, 10, 11], [5, 5, *copied, 6]]
    test = [[1, 2, 3], [7, 8, 9, 10, 2], [3, *copied, 4, 4]]
    for held, piece in ((1 << 20, 1 << 20), (9, 4)):
        folder = tmp_path / str(held)
        folder.mkdir()
        stores = store_of(folder / "a", test), store_of(folder / "b", train)
        found = measure_overlap(*stores, tokenizer, n=3, at_once=held, piece=piece)
        assert found.longest == len(copied)
        assert found.passage == "The old stone bridge near the railway"
        assert found.units_touched == 2


def test_nothing_is_long_enough(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    stores = store_of(tmp_path / "a", [[1, 2], [3]]), store_of(tmp_path / "b", [[1, 2, 3]])
    found = measure_overlap(*stores, tokenizer, n=13)
    assert (found.ngrams, found.share, found.longest, found.passage) == (0, None, 0, "")


@pytest.mark.slow
def test_memory_does_not_grow(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    chance = np.random.default_rng(0)

    def peak(name: str, tokens: int) -> int:
        folder = tmp_path / name
        folder.mkdir()
        units = [chance.integers(0, 300, 5000).tolist() for _ in range(tokens // 5000)]
        stores = store_of(folder / "a", units), store_of(folder / "b", units)
        del units
        tracemalloc.start()
        found = measure_overlap(*stores, tokenizer, n=13, at_once=20_000, piece=4_000)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.share == 1
        return most

    peak("first", 20_000)  # what is imported and cached at the first call
    short, long = peak("short", 40_000), peak("long", 400_000)
    assert long < 1.1 * short
