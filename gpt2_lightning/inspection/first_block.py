"""The first block of a split, as the model gets it."""

from dataclasses import dataclass

import numpy as np

from gpt2_lightning.data.blocks import IGNORED
from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.data.rows import SplitName


@dataclass(frozen=True)
class FirstBlock:
    """A block's inputs and targets, each of so many entries as a block has positions.

    Attributes:
        input_ids: What the model reads.
        targets: What it is to say next at each position; -100 where nothing counts.
        attention_mask: 1 where a token stands, 0 on padding.
        inputs: The inputs as text, one by one.
        wanted: The targets as text, one by one; None where nothing counts.
        text: The inputs that are no padding, as one text.
        in_step: Whether every target is the next position's input.
    """

    input_ids: list[int]
    targets: list[int]
    attention_mask: list[int]
    inputs: list[str]
    wanted: list[str | None]
    text: str
    in_step: bool


def first_block(data: WikiTextDataModule, split: SplitName) -> FirstBlock:
    """Gather the first block of a split, in the split's own order, and decode it.

    Args:
        data: Set up.
        split: Which.
    """
    batch = data.split_blocks(split).batch(np.array([0]))
    inputs, targets = batch["input_ids"][0], batch["targets"][0]
    counts = targets != IGNORED
    # packed blocks need no mask, as nothing after the text is attended to by what counts
    mask = batch["attention_mask"][0] if "attention_mask" in batch else counts.long()
    tokenizer = data.tokenizer
    follows = (targets[:-1] == inputs[1:]) | ~counts[:-1]
    return FirstBlock(
        input_ids=inputs.tolist(),
        targets=targets.tolist(),
        attention_mask=mask.tolist(),
        inputs=[str(tokenizer.decode([id_])) for id_ in inputs.tolist()],
        wanted=[
            None if id_ == IGNORED else str(tokenizer.decode([id_])) for id_ in targets.tolist()
        ],
        text=str(tokenizer.decode(inputs[mask.bool()].tolist())),
        in_step=bool(follows.all()),
    )
