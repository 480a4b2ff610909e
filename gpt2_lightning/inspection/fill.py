"""How a split fills its blocks."""

from collections import Counter
from dataclasses import dataclass

from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.data.rows import SplitName


@dataclass(frozen=True)
class Fill:
    """What stands in the blocks of one epoch.

    Attributes:
        blocks: Blocks.
        positions: Positions of all blocks: blocks times the block's size.
        used: Positions that carry a token of the text, or an end of one.
        cut_off: Tokens that stand in no block, as their row is longer.
        tokens: Tokens of the split.
        targets: Positions with a target; at the others it is masked.
    """

    blocks: int
    positions: int
    used: int
    cut_off: int
    tokens: int
    targets: int

    @property
    def share_used(self) -> float:
        """Share of the positions that carry a token."""
        return self.used / self.positions

    @property
    def share_padded(self) -> float:
        """Share of the positions that carry padding."""
        return 1 - self.share_used

    @property
    def share_cut_off(self) -> float:
        """Share of the split's tokens that no block has."""
        return self.cut_off / self.tokens

    @property
    def share_masked(self) -> float:
        """Share of the positions without a target."""
        return 1 - self.targets / self.positions


def measure_fill(data: WikiTextDataModule, split: SplitName, lengths: Counter[int]) -> Fill:
    """Count what the blocks of a split hold.

    Args:
        data: Set up.
        split: Which.
        lengths: How many of its units have so many tokens.
    """
    blocks = data.split_blocks(split)
    targets = int(blocks.target_counts.sum())
    tokens = data.stores[split].manifest.tokens
    match data.blocks:
        case "pack":
            used = targets  # inputs: each has the next token for its target
            cut_off = 0
        case "pad":
            used = sum(min(length, data.block_size) * n for length, n in lengths.items())
            cut_off = tokens - used
    return Fill(
        blocks=len(blocks),
        positions=len(blocks) * data.block_size,
        used=used,
        cut_off=cut_off,
        tokens=tokens,
        targets=targets,
    )
