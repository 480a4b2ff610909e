"""Tokens to blocks of inputs and targets: packed, or one row padded."""

from typing import Literal, Protocol

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
#   attention_mask  1 where a token stands, 0 on padding; absent where there is no padding
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
        """Gather blocks; the index -1 gives a block in which every target is masked."""


class PackedBlocks:
    """Block i holds inputs ``d[iT : iT+T]`` and targets ``d[iT+1 : iT+T+1]`` of the run ``d``.

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
