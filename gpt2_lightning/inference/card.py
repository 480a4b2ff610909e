"""The card of a score: every number with all that is needed to read it."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2_lightning.inference.bootstrap import Interval, Resamples
from gpt2_lightning.inference.published import ProtocolName
from gpt2_lightning.inference.scoring import Score
from gpt2_lightning.storage import write_text

Units = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Card:
    """What was scored, how, and what came of it; the JSON has these keys.

    Attributes:
        model: As it was asked for.
        revision: Commit on the Hub, where it came from there.
        parameters: Tied ones counted once.
        source: ``--data.source``.
        subset: ``--data.subset``.
        split: Of the source.
        text: Name of the text, where it is an official one.
        sha256: Of the original text.
        reading: How rows became text.
        cleaning: Name of the cleaner.
        protocol: How the text was scored.
        context: Tokens of a window.
        stride: Tokens by which the window moves on; null where windows are not moved.
        first_token: What is done about tokens without context.
        articles: Articles, or documents; null where the text is one.
        tokens: Tokens of the text.
        tokens_predicted: Tokens that were predicted.
        words: Words of the original text, by ``words_rule``.
        words_rule: Python's ``str.split``, or the harness' ``re.split``.
        words_by_split: Words by ``str.split``.
        words_by_harness: Words by lm-evaluation-harness' rule.
        bytes: UTF-8 bytes of the original text.
        nats: Summed negative log-likelihood of the predicted tokens.
        token_perplexity: Per predicted token.
        lost: Why word and byte figures of the original text cannot be given; null where they can.
        no_words: Why word figures alone say nothing; null where they do.
        word_perplexity: Per word of the original text; null where text is lost on the way, it has
            no words, or the figure is beyond numbers.
        byte_perplexity: Per byte of the original text; null where text is lost on the way, or the
            figure is beyond numbers.
        bits_per_byte: Of the original text; null in the same cases.
        intervals: Ends of the 95 % interval of each figure, over articles; null for one text.
        dtype: Of the weights.
        device: Where it ran.
        processes: That shared the windows.
        batch_size: Windows at a time.
        versions: Of the libraries.
        seconds: Scoring alone.
        tokens_per_second: Predicted tokens, likewise.
        comparable: With what, or why not.
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
    lost: str | None
    token_perplexity: float
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
    no_words: str | None = None  # cards of earlier versions have none


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
    """Write a document whole or not at all."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(file, text + "\n")


def as_lines(card: Card) -> list[tuple[str, str]]:
    """Return what is printed of a card: labels and values, the figures last but one."""

    def figure(name: str, value: float | None) -> str:
        if value is None and name == "word_perplexity" and card.lost is None and card.no_words:
            return f"- ({card.no_words})"
        if value is None:
            is_lost = card.lost is not None and name != "token_perplexity"
            return f"- ({card.lost if is_lost else 'the figure is beyond numbers'})"
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
        ("token perplexity", figure("token_perplexity", card.token_perplexity)),
        ("word perplexity", figure("word_perplexity", card.word_perplexity)),
        ("byte perplexity", figure("byte_perplexity", card.byte_perplexity)),
        ("bits per byte", figure("bits_per_byte", card.bits_per_byte)),
        ("speed", f"{card.seconds:.1f} s, {card.tokens_per_second:,.0f} predicted tokens/s"),
        ("versions", ", ".join(f"{name} {version}" for name, version in card.versions.items())),
        ("", card.comparable),
    ]


def _other_words(card: Card) -> str:
    if card.words_rule != "str.split":
        return f" ({card.words_by_split:,} by str.split)"
    return f" ({card.words_by_harness:,} by lm-evaluation-harness' rule)"


def _short(value: float) -> str:
    return f"{value:,.2f}" if value >= 100 else f"{value:.4f}"


def as_dict(card: Card) -> dict[str, Any]:
    """Return a card as plain data."""
    return asdict(card)
