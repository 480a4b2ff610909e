import tracemalloc
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gpt2_lightning.data import batches as batching
from gpt2_lightning.data.batches import (
    FILL_UP,
    EvalBatches,
    PackedBlocks,
    PaddedBlocks,
    TrainBatches,
)
from gpt2_lightning.data.token_store import Manifest, TokenStore
from gpt2_lightning.errors import UsageError
from gpt2_lightning.model.gpt2 import AttentionName, check_attend
from gpt2_lightning.model.module import GPT2Module

X = -100
EOS = 9


def blocks(count: int, size: int = 4, short: int = 1) -> PackedBlocks:
    """Blocks whose ids tell them apart; the last lacks ``short`` targets."""
    ids = np.arange(count * size + 1 - short, dtype=np.uint16)
    manifest = Manifest(len(ids), 1, 1, 1, 1, 1, 0, 1, "uint16", {})
    return PackedBlocks(TokenStore(Path(), manifest, ids, np.array([0, len(ids)])), size, 0)


def targets(batch: dict) -> list[int]:  # type: ignore[type-arg] # a batch of either loader
    return sorted(batch["targets"][batch["targets"] != -100].tolist())


def test_an_epoch_predicts_every_token_once() -> None:
    data = blocks(11)
    batches = TrainBatches(data, batch_size=2, seed=3, accumulate=2)
    assert len(batches) == 6
    assert batches.num_steps == 3
    seen = sorted(t for batch in batches for t in targets(batch))
    assert seen == list(range(1, 44))


def test_each_epoch_cuts_the_text_elsewhere_and_still_predicts_every_token_once() -> None:
    batches = TrainBatches(blocks(11), batch_size=2, seed=3, shift=True)
    first = list(batches)
    assert [targets(it) for it in first] == [
        targets(it) for it in TrainBatches(blocks(11), batch_size=2, seed=3)
    ]
    begins = set()
    for epoch in range(1, 9):
        batches.set_epoch(epoch)
        seen = list(batches)
        assert sorted(t for batch in seen for t in targets(batch)) == list(range(1, 44))
        assert len(seen) == len(first)
        for batch in seen:  # ids are their own places: each target follows its input, but at an end
            inputs, following = batch["input_ids"], batch["targets"]
            assert isinstance(inputs, torch.Tensor)
            kept = following != X
            steps = (following - inputs)[kept]
            assert set(steps.tolist()) <= {1, 1 - 43}
        begins |= {int(batch["input_ids"][0, 0]) % 4 for batch in seen}  # type: ignore[index]
    assert begins == {0, 1, 2, 3}


@pytest.mark.parametrize(("world", "size", "accumulate"), [(2, 2, 1), (1, 2, 2), (2, 1, 2)])
def test_the_same_global_batches_however_dealt_out(world: int, size: int, accumulate: int) -> None:
    data = blocks(11)
    whole = [targets(batch) for batch in TrainBatches(data, batch_size=4, seed=3)]
    ranks = [
        list(
            TrainBatches(
                data,
                batch_size=size,
                seed=3,
                rank=rank,
                world_size=world,
                accumulate=accumulate,
            )
        )
        for rank in range(world)
    ]
    assert len({len(rank) for rank in ranks}) == 1
    for step, expected in enumerate(whole):
        parts = [
            batch for rank in ranks for batch in rank[step * accumulate : (step + 1) * accumulate]
        ]
        assert sorted(t for part in parts for t in targets(part)) == expected
        assert {part["step_targets"] for part in parts} == {len(expected)}
        assert [p["ends_step"] for p in parts].count(True) == world


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        batches = TrainBatches(blocks(20), batch_size=2, seed=seed)
        batches.set_epoch(epoch)
        return [targets(batch) for batch in batches]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


@pytest.mark.parametrize("stop", [1, 4, 7, 10])
def test_going_on_from_a_saved_place(stop: int) -> None:
    def loader() -> TrainBatches:
        return TrainBatches(blocks(20), batch_size=2, seed=5)

    def told(batch: dict) -> tuple[object, ...]:  # type: ignore[type-arg] # a batch
        return targets(batch), batch["position"], batch["tokens_seen"], batch["ends_step"]

    whole = loader()
    expected = [told(batch) for batch in whole]
    whole.set_epoch(1)
    expected += [told(batch) for batch in whole]
    assert [place for _, place, _, _ in expected] == list(range(20))
    first = loader()
    stream = iter(first)
    seen = [told(next(stream)) for _ in range(stop)]
    second = loader()
    second.load_state_dict(first.state_dict())
    second.set_epoch(0)
    seen += [told(batch) for batch in second] if stop < 10 else []
    second.set_epoch(1)
    seen += [told(batch) for batch in second]
    assert seen == expected


@pytest.mark.parametrize(("limit", "steps"), [(3, 2), (0.5, 2), (1.0, 3), (100, 3)])
def test_a_limit_counts_the_last_steps_targets(limit: int | float, steps: int) -> None:
    batches = TrainBatches(blocks(12, short=0), batch_size=2, seed=1, accumulate=2, limit=limit)
    assert batches.num_steps == steps
    taken = list(batches)[: batches.num_batches]
    assert taken[-1]["ends_step"]
    size = 2 if batches.num_batches % 2 == 0 else 1
    assert taken[-1]["step_targets"] == size * 8


@pytest.mark.parametrize(("world", "size"), [(1, 1), (1, 4), (2, 3), (3, 2)])
def test_evaluation_sees_each_block_once_in_equal_steps(world: int, size: int) -> None:
    data = blocks(11)
    ranks = [
        list(EvalBatches(data, batch_size=size, rank=rank, world_size=world))
        for rank in range(world)
    ]
    assert len({len(rank) for rank in ranks}) == 1
    assert sorted(t for rank in ranks for batch in rank for t in targets(batch)) == list(
        range(1, 44)
    )


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
    assert blocks.target_counts(np.arange(len(blocks))).tolist() == [
        sum(t != X for t in row) for row in targets
    ]


@pytest.mark.parametrize(
    ("size", "places"),
    [(3, [[0, 1, 2], [0, 0, 1]]), (8, [[0, 1, 2, 3, 0, 1, 0, 0]])],
)
def test_positions_restart_at_each_document(size: int, places: list[list[int]]) -> None:
    blocks = PackedBlocks(store([9, 1, 2, 3, 9, 4, 9], [1, 5]), size, EOS, "document")
    batch = blocks.batch(np.arange(len(blocks)))
    assert batch["position_ids"].tolist() == places
    plain = PackedBlocks(store([9, 1, 2, 3, 9, 4, 9], [1, 5]), size, EOS)
    assert plain.batch(np.arange(len(blocks))).keys() == {"input_ids", "targets"}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_within_documents_is_one_document_a_row(
    attention: AttentionName, opinionated_model: Path
) -> None:
    module = GPT2Module(str(opinionated_model), attention=attention).eval().requires_grad_(False)
    texts = [[20, 30, 40, 50, 60], [70], [80, 90, 100, 110, 120, 130, 140]]
    ids = [EOS, *(it for text in texts for it in (*text, EOS))]
    both = [
        float(
            module.nats(
                PackedBlocks(store([*ids, *ids[1:]], [1]), len(ids) - 1, EOS, attend).batch(
                    np.arange(2)
                )
            )
        )
        for attend in ("document", "block")
    ]
    alone = [
        module.nats(
            {"input_ids": torch.tensor([[EOS, *it]]), "targets": torch.tensor([[*it, EOS]])}
        )
        for it in texts
    ]
    assert both[0] == pytest.approx(2 * float(sum(alone)), rel=1e-6)
    assert abs(both[1] - both[0]) > 0.01


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64])
def test_every_token_is_predicted_once(size: int) -> None:
    ids = [EOS, *range(100, 157), EOS]
    blocks = PackedBlocks(store(ids, [1, 59]), size, EOS)
    targets = blocks.batch(np.arange(len(blocks)))["targets"].flatten()
    assert targets[targets != X].tolist() == ids[1:]
    assert blocks.targets == len(ids) - 1


def test_padded_table() -> None:
    # rows: 1 2 3 | 4 | 5 9 6 7, where 9 is both end-of-text and padding
    blocks = PaddedBlocks(store([1, 2, 3, 4, 5, 9, 6, 7], [0, 3, 4, 8]), 3, EOS)
    batch = blocks.batch(np.arange(3))
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9], [5, 9, 6]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 1]]
    assert batch["targets"].tolist() == [[2, 3, X], [X, X, X], [9, 6, X]]
    assert blocks.target_counts(np.arange(len(blocks))).tolist() == [2, 0, 2]


def test_a_step_without_targets_has_a_loss() -> None:
    rows = PaddedBlocks(store([1, 2, 3], [0, 1, 2, 3]), 4, EOS)  # of one token each
    (batch,) = TrainBatches(rows, batch_size=3, seed=0)
    assert batch["step_targets"] == 1
    assert targets(batch) == []


def test_fill_up_has_no_targets_and_some_attention() -> None:
    packed = PackedBlocks(store([9, 1, 2, 9], [1, 4]), 2, EOS).batch(np.array([FILL_UP, 0]))
    padded = PaddedBlocks(store([1, 2, 3], [0, 3]), 2, EOS).batch(np.array([FILL_UP, 0]))
    for batch in (packed, padded):
        assert batch["targets"][0].tolist() == [X, X]
        assert batch["input_ids"][0].tolist() == [EOS, EOS]
        assert batch["targets"][1].tolist() != [X, X]
    assert padded["attention_mask"][0].tolist() == [1, 1]


@pytest.mark.parametrize(("size", "processes"), [(3, 1), (5, 2), (64, 1)])
def test_shards_are_shuffled_and_then_their_blocks(
    size: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "BLOCKS_PER_SHARD", 40)
    blocks = PackedBlocks(store(list(range(331)), [1, 331]), 2, EOS)  # 165: four shards, and 5
    epochs = []
    for epoch in range(2):
        order: list[int] = []
        loaders = [
            TrainBatches(blocks, batch_size=size, seed=3, rank=rank, world_size=processes)
            for rank in range(processes)
        ]
        for loader in loaders:
            loader.set_epoch(epoch)
        for micro in zip(*loaders, strict=True):
            inputs = torch.cat([it["input_ids"][it["targets"][:, 0] != X] for it in micro])
            order += (inputs[:, 0] // 2).tolist()
        assert sorted(order) == list(range(165))
        shards = [block // 40 for block in order]
        assert [shard for shard, _ in groupby(shards)] == list(dict.fromkeys(shards))
        assert order != sorted(order)
        epochs.append(order)
    assert epochs[0] != epochs[1]


def test_a_position_in_any_shard_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "BLOCKS_PER_SHARD", 40)
    blocks = PackedBlocks(store(list(range(331)), [1, 331]), 2, EOS)
    whole = [targets(batch) for batch in TrainBatches(blocks, batch_size=4, seed=3)]
    for position in (0, 9, 10, 11, 33, 41):
        loader = TrainBatches(blocks, batch_size=4, seed=3)
        loader.load_state_dict({"epoch": 0, "position": position, "tokens_seen": 0})
        assert [targets(batch) for batch in loader] == whole[position:]


def test_nothing_is_held_for_each_of_a_thousand_million_blocks() -> None:
    ids = np.broadcast_to(np.uint16(5), 10**12)  # takes no memory
    corpus = TokenStore(Path(), store([1], [0, 1]).manifest, ids, np.array([0, 10**12]))
    tracemalloc.start()
    loader = TrainBatches(PackedBlocks(corpus, 1000, EOS), batch_size=8, seed=0)
    loader.load_state_dict({"epoch": 1, "position": 100_000_000, "tokens_seen": 0})
    assert len(loader) == 125_000_000
    assert next(iter(loader))["position"] == 225_000_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30e6


@pytest.mark.parametrize(
    ("kind", "attention", "message"),
    [("opt", "sdpa", "type opt may mask"), ("gpt2", "flash_attention_2", "would mask nothing")],
)
def test_where_no_mask_would_be_built_it_is_refused(
    kind: str, attention: str, message: str
) -> None:
    config = SimpleNamespace(model_type=kind, _attn_implementation=attention)
    model = SimpleNamespace(config=config)
    check_attend(model, "block")
    with pytest.raises(UsageError, match=message):
        check_attend(model, "document")
