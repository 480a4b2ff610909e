"""All figures of a source by split; what is wrong, and what would fix it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from gpt2_lightning.data.articles import SplitName
from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.data.tokenizer import unsuited_vocabulary
from gpt2_lightning.evaluate.card import percent
from gpt2_lightning.evaluate.ngrams import Overlap, measure_overlap
from gpt2_lightning.inspect.rows import (
    CleaningLoss,
    CleaningMeter,
    Duplicates,
    OriginalText,
    RowCounter,
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

MOST_CUT_OFF = 0.1  # share of the tokens
MOST_UNKNOWN = 0.001  # share of the tokens
FEWEST_LINES = 20  # of an article whose lines may be separate texts
LONGEST_LINE = 280  # characters on average: a tweet
MOST_OVERLAP = 0.05  # share of the n-grams


@dataclass(frozen=True)
class SplitFigures:
    """The figures of one split.

    Attributes:
        original: Counts of the source's text.
        cleaning: What is lost by cleaning.
        vocabulary: Its tokens.
        lengths: Lengths of its articles (`pack`) or rows (`pad`).
        fill: How its blocks are filled.
        duplicates: Repeated articles.
        overlap: Its overlap with the training split; None for the training split, or without one.
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
    """The figures of a source.

    Attributes:
        splits: The figures of every inspected split.
        missing: Splits that the source does not have, and that cannot be held out of another.
        held_out_from_train: Splits that the source does not have, held out of the training text.
    """

    splits: dict[SplitName, SplitFigures]
    missing: list[SplitName]
    held_out_from_train: list[SplitName]


def inspect_source(
    cleanings: list[WikiTextDataModule],
    *,
    split: SplitName | None = None,
    ngram: int,
    samples: int,
    working: Callable[[str], AbstractContextManager[Any]] = nullcontext,
) -> list[Findings]:
    """Measure a source with the token stores and blocks that `fit` would use.

    The stores are written unless they are cached; no model is needed. Memory does not grow with
    the text, except for eight bytes an article, and the blocks of `cleanings`.

    Args:
        cleanings: Datamodules of the source with one cleaner each, before `setup`; they share one
            reading.
        split: Inspect only this one, and its overlap with the training split; None inspects all.
        ngram: Tokens of an n-gram, for the overlap with the training split.
        samples: Rows to show before and after cleaning.
        working: Returns a context manager that shows progress.

    Returns:
        The findings with each cleaner.

    Raises:
        UsageError: If the source cannot be read, or has no such split.
    """
    first = cleanings[0]
    there = first.splits([])
    looked_at = [name for name in SPLITS if name in there] if split is None else [split]
    # the training split, too, with which held-out splits are compared
    needed = {*looked_at, "train"} & there.keys() | set(looked_at)
    for data in cleanings:
        data.share_source(first)
        data.prepare([name for name in SPLITS if name in needed])
        data.setup("fit")
    counters = {name: RowCounter() for name in first.stores}
    meters = {
        name: [CleaningMeter(data.cleaner, samples) for data in cleanings] for name in looked_at
    }
    with working("Measuring the text"):
        for name, row in first.each_row(counters):
            counters[name].add(row)
            for meter in meters.get(name, ()):
                meter.add(row.text)
        for counter in counters.values():
            counter.end_article()
        training = counters["train"].digests if "train" in counters else None
        duplicates = {
            name: find_duplicates(
                there[name], counters[name].digests, None if name == "train" else training
            )
            for name in looked_at
        }
        return [
            Findings(
                splits={
                    name: _figures(
                        data,
                        name,
                        counters[name].text,
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


def advice(findings: Findings, data: WikiTextDataModule) -> list[str]:
    """Return what is wrong, with what would fix it.

    Args:
        findings: The findings.
        data: Their datamodule.
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
            ", so fit would refuse it, and the overlap of the others with the training text is not "
            "known."
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
            f"The tokenizer loses content of the {name} split: {lost}. The model can neither learn "
            "nor generate it."
        )
    if vocabulary.unknown > MOST_UNKNOWN:
        found.append(
            f"{percent(vocabulary.unknown)} of the {name} split's tokens are the unknown token: "
            "their text is lost."
        )
    return found


def _of_blocks(name: SplitName, figures: SplitFigures, data: WikiTextDataModule) -> list[str]:
    found = []
    if figures.fill.share_cut_off > MOST_CUT_OFF:
        found.append(
            f"{percent(figures.fill.share_cut_off)} of the {name} split's tokens are cut off. "
            "--data.blocks pack keeps all of them; a larger --data.block_size keeps more."
        )
    if data.cleaner.name == "detokenize" and not data.stores[name].manifest.marks:
        found.append(
            "--data.cleaning detokenize undoes WikiText's marks (such as @-@), and there are none "
            "here: it may join separate words. Try --data.cleaning none."
        )
    return found


def _of_lines(name: SplitName, figures: SplitFigures, data: WikiTextDataModule) -> list[str]:
    """Return advice if short lines without paragraphs may be separate texts."""
    text = figures.original
    many = text.rows >= FEWEST_LINES and text.rows >= FEWEST_LINES * text.articles
    short = text.characters <= LONGEST_LINE * text.rows
    if data.documents == "line" or not many or not short or text.blank_rows > text.rows / 100:
        return []
    return [
        f"The {name} split has {text.rows:,} short lines and hardly any blank ones. If each is a "
        "separate text (a tweet, a joke), --data.documents line puts an end-of-text after each."
    ]


def _of_marks(name: SplitName, figures: SplitFigures, data: WikiTextDataModule) -> list[str]:
    return [
        f"--data.cleaning {data.cleaner.name} turns the mark {mark} into the word {word!r}, which "
        f"the model will learn to write: {count:,} times in the {name} split. Use a text without "
        "such marks (wikitext-2-raw-v1 instead of wikitext-2-v1), or --data.cleaning none."
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
            f"{figures.original.articles:,} articles are also in the training split: its "
            "perplexity will be too low."
        )
    overlap = figures.overlap
    if overlap is not None and overlap.share is not None and overlap.share > MOST_OVERLAP:
        found.append(
            f"{percent(overlap.share)} of the {name} split's {overlap.n}-grams are also in the "
            "training split: its perplexity will be too low."
        )
    return found


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
