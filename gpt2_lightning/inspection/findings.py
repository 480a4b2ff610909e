"""A source, split by split, as `fit` would use it."""

from array import array
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.data.rows import Rows, SplitName
from gpt2_lightning.inspection.cleaning_loss import CleaningLoss, measure_cleaning
from gpt2_lightning.inspection.duplicates import Duplicates, find_duplicates
from gpt2_lightning.inspection.fill import Fill, measure_fill
from gpt2_lightning.inspection.first_block import FirstBlock, first_block
from gpt2_lightning.inspection.lengths import Lengths, measure_lengths
from gpt2_lightning.inspection.original_text import OriginalText, Reader
from gpt2_lightning.inspection.overlap import Overlap, measure_overlap
from gpt2_lightning.inspection.pieces import unit_lengths
from gpt2_lightning.inspection.vocabulary import Vocabulary, measure_vocabulary

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class SplitFigures:
    """All that is measured of one split.

    Attributes:
        original: The text as the source has it.
        cleaning: What cleaning takes from it.
        vocabulary: Its tokens.
        lengths: How long its articles (`pack`) or rows (`pad`) are.
        fill: How it fills its blocks.
        duplicates: Articles that stand more than once.
        overlap: What of it stands in the training split; None where there is none, or it is the
            training split.
        first_block: Its first block.
    """

    original: OriginalText
    cleaning: CleaningLoss
    vocabulary: Vocabulary
    lengths: Lengths
    fill: Fill
    duplicates: Duplicates
    overlap: Overlap | None
    first_block: FirstBlock


@dataclass(frozen=True)
class Findings:
    """What is in a source.

    Attributes:
        splits: The figures of every split that was looked at.
        missing: Splits that the source does not have, and that cannot be taken out of another.
        taken: Splits that are taken out of the training text, as the source does not have them.
    """

    splits: dict[SplitName, SplitFigures]
    missing: list[SplitName]
    taken: list[SplitName]


def find(
    data: WikiTextDataModule,
    *,
    split: SplitName | None = None,
    ngram: int,
    samples: int,
    working: Callable[[str], AbstractContextManager[Any]] = nullcontext,
) -> Findings:
    """Measure a source on the token stores and blocks that `fit` would use.

    The stores are written where they are not yet there; no model is needed. What is held in
    memory does not grow with the text, but for eight bytes an article and what `data` itself holds
    of its blocks.

    Args:
        data: Not yet set up.
        split: Look at this one alone, and at what of it stands in the training split; None looks
            at all that there are.
        ngram: Tokens of an n-gram, for the overlap with the training split.
        samples: Rows to show before and after cleaning.
        working: Makes a context, in which something is done that takes its time.

    Raises:
        UsageError: If the source cannot be read, or has no such split.
    """
    there = data.splits([])
    looked_at = [name for name in SPLITS if name in there] if split is None else [split]
    # the training split, too, since what is held out is compared with it
    needed = {*looked_at, "train"} & there.keys() | set(looked_at)
    data.prepare([name for name in SPLITS if name in needed])
    data.setup("fit")
    digests: dict[SplitName, array[int]] = {}
    splits: dict[SplitName, SplitFigures] = {}
    for name in data.stores:
        reader = Reader()
        with working(f"Reading the {name} split"):
            if name not in looked_at:
                for _ in reader.watch(there[name]):
                    pass
            else:
                cleaning = measure_cleaning(reader.watch(there[name]), data.cleaner, samples)
                splits[name] = _figures(data, name, there[name], reader, cleaning, digests, ngram)
        digests[name] = reader.digests
    return Findings(
        splits=splits,
        missing=[name for name in SPLITS if name not in there],
        taken=[name for name in SPLITS if name in data.taken],
    )


def _figures(
    data: WikiTextDataModule,
    name: SplitName,
    rows: Rows,
    reader: Reader,
    cleaning: CleaningLoss,
    digests: "dict[SplitName, array[int]]",
    ngram: int,
) -> SplitFigures:
    store = data.stores[name]
    lengths, counts = measure_lengths(unit_lengths(store))
    overlap = None
    if name != "train" and "train" in data.stores:
        overlap = measure_overlap(store, data.stores["train"], data.tokenizer, n=ngram)
    return SplitFigures(
        original=reader.text,
        cleaning=cleaning,
        vocabulary=measure_vocabulary(store, data.tokenizer, cleaning),
        lengths=lengths,
        fill=measure_fill(data, name, counts),
        duplicates=find_duplicates(rows, reader.digests, digests.get("train")),
        overlap=overlap,
        first_block=first_block(data, name),
    )
