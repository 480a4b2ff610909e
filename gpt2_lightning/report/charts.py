"""Curves, laid out for the page's SVG, and a passage shaded by its surprisal."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpt2_lightning.run_folder import Run

COLOURS = 6  # --c0 to --c5 of the page, of which each colour scheme has its own

# In the SVG's units; a phone shows about as many pixels.
WIDTH, HEIGHT = 360, 209
LEFT, RIGHT, TOP, BOTTOM = 62, 350, 10, 174  # of the area that is drawn in

# Bits at which a darker shade begins. A token that the model gave 1/2 costs one bit, 1/256 eight.
SHADES = (0, 1, 2, 4, 6, 8, 10, 13)

Points = Sequence[tuple[int, float]]  # optimizer steps and values


@dataclass(frozen=True)
class Line:
    """One curve of a chart.

    Attributes:
        label: What the legend calls it.
        points: Steps and values.
        number: Which of the curves: decides its colour, and from the seventh on its dashes.
        faint: Whether it stands behind the others: many points, each of one batch.
        dots: Whether every point is marked.
    """

    label: str
    points: Points
    number: int
    faint: bool = False
    dots: bool = False

    @property
    def look(self) -> str:
        """Its classes in the page's style."""
        dashed = self.number >= COLOURS
        return f"c{self.number % COLOURS}{' faint' * self.faint}{' dashed' * dashed}"


@dataclass(frozen=True)
class Chart:
    """A chart, ready for the page.

    Attributes:
        title: What is drawn, with its unit.
        lines: Its curves, each with its polyline and its dots in the SVG's units; a dot has the
            text that is shown where it is pointed at.
        x_ticks: Places and labels of the steps.
        y_ticks: Of the values.
    """

    title: str
    lines: list[tuple[Line, str, list[tuple[float, float, str]]]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]

    @property
    def spoken(self) -> str:
        """The chart in words, for those who do not see it."""
        ends = [
            f"{line.label} from {line.points[0][1]:.4g} at step {line.points[0][0]} to "
            f"{line.points[-1][1]:.4g} at step {line.points[-1][0]}"
            for line, _, _ in self.lines
        ]
        return f"{self.title}: {'; '.join(ends)}"


def draw(title: str, lines: list[Line], *, from_zero: bool = False) -> Chart | None:
    """Lay curves out over the optimizer step.

    Args:
        title: What is drawn, with its unit.
        lines: The curves; those without points are left out.
        from_zero: Whether the values' axis begins at 0, for what is never less.

    Returns:
        The chart, or None where no line has a point.
    """
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    last = max(step for line in lines for step, _ in line.points) or 1
    values = [value for line in lines for _, value in line.points]
    low, high = (0.0 if from_zero else min(values)), max(values)
    margin = (high - low) / 20 or abs(high) / 20 or 1.0
    low, high = low - margin * (not from_zero), high + margin

    def x(step: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * step / last, 1)

    def y(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low), 1)

    laid_out = []
    for line in lines:
        places = [(x(step), y(value)) for step, value in line.points]
        marked = line.points if line.dots or len(line.points) == 1 else []
        dots = [
            (x(step), y(value), f"{line.label}: {_number(value)} at step {step:,}")
            for step, value in marked
        ]
        laid_out.append(
            (line, " ".join(f"{across},{down}" for across, down in _thin(places)), dots)
        )
    return Chart(
        title,
        laid_out,
        [(x(step), _number(step)) for step in ticks(0, last, whole=True)],
        [(y(value), _number(value)) for value in ticks(low, high)],
    )


def _number(value: float) -> str:
    return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.0f}"


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Return round numbers in a range, six at most.

    Args:
        low: Its lower end.
        high: Its upper end, above it.
        whole: Whether they are integers.
    """
    least = (high - low) / 5 * (1 - 1e-9)  # a hair less than 5 parts is 5 parts
    if whole:
        least = max(least, 1.0)
    power = 10.0 ** math.floor(math.log10(least))
    distances = (power * it for it in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10))
    distance = next(it for it in distances if it >= least and not (whole and it % 1))
    first, last = math.ceil(low / distance - 1e-9), math.floor(high / distance + 1e-9)
    return [number * distance for number in range(first, last + 1)]


def _thin(places: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Keep, of the points in half a unit, the first, the lowest, the highest and the last."""
    kept = []
    for _, column in itertools.groupby(places, key=lambda place: round(2 * place[0])):
        few = list(column)
        heights = [down for _, down in few]
        keep = {0, heights.index(min(heights)), heights.index(max(heights)), len(few) - 1}
        kept += [few[number] for number in sorted(keep)]
    return kept


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
