"""A card: the figures of an evaluation, their intervals, and how they were measured; its JSON."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt

from gpt2_lightning.errors import UsageError
from gpt2_lightning.evaluate.protocol import ProtocolName
from gpt2_lightning.evaluate.scoring import Score
from gpt2_lightning.model.metrics import group
from gpt2_lightning.storage import write_text
from gpt2_lightning.untrusted import read_json

RESAMPLES = 10_000  # of a text of up to so many articles; fewer of a longer one

FEWEST_RESAMPLES = 1_000

LEVEL = 0.95

FIGURES = {metric.name: metric.card for metric in group("") if metric.card}  # key -> label

Sums = npt.NDArray[np.float64]  # of one quantity, in every resample

Interval = tuple[float, float]


class Resamples:
    """Bootstrap: articles drawn with replacement, as many as there are, many times.

    The middle 95 % of a figure over all draws are its interval. All figures use the same draws, so
    differences are paired.

    Args:
        quantities: Terms of the figures by article, each of shape ``(articles,)``: nats and words,
            say.
        count: Number of draws; null is 10,000, and above 10,000 articles fewer, down to 1,000.
        seed: Of the draws.

    Reference:
        Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile
        intervals).
    """

    def __init__(
        self,
        quantities: Mapping[str, npt.NDArray[np.generic]],
        *,
        count: int | None = None,
        seed: int = 0,
    ) -> None:
        table = np.stack([np.asarray(one, np.float64) for one in quantities.values()], axis=1)
        articles = len(table)
        count = count or max(FEWEST_RESAMPLES, min(RESAMPLES, RESAMPLES**2 // max(articles, 1)))
        self.enough = articles > 1
        generator = np.random.default_rng(seed)
        sums = np.empty((count if self.enough else 0, len(quantities)))
        for draw in sums:  # one at a time: a corpus may have a million articles
            draw[:] = table[generator.integers(articles, size=articles)].sum(axis=0)
        self.sums = dict(zip(quantities, sums.T, strict=True))

    def interval(self, figure: Callable[..., Sums], *quantities: str) -> Interval | None:
        """Return the ends of a figure's interval.

        Args:
            figure: The figure as a function of sums, arrays of shape ``(draws,)``.
            quantities: Names of these sums.

        Returns:
            The ends; None if there are fewer than two articles, or the figure of a draw is not
            defined.
        """
        if not self.enough:
            return None
        tail = (1 - LEVEL) / 2
        with np.errstate(all="ignore"):  # a draw of empty articles has no figure
            found = figure(*(self.sums[name] for name in quantities))
            low, high = np.quantile(found, [tail, 1 - tail])
        return (float(low), float(high)) if np.isfinite([low, high]).all() else None


Units = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Card:
    """What was scored, how, and the results; the JSON has these keys.

    Attributes:
        model: Value of ``--model``.
        revision: Commit on the Hub; null for a local model.
        parameters: Tied ones counted once.
        source: ``--data.source``.
        subset: ``--data.subset``.
        split: Of the source.
        text: Name of the text, if it is an official one.
        sha256: Of the original text.
        reading: How rows became text.
        cleaning: Name of the cleaner.
        protocol: How the text was scored.
        context: Tokens of a window.
        stride: Tokens by which the window moves; null if windows do not slide.
        first_token: How tokens without context are treated.
        articles: Articles, or documents; null if the text is scored as one.
        tokens: Tokens of the text.
        tokens_predicted: Tokens that were predicted.
        words: Words of the original text, by ``words_rule``.
        words_rule: Python's ``str.split``, or the harness' ``re.split``.
        words_by_split: Words by ``str.split``.
        words_by_harness: Words by lm-evaluation-harness' rule.
        bytes: UTF-8 bytes of the original text.
        nats: Summed negative log-likelihood of the predicted tokens.
        token_perplexity: Per predicted token; null if it overflows.
        lost: Why figures per word and byte of the original text are not defined; null if they are.
        no_words: Why figures per word are not defined; null if they are.
        word_perplexity: Per word of the original text; null if text is lost, there are no words, or
            the figure overflows.
        byte_perplexity: Per byte of the original text; null if text is lost, or the figure
            overflows.
        bits_per_byte: Of the original text; null in the same cases.
        intervals: Ends of the 95 % interval of each figure, over articles; null for one text.
        dtype: Of the weights.
        device: Where it ran.
        processes: Number of processes.
        batch_size: Windows at a time.
        versions: Of the libraries.
        seconds: Of the scoring only.
        tokens_per_second: Predicted tokens per second of scoring.
        comparable: Comparable published figures, or why there are none.
    """

    model: str
    revision: str | None
    parameters: int
    source: str
    subset: str | None
    split: str
    text: str | None
    sha256: str
    reading: str
    cleaning: str
    protocol: ProtocolName
    context: int
    stride: int | None
    first_token: str
    articles: int | None
    tokens: int
    tokens_predicted: int
    words: int
    words_rule: str
    words_by_split: int
    words_by_harness: int
    bytes: int
    nats: float
    token_perplexity: float | None
    word_perplexity: float | None
    byte_perplexity: float | None
    bits_per_byte: float | None
    intervals: dict[str, Interval | None] | None
    dtype: str
    device: str
    processes: int
    batch_size: int
    versions: dict[str, str]
    seconds: float
    tokens_per_second: float
    comparable: str
    # cards of earlier versions have neither
    lost: str | None = None
    no_words: str | None = None


def figures(score: Score, *, tokens: Units, words: Units, bytes_: Units) -> dict[str, Any]:
    """Return the four figures and, for several articles, their intervals.

    Words and bytes are those of the whole original text. Where the first tokens of windows are not
    predicted, they are charged at the mean of the others: nats x tokens / tokens predicted.

    Args:
        score: Of the text.
        tokens: Tokens of every unit, shape ``(units,)``.
        words: Words of every unit, shape ``(units,)``.
        bytes_: Bytes of every unit, shape ``(units,)``.

    Reference:
        Charging what is not predicted: Megatron-LM's zero-shot evaluation scales its loss by the
        ratio of tokens in the same manner, https://github.com/NVIDIA/Megatron-LM.
    """
    whole = score.nats * (tokens.sum() / score.total_predicted)
    quantities = {
        "nats": score.nats,
        "predicted": score.predicted,
        "whole": whole,
        "words": words,
        "bytes": bytes_,
    }
    parts: dict[str, tuple[Callable[..., Any], str, str]] = {
        "token_perplexity": (_perplexity, "nats", "predicted"),
        "word_perplexity": (_perplexity, "whole", "words"),
        "byte_perplexity": (_perplexity, "whole", "bytes"),
        "bits_per_byte": (bits_per_byte, "whole", "bytes"),
    }
    found: dict[str, Any] = {}
    for name, (figure, above, below) in parts.items():
        with np.errstate(all="ignore"):  # a text without spaces has a word as long as itself
            value = float(figure(quantities[above].sum(), quantities[below].sum()))
        found[name] = value if math.isfinite(value) else None
    resamples = Resamples(quantities) if len(score.nats) > 1 else None
    found["intervals"] = resamples and {
        name: resamples.interval(*part) for name, part in parts.items()
    }
    return found


def _perplexity(nats: Any, count: Any) -> Any:
    return np.exp(nats / count)


def bits_per_byte(nats: Any, count: Any) -> Any:
    """Return nats / (ln 2 x bytes)."""
    return nats / (math.log(2) * count)


def write_json(document: dict[str, Any], file: Path) -> None:
    """Write a JSON file atomically."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(file, text + "\n")


def as_lines(card: Card) -> list[tuple[str, str]]:
    """Return the printed form of a card: labels and values."""

    def figure(name: str, value: float | None) -> str:
        if value is None and name == "word_perplexity" and card.lost is None and card.no_words:
            return f"- ({card.no_words})"
        if value is None:
            is_lost = card.lost is not None and name != "token_perplexity"
            return f"- ({card.lost if is_lost else 'the figure overflows'})"
        ends = (card.intervals or {}).get(name)
        sure = (
            f"   95 % of resampled articles: {_short(ends[0])} to {_short(ends[1])}" if ends else ""
        )
        return _short(value) + sure

    stride = "" if card.stride is None else f", stride {card.stride:,}"
    return [
        ("model", f"{card.model}{f' at {card.revision}' if card.revision else ''}"),
        ("", f"{card.parameters:,} parameters, {card.dtype}, {card.device}"),
        ("text", f"{card.source}{f' {card.subset}' if card.subset else ''}, {card.split} split"),
        ("", f"{f'{card.text}, ' if card.text else ''}sha256 {card.sha256}"),
        ("", f"{card.reading}; cleaning: {card.cleaning}"),
        ("protocol", f"{card.protocol}, context {card.context:,}{stride}"),
        ("first token", card.first_token),
        ("tokens", f"{card.tokens:,}, of which {card.tokens_predicted:,} predicted"),
        ("words", f"{card.words:,} by {card.words_rule}{_other_words(card)}"),
        ("bytes", f"{card.bytes:,}"),
        ("nats", f"{card.nats:,.2f}"),
        *((label, figure(name, getattr(card, name))) for name, label in FIGURES.items()),
        ("speed", f"{card.seconds:.1f} s, {card.tokens_per_second:,.0f} predicted tokens/s"),
        ("versions", ", ".join(f"{name} {version}" for name, version in card.versions.items())),
        ("", card.comparable),
    ]


def _other_words(card: Card) -> str:
    if card.words_rule != "str.split":
        return f" ({card.words_by_split:,} by str.split)"
    return f" ({card.words_by_harness:,} by lm-evaluation-harness' rule)"


def percent(share: float | None) -> str:
    """Return a share as percent, ``-`` if there is none."""
    return "-" if share is None else f"{100 * share:.1f} %"


def _short(value: float) -> str:
    return f"{value:,.2f}" if value >= 100 else f"{value:.4f}"


def read_cards(file: Path, parameters: int, *, flag: str = "--card") -> list[Card]:
    """Read the cards of a model.

    Args:
        file: The output of ``evaluate --output``: a card, or those of ``--reference``.
        parameters: Of the model, tied ones counted once, to detect a card of another model.
        flag: The flag that named the file, for messages.

    Raises:
        UsageError: If it cannot be read, is no card, or is of another model.
    """
    try:
        document = read_json(file)
    except FileNotFoundError:
        raise UsageError(
            f"{flag} {file}: there is no such file. `evaluate --output card.json` writes one."
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{flag} {file}: it cannot be read as JSON ({error}).") from error
    found: list[Any] = [document]
    if isinstance(document, dict) and isinstance(document.get("reference"), list):
        found = [row.get("card") for row in document["reference"] if isinstance(row, dict)]
    try:
        cards = [_as_card(one) for one in found]
        if not cards:
            raise ValueError("its list is empty")
    except ValueError as error:
        raise UsageError(
            f"{flag} {file}: it is not a card ({error}). Give a file that `evaluate --output` "
            "wrote."
        ) from error
    for card in cards:
        if card.parameters != parameters:
            raise UsageError(
                f"{flag} {file}: it is the card of a model with {card.parameters:,} parameters; "
                f"this one has {parameters:,}. Evaluate the model that is exported."
            )
    return cards


def _as_card(document: Any) -> Card:
    """Read a card from its JSON; unknown keys (of a later version, or samples) are ignored.

    Raises:
        ValueError: If a value is missing, or of the wrong type.
    """
    if not isinstance(document, dict):
        raise ValueError("it is not an object")
    types = get_type_hints(Card)
    values = {name: document[name] for name in types if name in document}
    for name, value in values.items():
        if not _has_type(value, types[name]):
            raise ValueError(f"its {name} is of the wrong type")
    if intervals := values.get("intervals"):
        values["intervals"] = {name: ends and tuple(ends) for name, ends in intervals.items()}
    try:
        return Card(**values)
    except TypeError as error:
        raise ValueError(str(error)) from error


def _has_type(value: Any, wanted: Any) -> bool:
    """Return whether a JSON value has the type of a card's field."""
    kind, inner = get_origin(wanted), get_args(wanted)
    if kind in (Union, UnionType):
        return any(_has_type(value, one) for one in inner)
    if kind is Literal:
        return value in inner
    if kind is dict:
        return isinstance(value, dict) and all(_has_type(one, inner[1]) for one in value.values())
    if kind is tuple:
        fits = isinstance(value, list) and len(value) == len(inner)
        return fits and all(map(_has_type, value, inner))
    if wanted is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is wanted
