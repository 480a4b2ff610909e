"""A source's tokens: how the tokenizer fits, lengths, how blocks are filled, the first block."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from gpt2_lightning.data.articles import SplitName
from gpt2_lightning.data.batches import IGNORED
from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.data.token_store import TokenStore
from gpt2_lightning.data.token_text import CUT_CHARACTER, whole_characters
from gpt2_lightning.data.tokenizer import pieces_of_characters
from gpt2_lightning.inspect.rows import CleaningLoss


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a split's cleaned text.

    Attributes:
        tokens: Tokens of the text, ends of texts aside.
        ends_of_text: End-of-text tokens beside them, the leading one included.
        tokens_per_word: Tokens to a word (``str.split``) of the cleaned text; None for text whose
            script has no spaces between words.
        tokens_per_character: Tokens to a character of the cleaned text, white space included.
        used: Different ids that occur.
        size: Ids of the tokenizer.
        pieces_of_characters: Share of the tokens that hold no whole character, but a part of its
            bytes.
        unknown: Share of the tokens that stand for what the vocabulary lacks.
    """

    tokens: int
    ends_of_text: int
    tokens_per_word: float | None
    tokens_per_character: float | None
    used: int
    size: int
    pieces_of_characters: float
    unknown: float


def measure_vocabulary(
    store: TokenStore, tokenizer: PreTrainedTokenizerBase, cleaned: CleaningLoss
) -> Vocabulary:
    """Count a split's tokens, by id.

    Args:
        store: The split's tokens.
        tokenizer: Which made them.
        cleaned: The split's text after cleaning.
    """
    counts = np.zeros(len(tokenizer), np.int64)
    for piece in store.each_piece():
        counts += np.bincount(piece, minlength=len(tokenizer))
    used = np.flatnonzero(counts)
    ends = store.manifest.units + 1 if store.closing else 0
    tokens = store.manifest.tokens - ends
    of_text = counts.copy()
    of_text[int(tokenizer.eos_token_id)] -= ends
    unknown = tokenizer.unk_token_id
    return Vocabulary(
        tokens=tokens,
        ends_of_text=ends,
        tokens_per_word=tokens / cleaned.text_words if cleaned.has_words else None,
        tokens_per_character=tokens / cleaned.text_characters if cleaned.text_characters else None,
        used=len(used),
        size=len(tokenizer),
        pieces_of_characters=pieces_of_characters(tokenizer, of_text),
        # GPT-2's is its end-of-text: bytes leave nothing unknown
        unknown=float(counts[unknown]) / max(tokens, 1)
        if unknown is not None and unknown != tokenizer.eos_token_id
        else 0.0,
    )


@dataclass(frozen=True)
class Bin:
    """Units of ``low`` to ``high`` tokens, both included."""

    low: int
    high: int
    units: int


@dataclass(frozen=True)
class Lengths:
    """The distribution of lengths, in tokens.

    Attributes:
        units: Articles or rows.
        shortest: Tokens.
        median: Tokens; the lower one of the two in the middle.
        mean: Tokens.
        percentile_95: Tokens that 95 % of the units do not exceed.
        longest: Tokens.
        bins: The histogram; the longest of a bin are powers of two, and half-way between them, so
            that what a block of so many tokens holds stands below what it cuts.
    """

    units: int
    shortest: int
    median: int
    mean: float
    percentile_95: int
    longest: int
    bins: list[Bin]


def measure_lengths(pieces: Iterable[npt.NDArray[np.int64]]) -> tuple[Lengths, Counter[int]]:
    """Count how often each length occurs; memory grows with the different lengths alone.

    Args:
        pieces: The lengths of all units, a piece at a time.

    Returns:
        The distribution, and the units of each length.
    """
    counts: Counter[int] = Counter()
    for piece in pieces:
        tokens, units = np.unique(piece, return_counts=True)
        counts.update(dict(zip(tokens.tolist(), units.tolist(), strict=True)))
    ordered = np.array(sorted(counts), np.int64)
    units_of = np.array([counts[length] for length in ordered.tolist()], np.int64)
    total = int(units_of.sum())
    below = np.cumsum(units_of)

    def at(share: float) -> int:
        return int(ordered[np.searchsorted(below, share * total)])

    bins = [
        Bin(below_it + 1, high, int(units_of[(ordered > below_it) & (ordered <= high)].sum()))
        for below_it, high in pairwise(_edges(int(ordered[0]), int(ordered[-1])))
    ]
    lengths = Lengths(
        units=total,
        shortest=int(ordered[0]),
        median=at(0.5),
        mean=float((ordered * units_of).sum() / total),
        percentile_95=at(0.95),
        longest=int(ordered[-1]),
        bins=bins,
    )
    return lengths, counts


def edges() -> Iterator[int]:
    """Yield -1, 0, 1, 2, 3, 4, 6, 8, 12, 16, 24 and so on."""
    yield from (-1, 0, 1, 2, 3)
    power = 4
    while True:
        yield power
        yield power + power // 2
        power *= 2


def _edges(shortest: int, longest: int) -> list[int]:
    """Return the longest of each bin that some lengths need, after the longest below them."""
    found: list[int] = []
    for edge in edges():
        if edge < shortest:
            found = [edge]
        else:
            found.append(edge)
        if edge >= longest:
            return found
    raise AssertionError("edges never end")


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
