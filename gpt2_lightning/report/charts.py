"""Curves as SVG in the page's own colours, and a passage shaded by its surprisal."""

import io
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpt2_lightning.run_folder import Run

# Matplotlib knows no CSS: it draws in these colours, which then give way to the page's.
INK, GRID = "#010101", "#020202"

COLOURS = 6  # --c0 to --c5, of which each scheme has its own

WIDTH, HEIGHT = 5.0, 2.9  # inches of 72 units; a phone shows about as many pixels

POINTS = 12


# Bits at which a darker shade begins. A token that the model gave 1/2 costs one bit, 1/256 eight.
SHADES = (0, 1, 2, 4, 6, 8, 10, 13)


@dataclass(frozen=True)
class Line:
    """One curve of a chart.

    Attributes:
        label: What the legend calls it.
        points: Steps and values.
        colour: Its number among the page's colours.
        faint: Whether it stands behind the others: many points, each of one batch.
        dots: Whether every point is marked.
    """

    label: str
    points: Sequence[tuple[int, float]]
    colour: int
    faint: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart, ready for the page.

    Attributes:
        title: What is drawn, with its unit.
        svg: The drawing.
        lines: Its curves, for the legend.
    """

    title: str
    svg: str
    lines: list[Line]


def draw(name: str, title: str, lines: list[Line], *, from_zero: bool = False) -> Chart | None:
    """Draw curves over the optimizer step.

    Args:
        name: A word that no other chart of the page has.
        title: What is drawn, with its unit.
        lines: The curves; those without points are left out.
        from_zero: Whether the values' axis begins at 0, for what is never less.

    Returns:
        The chart, or None where no line has a point.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    lines = [line for line in lines if line.points]
    if not lines:
        return None
    # text stays text; the same chart has the same ids each time
    with matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": name,
            "font.size": POINTS,
            "text.usetex": False,
        }
    ):
        figure = Figure((WIDTH, HEIGHT))
        axes = figure.add_axes((0.17, 0.17, 0.8, 0.78))
        for line in lines:
            steps, values = zip(*line.points, strict=True)
            axes.plot(
                steps,
                values,
                color=_sentinel(line.colour),
                alpha=0.75 if line.faint else 1,
                linewidth=1.2 if line.faint else 1.8,
                linestyle="--" if line.colour >= COLOURS else "-",
                marker="o" if line.dots or len(steps) == 1 else None,
                markersize=4,
                clip_on=False,  # a clip path would be asked for by an url()
            )
        axes.set_xlim(left=0)
        if from_zero:
            highest = max(value for line in lines for _, value in line.points)
            axes.set_ylim(0, highest * 1.05 or 1)
        axes.set_xlabel("optimizer step", color=INK)
        axes.tick_params(colors=INK, length=0, pad=6)
        axes.grid(axis="y", color=GRID, linewidth=0.8, clip_on=False)
        axes.spines[:].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        plain = FuncFormatter(lambda value, _: f"{value:,.6g}" if value < 1e6 else f"{value:,.0f}")
        axes.xaxis.set_major_formatter(plain)
        axes.yaxis.set_major_formatter(plain)
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg")
    return Chart(title, _for_the_page(drawn.getvalue(), name, _spoken(title, lines)), lines)


def _sentinel(colour: int) -> str:
    return f"#{3 + colour % COLOURS:02x}0000"


def _spoken(title: str, lines: list[Line]) -> str:
    """Say a chart in words, for those who do not see it."""
    ends = [
        f"{line.label} from {line.points[0][1]:.4g} at step {line.points[0][0]} to "
        f"{line.points[-1][1]:.4g} at step {line.points[-1][0]}"
        for line in lines
    ]
    return f"{title}: {'; '.join(ends)}"


def _for_the_page(svg: str, name: str, spoken: str) -> str:
    """Take from Matplotlib's file what would reach outside the drawing."""
    from markupsafe import escape

    svg = svg[svg.index("<svg") :]
    for alien in (r"<metadata>.*?</metadata>", r"<defs>\s*<style.*?</defs>", r"<!--.*?-->"):
        svg = re.sub(alien, "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href")
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None
    head = f'<svg {view[0]} role="img" aria-label="{escape(spoken)}">'
    svg = head + svg[svg.index(">") + 1 :]
    svg = re.sub(r" font-family: [^;]*;", "", svg)
    svg = re.sub(r"\s+", " ", re.sub(r"<g/>", "", svg))
    asked_for = set(re.findall(r'href="#([^"]+)"', svg))
    svg = re.sub(
        r' id="([^"]+)"', lambda it: f' id="{name}-{it[1]}"' if it[1] in asked_for else "", svg
    )
    svg = svg.replace('href="#', f'href="#{name}-')
    svg = svg.replace(INK, "currentColor").replace(GRID, "var(--line)")
    for colour in range(COLOURS):
        svg = svg.replace(_sentinel(colour), f"var(--c{colour})")
    return svg


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
