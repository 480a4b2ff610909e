"""Compares two models on the same articles, and our figures with published ones."""

from dataclasses import dataclass

import numpy as np

from gpt2_lightning.errors import UsageError
from gpt2_lightning.evaluate.card import Card, Interval, Resamples, bits_per_byte
from gpt2_lightning.evaluate.protocol import PUBLISHED, Published
from gpt2_lightning.evaluate.scoring import Score
from gpt2_lightning.model.gpt2 import DtypeName

# Relative difference that another machine's arithmetic may cause, beyond the printed digits.
TOLERANCES: dict[DtypeName, float] = {"fp32": 0.001, "bf16": 0.005}
CAUSES = (
    "other weights than the published ones (a fine-tuned model under the same name)",
    "another tokenizer, or one that adds a token of its own to every text",
    "another context or stride than the figure's",
    "rows joined otherwise than with two newlines",
    "text that is not the official raw split: <unk> for rare words, cleaned or lower-cased",
)


@dataclass(frozen=True)
class Difference:
    """Bits per byte of a first model minus those of a second; below 0 the first is better.

    Attributes:
        bits_per_byte: On the whole text.
        interval: Its 95 % interval over articles, with the same draws for both models.
        articles: Number of articles.
        better: Number of articles on which the first model needs fewer bits.
        worse: Number of articles on which it needs more.
    """

    bits_per_byte: float
    interval: Interval
    articles: int
    better: int
    worse: int

    def verdict(self, first: str, second: str) -> str:
        """Return the conclusion in a sentence."""
        low, high = self.interval
        if low <= 0 <= high:
            return (
                f"{first} and {second} cannot be distinguished by these {self.articles} articles: "
                "the interval contains 0"
            )
        winner, loser = (first, second) if high < 0 else (second, first)
        count = self.better if high < 0 else self.worse
        return f"{winner} is better than {loser}, on {count} of {self.articles} articles"


def compare(first: Score, second: Score, bytes_: np.ndarray) -> Difference:
    """Compare two models' scores of the same articles.

    Args:
        first: Of the first model, by article.
        second: Of the second model.
        bytes_: Bytes of every article's original text, shape ``(articles,)``.

    Raises:
        UsageError: If there are fewer than two articles.
    """
    resamples = Resamples({"first": first.nats, "second": second.nats, "bytes": bytes_})
    ends = resamples.interval(
        lambda a, b, count: bits_per_byte(a - b, count), "first", "second", "bytes"
    )
    if ends is None:
        raise UsageError("--against: the text has one article, and an interval needs several.")
    return Difference(
        bits_per_byte=float(bits_per_byte(first.nats.sum() - second.nats.sum(), bytes_.sum())),
        interval=ends,
        articles=len(bytes_),
        better=int((first.nats < second.nats).sum()),
        worse=int((first.nats > second.nats).sum()),
    )


@dataclass(frozen=True)
class Finding:
    """A published figure and ours.

    Attributes:
        published: The published figure.
        measured: Ours.
        agrees: Whether they agree within the printed digits and `TOLERANCES`.
    """

    published: Published
    measured: float
    agrees: bool

    def __str__(self) -> str:
        wanted = self.published
        off = 100 * (self.measured / wanted.value - 1)
        found = f"{self.measured:.{wanted.digits}f}"
        verdict = (
            "this pipeline measures what the literature measures"
            if self.agrees
            else f"{off:+.2f} % off"
        )
        stride = "" if wanted.stride is None else f", stride {wanted.stride}"
        return (
            f"{wanted.figure.replace('_', ' ')}, {wanted.protocol}, context {wanted.context}"
            f"{stride}: expected {wanted.value:.{wanted.digits}f}, got {found}: {verdict} "
            f"({wanted.source})"
        )


def published_figures(model: str) -> list[Published]:
    """Return the published figures of a model, by its Hub id or the name of its folder.

    Raises:
        UsageError: If there are none.
    """
    name = model.rstrip("/").rpartition("/")[2]
    if found := [row for row in PUBLISHED if row.model.rpartition("/")[2] == name]:
        return found
    names = ", ".join(dict.fromkeys(row.model for row in PUBLISHED))
    raise UsageError(
        f"--reference: no published figure of {model} is known. There are figures of {names}; a "
        "folder is recognized by the name of such a model."
    )


def check(published: Published, card: Card, dtype: DtypeName) -> Finding:
    """Compare a figure of ours with the published one.

    Raises:
        UsageError: If the text is another one, or was cleaned.
    """
    if card.text != published.text or card.cleaning != "none":
        raise UsageError(
            f"--data.source {card.source}: the published figures are of {published.text} without "
            f"cleaning; this is {card.text or 'another text'} (sha256 {card.sha256[:12]}...), "
            f"cleaning {card.cleaning}. Use --data.source Salesforce/wikitext --data.subset "
            "wikitext-2-raw-v1, or a folder with its parquet files, and --data.cleaning none."
        )
    measured = float(getattr(card, published.figure))
    margin = 0.5 * 10**-published.digits + TOLERANCES[dtype] * published.value
    return Finding(published, measured, abs(measured - published.value) <= margin)
