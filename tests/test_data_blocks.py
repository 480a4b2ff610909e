from pathlib import Path

import numpy as np
import pytest

from gpt2_lightning.data.batches import FILL_UP, PackedBlocks, PaddedBlocks
from gpt2_lightning.data.token_store import Manifest, TokenStore

X = -100
EOS = 9


def store(ids: list[int], starts: list[int]) -> TokenStore:
    manifest = Manifest(len(ids), len(starts) - 1, 1, 1, 1, 1, 0, 1, "uint16", {})
    return TokenStore(Path(), manifest, np.array(ids, np.uint16), np.array(starts))


@pytest.mark.parametrize(
    ("size", "inputs", "targets"),
    [
        (2, [[9, 1], [2, 3], [9, 4]], [[1, 2], [3, 9], [4, 9]]),
        (3, [[9, 1, 2], [3, 9, 4]], [[1, 2, 3], [9, 4, 9]]),
        (4, [[9, 1, 2, 3], [9, 4, 9, 9]], [[1, 2, 3, 9], [4, 9, X, X]]),
        (8, [[9, 1, 2, 3, 9, 4, 9, 9]], [[1, 2, 3, 9, 4, 9, X, X]]),
    ],
)
def test_packed_tables(size: int, inputs: list[list[int]], targets: list[list[int]]) -> None:
    blocks = PackedBlocks(store([9, 1, 2, 3, 9, 4, 9], [1, 5]), size, EOS)
    batch = blocks.batch(np.arange(len(blocks)))
    assert batch["input_ids"].tolist() == inputs
    assert batch["targets"].tolist() == targets
    assert "attention_mask" not in batch
    assert blocks.target_counts.tolist() == [sum(t != X for t in row) for row in targets]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64])
def test_every_token_is_predicted_once(size: int) -> None:
    ids = [EOS, *range(100, 157), EOS]
    blocks = PackedBlocks(store(ids, [1, 59]), size, EOS)
    targets = blocks.batch(np.arange(len(blocks)))["targets"].flatten()
    assert targets[targets != X].tolist() == ids[1:]
    assert blocks.target_counts.sum() == len(ids) - 1


def test_padded_table() -> None:
    # rows: 1 2 3 | 4 | 5 9 6 7, where 9 is both end-of-text and padding
    blocks = PaddedBlocks(store([1, 2, 3, 4, 5, 9, 6, 7], [0, 3, 4, 8]), 3, EOS)
    batch = blocks.batch(np.arange(3))
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9], [5, 9, 6]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 1]]
    assert batch["targets"].tolist() == [[2, 3, X], [X, X, X], [9, 6, X]]
    assert blocks.target_counts.tolist() == [2, 0, 2]


def test_fill_up_has_no_targets_and_some_attention() -> None:
    packed = PackedBlocks(store([9, 1, 2, 9], [1, 4]), 2, EOS).batch(np.array([FILL_UP, 0]))
    padded = PaddedBlocks(store([1, 2, 3], [0, 3]), 2, EOS).batch(np.array([FILL_UP, 0]))
    for batch in (packed, padded):
        assert batch["targets"][0].tolist() == [X, X]
        assert batch["input_ids"][0].tolist() == [EOS, EOS]
        assert batch["targets"][1].tolist() != [X, X]
    assert padded["attention_mask"][0].tolist() == [1, 1]
