"""A passage token by token, each with how much it surprised the model."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

from gpt2_lightning.report.run import Run

# Bits at which a darker shade begins. A token that the model gave 1/2 costs one bit, 1/256 eight.
SHADES = (0, 1, 2, 4, 6, 8, 10, 13)


@dataclass(frozen=True)
class Token:
    """A token of the passage, or several that only together make up whole characters.

    Attributes:
        text: What it says; the end of a line is shown as an arrow before it.
        bits: Its surprisal: -log2 of the probability that the model gave it.
        shade: Which of `SHADES` it is shown in.
    """

    text: str
    bits: float
    shade: int


@dataclass(frozen=True)
class HeatMap:
    """A passage under one model.

    Attributes:
        label: Which model.
        tokens: The passage.
        total: Bits of the whole passage.
    """

    label: str
    tokens: list[Token]
    total: float


def heat_map(label: str, passage: dict[str, Any]) -> HeatMap:
    """Shade a line of ``surprisal.jsonl``.

    Args:
        label: Which model it was.
        passage: ``tokens``, as text, and the ``nats`` of each.
    """
    tokens = [
        Token(text.replace("\n", "↵\n"), bits, shade_of(bits))
        for text, nats in zip(passage["tokens"], passage["nats"], strict=True)
        for bits in [nats / math.log(2)]
    ]
    return HeatMap(label, tokens, sum(token.bits for token in tokens))


def shade_of(bits: float) -> int:
    """Return the number of the shade for a surprisal in bits."""
    return max(sum(bits >= begin for begin in SHADES) - 1, 0)


def legend() -> list[tuple[int, str]]:
    """Return every shade with the bits it stands for."""
    spans = itertools.pairwise(SHADES)
    return [
        *((shade, f"{low}–{high}") for shade, (low, high) in enumerate(spans)),
        (len(SHADES) - 1, f"{SHADES[-1]} or more"),
    ]


def before_and_after(run: Run) -> list[HeatMap]:
    """Return the passage before training and at best, or as far as it was measured."""
    steps = run.first_and_best(run.passages)
    return [heat_map(label, run.passages[step]) for step, label in steps.items()]


def of_each(runs: list[Run], names: list[str]) -> list[HeatMap]:
    """Return the passage at best of each run, if all were measured on the same."""
    maps = []
    for run, name in zip(runs, names, strict=True):
        steps = list(run.first_and_best(run.passages).items())
        if not steps:
            return []
        step, label = steps[-1]
        maps.append(heat_map(f"{name}, {label}", run.passages[step]))
    return maps if len({"".join(token.text for token in it.tokens) for it in maps}) == 1 else []
