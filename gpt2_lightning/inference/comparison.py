"""Two models on the same text: is one really better?"""

from dataclasses import dataclass

import numpy as np

from gpt2_lightning.errors import UsageError
from gpt2_lightning.inference.bootstrap import Interval, Resamples
from gpt2_lightning.inference.card import bits_per_byte
from gpt2_lightning.inference.scoring import Score


@dataclass(frozen=True)
class Difference:
    """Bits per byte of a first model less those of a second; below 0 the first is better.

    Attributes:
        bits_per_byte: On the whole text.
        interval: Its 95 % interval over articles, the same ones drawn for both models.
        articles: Articles of the text.
        better: On how many of them the first model needs fewer bits.
        worse: On how many it needs more.
    """

    bits_per_byte: float
    interval: Interval
    articles: int
    better: int
    worse: int

    def verdict(self, first: str, second: str) -> str:
        """Say in a sentence what follows."""
        low, high = self.interval
        if low <= 0 <= high:
            return (
                f"{first} and {second} cannot be told apart by these {self.articles} articles: "
                "the interval holds 0"
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
        raise UsageError("--against: the text has one article; the comparison needs several.")
    return Difference(
        bits_per_byte=float(bits_per_byte(first.nats.sum() - second.nats.sum(), bytes_.sum())),
        interval=ends,
        articles=len(bytes_),
        better=int((first.nats < second.nats).sum()),
        worse=int((first.nats > second.nats).sum()),
    )
