"""Tokens -> (input, target) blocks -> micro-batches: order, ranks, fill-up, target counts."""

from collections.abc import Iterator
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpt2_lightning.data.token_store import IDS_PER_PIECE, TokenStore

BlockName = Literal["pack", "pad"]

AttendName = Literal["block", "document"]

IGNORED = -100  # the target that no loss of torch or transformers counts

BLOCKS_PER_SHARD = 1 << 20  # that are shuffled among themselves; their order takes 8 MB

SHIFT = 1 << 40  # what an epoch's shift is drawn by, beside its shards: no shard's number

FILL_UP = -1  # the index of a block in which every target is masked

# One micro-batch, every tensor of shape (blocks, block_size):
#   input_ids       token ids
#   targets         the id to predict at each position, -100 where there is none
#   attention_mask  1 for a token, 0 for padding; absent if there is no padding
#   position_ids    positions that restart at each document; absent where attention crosses them.
#                   transformers sees by them what is another document, and masks it
Batch = dict[str, Tensor]


class Blocks(Protocol):
    """A split cut into blocks; nothing is held for each of them.

    Attributes:
        targets: Targets of all blocks.
        block_size: Tokens of a block.
    """

    targets: int
    block_size: int

    def __len__(self) -> int:
        """Return the number of blocks."""

    def target_counts(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the targets of blocks, in the shape of the indices; the index -1 has none."""

    def batch(self, indices: npt.NDArray[np.int64], shift: int = 0) -> Batch:
        """Gather blocks, cut so many tokens later; index -1: every target is masked."""


class PackedBlocks:
    """Block i holds inputs ``d[iT : iT+T]`` and targets ``d[iT+1 : iT+T+1]`` of the ids ``d``.

    Every token but the leading end-of-text is predicted exactly once. The last block is filled
    up with end-of-text and masked there. Attention crosses articles, as in GPT-2's own training,
    unless it is kept within documents, each of which begins with the end-of-text before it.
    With a shift, block 0 begins so many tokens later, and the tokens before it follow the last
    one: in as many blocks every token is predicted once, after other tokens.
    """

    def __init__(
        self,
        store: TokenStore,
        block_size: int,
        end_of_text: int,
        attend: AttendName = "block",
    ) -> None:
        self.ids = store.ids
        self.attend = attend
        self.block_size = block_size
        self.end_of_text = end_of_text
        self.targets = max(len(self.ids) - 1, 0)

    def __len__(self) -> int:
        return -(-self.targets // self.block_size)

    def target_counts(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Count the targets: a block's size of them, but in the last block."""
        counts = np.minimum(self.block_size, self.targets - indices * self.block_size)
        return np.where(indices == FILL_UP, 0, counts)

    def batch(self, indices: npt.NDArray[np.int64], shift: int = 0) -> Batch:
        """Gather blocks, cut so many tokens later."""
        runs = np.full((len(indices), self.block_size + 1), self.end_of_text, np.int64)
        targets = np.full((len(indices), self.block_size), IGNORED, np.int64)
        for row, index in enumerate(indices):
            if index == FILL_UP:
                continue
            start = index * self.block_size
            count = min(self.block_size, self.targets - start)
            run = self.ids[start + shift : start + shift + count + 1]
            if lacking := count + 1 - len(run):  # what was passed over, but the leading end-of-text
                begin = 1 + max(start + shift - len(self.ids), 0)
                run = np.concatenate([run, self.ids[begin : begin + lacking]])
            runs[row, : count + 1] = run
            targets[row, :count] = runs[row, 1 : count + 1]
        inputs = runs[:, :-1].copy()
        batch = {"input_ids": torch.from_numpy(inputs), "targets": torch.from_numpy(targets)}
        if self.attend == "document":
            places = np.arange(self.block_size)
            begins = np.maximum.accumulate(np.where(inputs == self.end_of_text, places, 0), axis=1)
            batch["position_ids"] = torch.from_numpy(places - begins)
        return batch


class PaddedBlocks:
    """Block i is row i, cut off and padded on the right to the block's size.

    Padding is known by the row's length, not by its id: where pad and end-of-text share an id,
    as in GPT-2, a real end-of-text remains a target.
    """

    def __init__(self, store: TokenStore, block_size: int, pad: int) -> None:
        self.ids = store.ids
        self.starts = store.starts
        self.block_size = block_size
        self.pad = pad
        self.targets = self.tokens = 0  # of all blocks: predicted, and held
        for first in range(0, len(self), IDS_PER_PIECE):
            lengths = self.lengths(np.arange(first, min(first + IDS_PER_PIECE, len(self))))
            self.tokens += int(lengths.sum())
            self.targets += int(np.maximum(lengths - 1, 0).sum())

    def __len__(self) -> int:
        return len(self.starts) - 1

    def lengths(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the tokens of blocks, in the shape of the indices."""
        whole = self.starts[indices + 1] - self.starts[indices]
        lengths: npt.NDArray[np.int64] = np.minimum(whole, self.block_size)
        return lengths

    def target_counts(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Count the targets: all tokens of a row but its first."""
        return np.where(indices == FILL_UP, 0, np.maximum(self.lengths(indices) - 1, 0))

    def batch(self, indices: npt.NDArray[np.int64], shift: int = 0) -> Batch:
        """Gather blocks; a row stays where it is."""
        inputs = np.full((len(indices), self.block_size), self.pad, np.int64)
        targets = np.full_like(inputs, IGNORED)
        mask = np.zeros_like(inputs)
        for row, index in enumerate(indices):
            if index == FILL_UP:
                mask[row] = 1  # an attention over nothing would give NaN
                continue
            start, length = self.starts[index], int(self.lengths(index))
            inputs[row, :length] = self.ids[start : start + length]
            targets[row, : length - 1] = inputs[row, 1:length]
            mask[row, :length] = 1
        return {
            "input_ids": torch.from_numpy(inputs),
            "targets": torch.from_numpy(targets),
            "attention_mask": torch.from_numpy(mask),
        }


# A `Batch` of one rank, in training, with two numbers more:
#   step_targets  targets of the whole optimizer step, over ranks and accumulation; 1 where there
#                 are none, as in rows of one token each, and the step's loss is 0
#   ends_step     whether the optimizer steps after this micro-batch
#   tokens_seen   targets of all ranks up to and with this micro-batch, since training began
#   position      micro-batches of this rank before this one, since training began
TrainBatch = dict[str, Tensor | int]


class TrainBatches:
    """The training micro-batches of one rank: a pure function of seed, epoch and position.

    An epoch's blocks are shuffled, filled up with masked ones to whole global batches, and each
    global batch is distributed over micro-batches and ranks; so ranks take equal steps, and the
    global batches are the same for any number of processes. Of more than `BLOCKS_PER_SHARD`
    blocks, shards of so many are shuffled, and the blocks within each shard when its turn comes:
    what is held does not grow with the corpus.

    Lightning saves and restores the position in the epoch by ``state_dict`` and
    ``load_state_dict``.

    Args:
        blocks: The training split.
        batch_size: Blocks in a micro-batch of one rank.
        seed: Decides the order, together with the epoch.
        rank: This process.
        world_size: Number of processes.
        accumulate: Micro-batches in an optimizer step.
        limit: Trainer's ``limit_train_batches``: micro-batches of an epoch that are used, or
            their share if it is a float. The last step counts only the targets up to there.
        repeat: Use the first epoch's order in every epoch, for Trainer's ``overfit_batches``.
        shift: Cut the text at other places in each epoch but the first: less than a block later.
    """

    def __init__(
        self,
        blocks: Blocks,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        limit: int | float = 1.0,
        repeat: bool = False,
        shift: bool = False,
    ) -> None:
        self.blocks = blocks
        self.shift = shift
        self.seed = seed
        self.repeat = repeat
        self.rank = rank
        self.shape = (accumulate, world_size, batch_size)
        self.steps = -(-len(blocks) // int(np.prod(self.shape)))
        whole = self.steps * accumulate
        self.num_batches = min(limit, whole) if isinstance(limit, int) else int(whole * limit)
        self.epoch = 0
        self.position = 0
        self.tokens_seen = 0
        # Lightning tells the epoch to a loader's `sampler`, if it has a `set_epoch`
        self.sampler = self
        self._shuffled: dict[int, npt.NDArray[np.int64]] = {}  # shards of the present epoch

    def __len__(self) -> int:
        """Return the micro-batches of one rank in an epoch."""
        return self.steps * self.shape[0]

    @property
    def num_steps(self) -> int:
        """Optimizer steps in an epoch, where ``limit`` may end it early."""
        return -(-self.num_batches // self.shape[0])

    def set_epoch(self, epoch: int) -> None:
        """Begin another epoch; a restored epoch keeps its position."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def __iter__(self) -> Iterator[TrainBatch]:
        self._shuffled.clear()
        accumulate, last, shards = self.shape[0], None, list(self._shards())
        later = 0
        if self.shift and self.epoch and not self.repeat:
            later = int(self._chance(SHIFT).integers(self.blocks.block_size))
        while self.position < len(self):
            step, micro = divmod(self.position, accumulate)
            if step != last:
                order, last = self._order(step, shards), step
                counts = self.blocks.target_counts(order)
            in_step = min(accumulate, max(self.num_batches - step * accumulate, 1))
            position = self.epoch * len(self) + self.position
            self.position += 1
            self.tokens_seen += int(counts[micro].sum())
            batch = self.blocks.batch(order[micro, self.rank], later)
            yield {
                **batch,
                "step_targets": max(int(counts[:in_step].sum()), 1),
                "ends_step": micro + 1 == in_step,
                "tokens_seen": self.tokens_seen,
                "position": position,
            }
        self.position = 0

    def _order(self, step: int, shards: list[tuple[int, int, int]]) -> npt.NDArray[np.int64]:
        """Return the block indices of a step, shape (accumulate, ranks, batch_size)."""
        size = int(np.prod(self.shape))
        order = np.full(size, FILL_UP)
        begin, end = step * size, min((step + 1) * size, len(self.blocks))
        filled = 0
        for shard, first, blocks in shards:
            inside = slice(max(begin - first, 0), min(end - first, blocks))
            if inside.start < inside.stop:
                found = self._shard(shard, blocks)[inside]
                order[filled : filled + len(found)] = shard * BLOCKS_PER_SHARD + found
                filled += len(found)
        return order.reshape(self.shape)

    def _shards(self) -> Iterator[tuple[int, int, int]]:
        """Yield an epoch's shards in order: number, position of the first block, blocks."""
        total = len(self.blocks)
        count = -(-total // BLOCKS_PER_SHARD)
        first = 0
        for shard in map(int, self._chance().permutation(count) if count > 1 else range(count)):
            blocks = min(BLOCKS_PER_SHARD, total - shard * BLOCKS_PER_SHARD)
            yield shard, first, blocks
            first += blocks

    def _shard(self, shard: int, blocks: int) -> npt.NDArray[np.int64]:
        """Return the order of a shard's blocks; two orders are kept, as a step may lie in both."""
        if shard not in self._shuffled:
            while len(self._shuffled) > 1:
                del self._shuffled[next(iter(self._shuffled))]
            several = len(self.blocks) > BLOCKS_PER_SHARD
            chance = self._chance(shard) if several else self._chance()
            self._shuffled[shard] = chance.permutation(blocks)
        return self._shuffled[shard]

    def _chance(self, *shard: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, 0 if self.repeat else self.epoch, *shard])

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the next micro-batch."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "tokens_seen": self.tokens_seen,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved position."""
        self.epoch, self.position = state["epoch"], state["position"]
        self.tokens_seen = state["tokens_seen"]


class EvalBatches:
    """Every block once, in order, distributed over the ranks; ranks take equal steps.

    Args:
        blocks: The split.
        batch_size: Blocks in a batch of one rank.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(
        self, blocks: Blocks, *, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.blocks = blocks
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        """Return the batches of one rank."""
        return -(-len(self.blocks) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[Batch]:
        for batch in range(len(self)):
            first = (batch * self.world_size + self.rank) * self.batch_size
            indices = np.arange(first, first + self.batch_size)
            yield self.blocks.batch(np.where(indices < len(self.blocks), indices, FILL_UP))
