"""A source's tokens: the vocabulary's fit, lengths, how blocks are filled, the first block."""

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
        tokens: Tokens of the text, without end-of-texts.
        ends_of_text: End-of-text tokens, the leading one included.
        tokens_per_word: Tokens per word (``str.split``) of the cleaned text; None for scripts
            without spaces between words.
        tokens_per_character: Tokens per character of the cleaned text, white space included.
        used: Number of distinct ids that occur.
        size: Number of the tokenizer's ids.
        pieces_of_characters: Share of the tokens that are a part of a character's bytes.
        unknown: Share of unknown tokens.
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
        tokenizer: Their tokenizer.
        cleaned: Counts of the split's text after cleaning.
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
        # GPT-2's is its end-of-text: with bytes, nothing is unknown
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
        bins: The histogram; the bins end at powers of two and half-way between them, so that
            lengths that fit into a block are separate from those that are cut.
    """

    units: int
    shortest: int
    median: int
    mean: float
    percentile_95: int
    longest: int
    bins: list[Bin]


def measure_lengths(pieces: Iterable[npt.NDArray[np.int64]]) -> tuple[Lengths, Counter[int]]:
    """Count how often each length occurs; memory grows only with the number of distinct lengths.

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
    """Return the upper edges of the bins for some lengths, after the edge below them."""
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
    """The contents of the blocks of one epoch.

    Attributes:
        blocks: Blocks.
        positions: Positions of all blocks: blocks times the block's size.
        used: Positions with a token of the text, or an end-of-text.
        cut_off: Tokens in no block, as their row is longer than a block.
        tokens: Tokens of the split.
        targets: Positions whose target is not masked.
    """

    blocks: int
    positions: int
    used: int
    cut_off: int
    tokens: int
    targets: int

    @property
    def share_used(self) -> float:
        """Share of the positions with a token."""
        return self.used / self.positions

    @property
    def share_padded(self) -> float:
        """Share of the positions with padding."""
        return 1 - self.share_used

    @property
    def share_cut_off(self) -> float:
        """Share of the split's tokens that are in no block."""
        return self.cut_off / self.tokens

    @property
    def share_masked(self) -> float:
        """Share of the positions without a target."""
        return 1 - self.targets / self.positions


def measure_fill(data: WikiTextDataModule, split: SplitName, lengths: Counter[int]) -> Fill:
    """Count the contents of a split's blocks.

    Args:
        data: The datamodule, after `setup`.
        split: The split.
        lengths: Number of its units by their length in tokens.
    """
    blocks = data.split_blocks(split)
    targets = blocks.targets
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
    """A block's inputs and targets, with an entry for each position.

    Attributes:
        input_ids: Ids of the inputs.
        targets: Ids to predict at each position; -100 if masked.
        attention_mask: 1 for a token, 0 for padding.
        inputs: The inputs as text; a part of a character is shown as the character and its part.
        wanted: The targets as text; None if masked.
        text: The inputs without padding, as one text.
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
    """Return the first block of a split, in the split's own order, decoded.

    Args:
        data: The datamodule, after `setup`.
        split: The split.
    """
    batch = data.split_blocks(split).batch(np.array([0]))
    inputs, targets = batch["input_ids"][0], batch["targets"][0]
    counts = targets != IGNORED
    # packed blocks have no mask, as no unmasked target depends on the padding after the text
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
    """Return the text of each id; a part of a character is followed by its number."""
    texts: list[str] = []
    for text, tokens in whole_characters(tokenizer, ids, after=after):
        texts += (
            [text]
            if tokens == 1
            else [f"{text} ({part}/{tokens})" for part in range(1, tokens + 1)]
        )
    return texts
