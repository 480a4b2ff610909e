"""Cards of ``evaluate``, read back from its JSON."""

import math
from pathlib import Path
from typing import Any

from gpt2_lightning.errors import UsageError
from gpt2_lightning.untrusted import read_json

FIGURES = {
    "token_perplexity": "token perplexity",
    "word_perplexity": "word perplexity",
    "byte_perplexity": "byte perplexity",
    "bits_per_byte": "bits per byte",
}
WORDS = {
    "source",
    "split",
    "sha256",
    "reading",
    "cleaning",
    "protocol",
    "first_token",
    "words_rule",
    "dtype",
    "comparable",
}
COUNTS = {"parameters", "context", "tokens", "tokens_predicted", "words", "bytes"}


def read_cards(file: Path, parameters: int, *, flag: str = "--card") -> list[dict[str, Any]]:
    """Read the cards of a model.

    Args:
        file: What ``evaluate --output`` wrote: a card, or those of ``--reference``.
        parameters: Of the model, tied ones counted once: a card of another size is of another.
        flag: Which named the file, for messages.

    Raises:
        UsageError: If it cannot be read, is no such file, or is of another model.
    """
    try:
        document = read_json(file)
    except FileNotFoundError:
        raise UsageError(
            f"{flag} {file}: there is no such file. `evaluate --output card.json` writes one."
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{flag} {file}: it cannot be read as JSON ({error}).") from error
    found: Any = [document]
    if isinstance(document, dict) and isinstance(document.get("reference"), list):
        found = [row.get("card") for row in document["reference"] if isinstance(row, dict)]
    if not found or not all(_is_card(card) for card in found):
        raise UsageError(
            f"{flag} {file}: it holds no card. Give a file that `evaluate --output` wrote."
        )
    for card in found:
        if card["parameters"] != parameters:
            raise UsageError(
                f"{flag} {file}: it is of a model with {card['parameters']:,} parameters, and this "
                f"one has {parameters:,}. Evaluate the model that is exported."
            )
    return list(found)


def _is_card(card: Any) -> bool:
    return (
        isinstance(card, dict)
        and all(isinstance(card.get(name), str) for name in WORDS)
        and all(type(card.get(name)) is int for name in COUNTS)
        and all(card.get(name) is None or _is_figure(card[name]) for name in FIGURES)
        and (card.get("stride") is None or type(card["stride"]) is int)
        and (card.get("intervals") is None or _are_intervals(card["intervals"]))
        and all(isinstance(card.get(name), str | None) for name in ("subset", "text", "revision"))
    )


def _are_intervals(intervals: Any) -> bool:
    return isinstance(intervals, dict) and all(
        ends is None or (isinstance(ends, list) and len(ends) == 2 and all(map(_is_figure, ends)))
        for ends in intervals.values()
    )


def _is_figure(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
