"""The first block of a split, as the model gets it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from gpt2_lightning.data.blocks import IGNORED
from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.data.rows import SplitName
from gpt2_lightning.data.token_text import CUT_CHARACTER, whole_characters


@dataclass(frozen=True)
class FirstBlock:
    """A block's inputs and targets, each of so many entries as a block has positions.

    Attributes:
        input_ids: What the model reads.
        targets: What it is to say next at each position; -100 where nothing counts.
        attention_mask: 1 where a token stands, 0 on padding.
        inputs: The inputs as text, one by one; a part of a character is shown as that character
            and which part of it.
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
    said = targets.where(counts, int(tokenizer.eos_token_id)).tolist()
    wanted = _texts(tokenizer, said, inputs[:1].tolist())
    return FirstBlock(
        input_ids=inputs.tolist(),
        targets=targets.tolist(),
        attention_mask=mask.tolist(),
        inputs=_texts(tokenizer, inputs.tolist()),
        wanted=[
            text if counted else None for text, counted in zip(wanted, counts.tolist(), strict=True)
        ],
        text=data.decode(inputs[mask.bool()].tolist()).strip(CUT_CHARACTER),
        in_step=bool(follows.all()),
    )


def _texts(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], after: Sequence[int] = ()
) -> list[str]:
    """Return the text of each id; one that is a part of a character says of which."""
    texts: list[str] = []
    for text, tokens in whole_characters(tokenizer, ids, after=after):
        texts += (
            [text]
            if tokens == 1
            else [f"{text} ({part}/{tokens})" for part in range(1, tokens + 1)]
        )
    return texts
