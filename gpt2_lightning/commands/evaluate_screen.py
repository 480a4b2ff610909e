"""What of an evaluation comes onto the screen: a bar, cards, samples' quality, differences."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gpt2_lightning.inference.card import Card, as_lines
from gpt2_lightning.inference.comparison import Difference
from gpt2_lightning.inference.drawn_samples import DrawnSamples
from gpt2_lightning.inference.reference import CAUSES, Finding

FEW_ARTICLES = 10  # below this, draws with replacement say little


class EvaluateScreen:
    """The screen, on which one process of several speaks for all.

    Attributes:
        shown: Whether this is the one.
    """

    def __init__(self, *, shown: bool) -> None:
        self.shown = shown
        self._console = Console(quiet=not shown)

    @contextmanager
    def progress(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """Show a bar, moved by how many more tokens were scored, of how many in all."""
        columns = TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn()
        console = Console(stderr=True)
        bar = Progress(*columns, console=console, transient=True, disable=not self.shown)
        with bar:
            task = bar.add_task(f"Scoring with {name}", total=None)
            yield lambda tokens, total: bar.update(task, advance=tokens, total=total)

    def card(self, card: Card) -> None:
        """Print a card."""
        for label, value in as_lines(card):
            self._row(label, value)
        self._say("")

    def finding(self, finding: Finding) -> None:
        """Print a published figure beside ours."""
        self._say(str(finding))

    def causes(self) -> None:
        """Say why figures usually differ."""
        for line in ("Usual causes:", *(f"- {cause}" for cause in CAUSES)):
            self._say(line)

    def samples(self, drawn: DrawnSamples) -> None:
        """Print the quality of samples."""
        quality = drawn.quality
        length = f"{drawn.count} of at most {drawn.max_new_tokens} tokens"
        self._row("samples", f"{length}; {drawn.sampling}")
        pairs, triples = _share(quality.distinct_2), _share(quality.distinct_3)
        self._row("distinct n-grams", f"{pairs} of 2, {triples} of 3")
        self._row("repeated 4-grams", _share(quality.repeated_4))
        self._row("ended", f"{_share(quality.ended)} by themselves")
        copy = quality.longest_copy
        self._row(
            "longest copy",
            "- (no training split in this source)"
            if copy is None
            else f"{copy} tokens stand one after another in the training split",
        )

    def difference(self, difference: Difference, first: str, second: str) -> None:
        """Print which of two models is better."""
        low, high = difference.interval
        self._say(
            f"difference in bits per byte: {difference.bits_per_byte:+.4f} "
            f"(95 % of resampled articles: {low:+.4f} to {high:+.4f})"
        )
        self._say(difference.verdict(first, second))
        if difference.articles < FEW_ARTICLES:
            self._say(
                f"{difference.articles} articles are few, and the interval is likely to be too "
                "narrow. --data.source names more text."
            )

    def _row(self, label: str, value: str) -> None:
        self._say(f"{label:18}{value}")

    def _say(self, text: str) -> None:
        # as it is: a path may hold what rich takes for markup
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
