"""Tokens -> (input, target) blocks -> micro-batches: order, ranks, fill-up, target counts."""

from collections.abc import Iterator
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpt2_lightning.data.token_store import TokenStore

BlockName = Literal["pack", "pad"]

IGNORED = -100  # the target that no loss of torch or transformers counts

FILL_UP = -1  # the index of a block in which every target is masked

# One micro-batch, every tensor of shape (blocks, block_size):
#   input_ids       token ids
#   targets         the id to predict at each position, -100 where there is none
#   attention_mask  1 for a token, 0 for padding; absent if there is no padding
Batch = dict[str, Tensor]


class Blocks(Protocol):
    """A split cut into blocks.

    Attributes:
        target_counts: Targets of every block, shape ``(blocks,)``.
    """

    target_counts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of blocks."""

    def batch(self, indices: npt.NDArray[np.int64]) -> Batch:
        """Gather blocks; the index -1 is a block in which every target is masked."""


class PackedBlocks:
    """Block i holds inputs ``d[iT : iT+T]`` and targets ``d[iT+1 : iT+T+1]`` of the ids ``d``.

    Every token but the leading end-of-text is predicted exactly once. The last block is filled
    up with end-of-text and masked there. Attention crosses articles, as in GPT-2's own training.
    """

    def __init__(self, store: TokenStore, block_size: int, end_of_text: int) -> None:
        self.ids = store.ids
        self.block_size = block_size
        self.end_of_text = end_of_text
        targets = max(len(self.ids) - 1, 0)
        starts = np.arange(0, targets, block_size)
        self.target_counts = np.minimum(block_size, targets - starts)

    def __len__(self) -> int:
        return len(self.target_counts)

    def batch(self, indices: npt.NDArray[np.int64]) -> Batch:
        """Gather blocks."""
        runs = np.full((len(indices), self.block_size + 1), self.end_of_text, np.int64)
        targets = np.full((len(indices), self.block_size), IGNORED, np.int64)
        for row, index in enumerate(indices):
            if index == FILL_UP:
                continue
            start, count = index * self.block_size, self.target_counts[index]
            runs[row, : count + 1] = self.ids[start : start + count + 1]
            targets[row, :count] = runs[row, 1 : count + 1]
        return {
            "input_ids": torch.from_numpy(runs[:, :-1].copy()),
            "targets": torch.from_numpy(targets),
        }


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
        self.lengths = np.minimum(np.diff(self.starts), block_size)
        self.target_counts = np.maximum(self.lengths - 1, 0)

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, indices: npt.NDArray[np.int64]) -> Batch:
        """Gather blocks."""
        inputs = np.full((len(indices), self.block_size), self.pad, np.int64)
        targets = np.full_like(inputs, IGNORED)
        mask = np.zeros_like(inputs)
        for row, index in enumerate(indices):
            if index == FILL_UP:
                mask[row] = 1  # an attention over nothing would give NaN
                continue
            start, length = self.starts[index], self.lengths[index]
            inputs[row, :length] = self.ids[start : start + length]
            targets[row, : length - 1] = inputs[row, 1:length]
            mask[row, :length] = 1
        return {
            "input_ids": torch.from_numpy(inputs),
            "targets": torch.from_numpy(targets),
            "attention_mask": torch.from_numpy(mask),
        }


# A `Batch` of one rank, in training, with two numbers more:
#   step_targets  targets of the whole optimizer step, over ranks and accumulation
#   ends_step     whether the optimizer steps after this micro-batch
#   tokens_seen   targets of all ranks up to and with this micro-batch, since training began
#   position      micro-batches of this rank before this one, since training began
TrainBatch = dict[str, Tensor | int]


class TrainBatches:
    """The training micro-batches of one rank: a pure function of seed, epoch and position.

    An epoch's blocks are shuffled, filled up with masked ones to whole global batches, and each
    global batch is distributed over micro-batches and ranks; so ranks take equal steps, and the
    global batches are the same for any number of processes.

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
    ) -> None:
        self.blocks = blocks
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
        order = self._order()
        counts = np.append(self.blocks.target_counts, 0)[order]  # index -1: no targets
        while self.position < len(self):
            step, micro = divmod(self.position, self.shape[0])
            in_step = min(self.shape[0], max(self.num_batches - step * self.shape[0], 1))
            position = self.epoch * len(self) + self.position
            self.position += 1
            self.tokens_seen += int(counts[step, micro].sum())
            batch = self.blocks.batch(order[step, micro, self.rank])
            yield {
                **batch,
                "step_targets": int(counts[step, :in_step].sum()),
                "ends_step": micro + 1 == in_step,
                "tokens_seen": self.tokens_seen,
                "position": position,
            }
        self.position = 0

    def _order(self) -> npt.NDArray[np.int64]:
        """Return the epoch's block indices, shape (steps, accumulate, ranks, batch_size)."""
        order = np.full(self.steps * int(np.prod(self.shape)), FILL_UP)
        epoch = 0 if self.repeat else self.epoch
        order[: len(self.blocks)] = np.random.default_rng([self.seed, epoch]).permutation(
            len(self.blocks)
        )
        return order.reshape(self.steps, *self.shape)

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
        order = np.full(len(self) * self.world_size * self.batch_size, FILL_UP)
        order[: len(self.blocks)] = np.arange(len(self.blocks))
        for indices in order.reshape(len(self), self.world_size, self.batch_size)[:, self.rank]:
            yield self.blocks.batch(indices)
