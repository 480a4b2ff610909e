"""All figures of a source, split by split; what is amiss, and what would mend it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from gpt2_lightning.data.articles import SplitName
from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.data.tokenizer import unsuited_vocabulary
from gpt2_lightning.evaluate.ngrams import Overlap, measure_overlap
from gpt2_lightning.inspect.rows import (
    CleaningLoss,
    CleaningMeter,
    Duplicates,
    OriginalText,
    Reader,
    find_duplicates,
)
from gpt2_lightning.inspect.tokens import (
    Fill,
    FirstBlock,
    Lengths,
    Vocabulary,
    first_block,
    measure_fill,
    measure_lengths,
    measure_vocabulary,
)

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
        held_out_from_train: Splits that are taken out of the training text, as the source does not
            have them.
    """

    splits: dict[SplitName, SplitFigures]
    missing: list[SplitName]
    held_out_from_train: list[SplitName]


def find(
    cleanings: list[WikiTextDataModule],
    *,
    split: SplitName | None = None,
    ngram: int,
    samples: int,
    working: Callable[[str], AbstractContextManager[Any]] = nullcontext,
) -> list[Findings]:
    """Measure a source on the token stores and blocks that `fit` would use.

    The stores are written where they are not yet there; no model is needed. What is held in
    memory does not grow with the text, but for eight bytes an article and what `cleanings` hold
    of their blocks.

    Args:
        cleanings: The source under one cleaner or several, which share one reading; not set up.
        split: Look at this one alone, and at what of it stands in the training split; None looks
            at all that there are.
        ngram: Tokens of an n-gram, for the overlap with the training split.
        samples: Rows to show before and after cleaning.
        working: Makes a context, in which something is done that takes its time.

    Returns:
        The figures under each cleaner.

    Raises:
        UsageError: If the source cannot be read, or has no such split.
    """
    first = cleanings[0]
    there = first.splits([])
    looked_at = [name for name in SPLITS if name in there] if split is None else [split]
    # the training split, too, since what is held out is compared with it
    needed = {*looked_at, "train"} & there.keys() | set(looked_at)
    for data in cleanings:
        data.share_source(first)
        data.prepare([name for name in SPLITS if name in needed])
        data.setup("fit")
    readers = {name: Reader() for name in first.stores}
    meters = {
        name: [CleaningMeter(data.cleaner, samples) for data in cleanings] for name in looked_at
    }
    with working("Measuring the text"):
        for name, row in first.each_row(readers):
            readers[name].add(row)
            for meter in meters.get(name, ()):
                meter.add(row.text)
        for reader in readers.values():
            reader.end_article()
        training = readers["train"].digests if "train" in readers else None
        duplicates = {
            name: find_duplicates(
                there[name], readers[name].digests, None if name == "train" else training
            )
            for name in looked_at
        }
        return [
            Findings(
                splits={
                    name: _figures(
                        data,
                        name,
                        readers[name].text,
                        meters[name][at].loss,
                        duplicates[name],
                        ngram,
                    )
                    for name in looked_at
                },
                missing=[name for name in SPLITS if name not in there],
                held_out_from_train=first.held_out_from_train,
            )
            for at, data in enumerate(cleanings)
        ]


def _figures(
    data: WikiTextDataModule,
    name: SplitName,
    original: OriginalText,
    cleaning: CleaningLoss,
    duplicates: Duplicates,
    ngram: int,
) -> SplitFigures:
    store = data.stores[name]
    lengths, counts = measure_lengths(store.unit_lengths())
    overlap = None
    if name != "train" and "train" in data.stores:
        overlap = measure_overlap(store, data.stores["train"], data.tokenizer, n=ngram)
    return SplitFigures(
        original=original,
        cleaning=cleaning,
        vocabulary=measure_vocabulary(store, data.tokenizer, cleaning),
        lengths=lengths,
        fill=measure_fill(data, name, counts),
        duplicates=duplicates,
        overlap=overlap,
        first_block=first_block(data, name),
    )


MOST_CUT_OFF = 0.1  # share of the tokens

MOST_UNKNOWN = 0.001  # share of the tokens

FEWEST_LINES = 20  # of an article, before its lines may be texts of their own

LONGEST_LINE = 280  # characters on average: a tweet

MOST_OVERLAP = 0.05  # share of the n-grams


def advice(findings: Findings, data: WikiTextDataModule) -> list[str]:
    """Return what is amiss, with what would mend it.

    Args:
        findings: What was measured.
        data: Of which.
    """
    first = next(iter(findings.splits))
    figures = findings.splits[first]
    found = _missing(findings)
    lost = ", ".join(data.stores[first].manifest.lost or [])
    found += _of_vocabulary(first, figures, trained=data.tokenizer_name is None, lost=lost)
    found += _of_marks(first, figures, data)
    found += _of_blocks(first, figures, data)
    found += _of_lines(first, figures, data)
    for name, figures in findings.splits.items():
        found += _of_duplicates(name, figures)
    return found


def _missing(findings: Findings) -> list[str]:
    if not findings.missing:
        return []
    return [
        f"This source has no {' and no '.join(findings.missing)} split"
        + (
            ", so fit would refuse it, and how much of the others stands in the training text is "
            "not known."
            if "train" in findings.missing
            else "."
        )
    ]


def _of_vocabulary(
    name: SplitName, figures: SplitFigures, *, trained: bool, lost: str
) -> list[str]:
    vocabulary = figures.vocabulary
    found = []
    per_character = vocabulary.tokens_per_character or 0.0
    note = unsuited_vocabulary(vocabulary.pieces_of_characters, per_character, trained=trained)
    if note is not None:
        found.append(note)
    if lost:
        found.append(
            f"The tokenizer does not give back all of the {name} split: {lost} are lost for good, "
            "in training and in what the model writes."
        )
    if vocabulary.unknown > MOST_UNKNOWN:
        found.append(
            f"{_percent(vocabulary.unknown)} of the {name} split's tokens are unknown to the "
            "vocabulary: what they stood for is lost."
        )
    return found


def _of_blocks(name: SplitName, figures: SplitFigures, data: WikiTextDataModule) -> list[str]:
    found = []
    if figures.fill.share_cut_off > MOST_CUT_OFF:
        found.append(
            f"{_percent(figures.fill.share_cut_off)} of the {name} split's tokens are cut off and "
            "never seen. --data.blocks pack keeps them all; a larger --data.block_size keeps more."
        )
    if data.cleaner.name == "detokenize" and not data.stores[name].manifest.marks:
        found.append(
            "--data.cleaning detokenize undoes WikiText's marks (such as @-@), of which there are "
            "none here: it may join what belongs apart. Try none."
        )
    return found


def _of_lines(name: SplitName, figures: SplitFigures, data: WikiTextDataModule) -> list[str]:
    """Tell of short lines without paragraphs between them, which may be texts of their own."""
    text = figures.original
    many = text.rows >= FEWEST_LINES and text.rows >= FEWEST_LINES * text.articles
    short = text.characters <= LONGEST_LINE * text.rows
    if data.documents == "line" or not many or not short or text.blank_rows > text.rows / 100:
        return []
    return [
        f"The {name} split has {text.rows:,} short lines and hardly a blank one. If each is a text "
        "of its own (a tweet, a joke), --data.documents line puts an end-of-text after each."
    ]


def _of_marks(name: SplitName, figures: SplitFigures, data: WikiTextDataModule) -> list[str]:
    return [
        f"--data.cleaning {data.cleaner.name} makes the word {word!r} of the mark {mark}, which "
        f"stands {count:,} times in the {name} split: the model will learn to write it. Take a "
        "text without such marks (wikitext-2-raw-v1 in the place of wikitext-2-v1), or "
        "--data.cleaning none."
        for mark, (word, count) in figures.cleaning.marks_made_words.items()
    ]


def _of_duplicates(name: SplitName, figures: SplitFigures) -> list[str]:
    found = []
    if figures.duplicates.articles:
        found.append(
            f"{figures.duplicates.articles:,} of the {name} split's "
            f"{figures.original.articles:,} articles repeat an earlier one."
        )
    if figures.duplicates.in_training:
        found.append(
            f"{figures.duplicates.in_training:,} of the {name} split's "
            f"{figures.original.articles:,} articles stand in the training split too: its "
            "perplexity will flatter the model."
        )
    overlap = figures.overlap
    if overlap is not None and overlap.share is not None and overlap.share > MOST_OVERLAP:
        found.append(
            f"{_percent(overlap.share)} of the {name} split's {overlap.n}-grams stand in the "
            "training split: its perplexity will flatter the model."
        )
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def as_document(findings: Findings, data: WikiTextDataModule) -> dict[str, Any]:
    """Return all figures, counts and shares, under the names that docs/inspecting.md defines."""
    return {
        "source": data.source,
        "subset": data.subset,
        "documents": data.documents,
        "validation_source": data.validation_source,
        "test_source": data.test_source,
        "cleaning": data.cleaner.name,
        "tokenizer": data.tokenizer_name,
        "blocks": data.blocks,
        "block_size": data.block_size,
        "missing": findings.missing,
        "taken": findings.held_out_from_train,
        "warnings": advice(findings, data),
        "splits": {name: _as_dict(figures) for name, figures in findings.splits.items()},
    }


def _as_dict(figures: SplitFigures) -> dict[str, Any]:
    found = asdict(figures)
    cleaning, fill, overlap = figures.cleaning, figures.fill, figures.overlap
    found["cleaning"] |= {
        "share_of_characters_lost": cleaning.share_of_characters_lost,
        "share_of_punctuation_lost": cleaning.share_of_punctuation_lost,
        "share_of_numbers_lost": cleaning.share_of_numbers_lost,
    }
    found["fill"] |= {
        "share_used": fill.share_used,
        "share_padded": fill.share_padded,
        "share_cut_off": fill.share_cut_off,
        "share_masked": fill.share_masked,
    }
    if overlap is not None:
        found["overlap"]["share"] = overlap.share
    return found
