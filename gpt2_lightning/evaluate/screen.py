"""Loads and scores models on one text, and prints the results of `evaluate`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.data.token_store import cache_tokenizer
from gpt2_lightning.data.tokenizer import cache_folder, tokenizer_files
from gpt2_lightning.errors import UsageError
from gpt2_lightning.evaluate.card import Card, as_lines, percent
from gpt2_lightning.evaluate.compare import CAUSES, Difference, Finding
from gpt2_lightning.evaluate.evaluation import evaluate, rows_of
from gpt2_lightning.evaluate.protocol import EvaluatedSplit, EvaluatedText, Protocol
from gpt2_lightning.evaluate.quality import DrawnSamples
from gpt2_lightning.evaluate.scoring import Processes, Score
from gpt2_lightning.evaluate.text import ScoredText
from gpt2_lightning.generate.text_model import TextModel, load_model
from gpt2_lightning.model.gpt2 import DtypeName, place

FEW_ARTICLES = 10  # below this, a bootstrap interval is unreliable


class EvaluateScreen:
    """The output, printed by one process.

    Attributes:
        shown: Whether this process prints.
    """

    def __init__(self, *, shown: bool) -> None:
        self.shown = shown
        self._console = Console(quiet=not shown)

    @contextmanager
    def progress(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """Show a progress bar; yield a function of the further tokens scored and the total."""
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
        """Print a published figure and ours."""
        self._say(str(finding))

    def causes(self) -> None:
        """Print the usual causes of a difference."""
        for line in ("Usual causes:", *(f"- {cause}" for cause in CAUSES)):
            self._say(line)

    def samples(self, drawn: DrawnSamples) -> None:
        """Print the quality of samples."""
        quality = drawn.quality
        length = f"{drawn.count} of at most {drawn.max_new_tokens} tokens"
        self._row("samples", f"{length}; {drawn.sampling}")
        pairs, triples = percent(quality.distinct_2), percent(quality.distinct_3)
        self._row("distinct n-grams", f"{pairs} of 2, {triples} of 3")
        self._row("repeated 4-grams", percent(quality.repeated_4))
        self._row("ended", f"{percent(quality.ended)} with an end-of-text")
        copy = quality.longest_copy
        self._row(
            "longest copy",
            "- (no training split in this source)"
            if copy is None
            else f"{copy} consecutive tokens of the training split",
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
                f"With only {difference.articles} articles, the interval is probably too narrow. "
                "Give more text with --data.source."
            )

    def _row(self, label: str, value: str) -> None:
        self._say(f"{label:18}{value}")

    def _say(self, text: str) -> None:
        # without markup, which a path may contain by chance
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)


@dataclass(frozen=True)
class Scorer:
    """Loads models, and scores them on one split of one text.

    Attributes:
        data: The text.
        split: Of its source.
        dtype: Type of the weights.
        device: auto, cpu, cuda, cuda:1, mps.
        batch_size: Windows at a time.
        processes: The processes that share the work.
        screen: Prints the progress.
        opened: The datamodules so far, one for each model; they share one source.
    """

    data: EvaluatedText
    split: EvaluatedSplit
    dtype: DtypeName
    device: str
    batch_size: int
    processes: Processes
    screen: EvaluateScreen
    opened: list[WikiTextDataModule] = field(default_factory=list)

    def load(self, name: str, revision: str | None = None, *, flag: str = "--model") -> TextModel:
        """Load a model onto the device, in its type.

        Raises:
            UsageError: If it does not exist, or the device is not available.
        """
        loaded = load_model(name, revision, flag=flag)
        place(loaded.model, self.device, self.dtype)
        return loaded

    def datamodule(self, loaded: TextModel) -> WikiTextDataModule:
        """Return a datamodule of the text with the model's own tokenizer."""
        files = tokenizer_files(loaded.tokenizer)
        folder = cache_tokenizer(files, cache_folder(self.data.cache_dir))
        data = WikiTextDataModule(**self.data.given(), tokenizer=str(folder))
        if self.opened:
            data.share_source(self.opened[-1])
        self.opened.append(data)
        return data

    def check_comparable(self, loaded: TextModel, name: str) -> None:
        """Raise UsageError before the scoring if cleaning loses text or there is one article."""
        data = self.datamodule(loaded)
        if not data.cleaner.lossless:
            raise loses_text(name, data.cleaner.name)
        rows = iter(rows_of(data, self.split))
        if next(rows, None) is not None and not any(row.begins for row in rows):
            raise UsageError(
                "--against: the text is one article, and an interval needs several. "
                "--data.documents line makes each line of a text file an article; --data.source or "
                "--split chooses other text."
            )

    def score(
        self, loaded: TextModel, name: str, protocol: Protocol
    ) -> tuple[Card, Score, ScoredText]:
        """Score a model.

        Raises:
            UsageError: If model, text and protocol do not fit together.
        """
        with self.screen.progress(name) as advance:
            return evaluate(
                loaded,
                name,
                self.datamodule(loaded),
                self.split,
                protocol,
                dtype=self.dtype,
                batch_size=self.batch_size,
                processes=self.processes,
                advance=advance,
            )


def loses_text(name: str, cleaning: str) -> UsageError:
    """Return the error for a comparison by bits per byte if text is lost."""
    return UsageError(
        f"--against: bits per byte of {name} on this text are not defined, since its tokenizer, or "
        f"--data.cleaning {cleaning}, loses text. Compare models with byte-level tokenizers, with "
        "--data.cleaning none."
    )
