"""What a user should know before training on a source, in words."""

from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.data.rows import SplitName
from gpt2_lightning.data.token_text import unsuited_vocabulary
from gpt2_lightning.inspection.findings import Findings, SplitFigures

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
