"""What `evaluate` does with each model, the text being the same, and what it shows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.data.token_store import cache_tokenizer
from gpt2_lightning.data.tokenizer import cache_folder, tokenizer_files
from gpt2_lightning.errors import UsageError
from gpt2_lightning.evaluate.card import Card, as_lines
from gpt2_lightning.evaluate.compare import CAUSES, Difference, Finding
from gpt2_lightning.evaluate.evaluation import evaluate, rows_of
from gpt2_lightning.evaluate.protocol import EvaluatedSplit, EvaluatedText, Protocol
from gpt2_lightning.evaluate.quality import DrawnSamples
from gpt2_lightning.evaluate.scoring import Processes, Score
from gpt2_lightning.evaluate.text import ScoredText
from gpt2_lightning.generate.text_model import TextModel, load_model
from gpt2_lightning.model.gpt2 import DtypeName, place

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


@dataclass(frozen=True)
class Scorer:
    """Loads models, and scores them on one split of one text.

    Attributes:
        data: The text.
        split: Of its source.
        dtype: Type of the weights.
        device: auto, cpu, cuda, cuda:1, mps.
        batch_size: Windows at a time.
        processes: Those that share the work.
        screen: Where the progress is seen.
        opened: The text as each model so far has read it; its source is opened once for all.
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
            UsageError: If there is none of this name, or the device is not there.
        """
        loaded = load_model(name, revision, flag=flag)
        place(loaded.model, self.device, self.dtype)
        return loaded

    def datamodule(self, loaded: TextModel) -> WikiTextDataModule:
        """Return the text with the model's own tokenizer, which is read from a folder."""
        files = tokenizer_files(loaded.tokenizer)
        folder = cache_tokenizer(files, cache_folder(self.data.cache_dir))
        data = WikiTextDataModule(**self.data.given(), tokenizer=str(folder))
        if self.opened:
            data.share_source(self.opened[-1])
        self.opened.append(data)
        return data

    def check_comparable(self, loaded: TextModel, name: str) -> None:
        """See, before anything is scored, whether a difference could be told.

        Raises:
            UsageError: If the cleaning loses text, or the text is one article.
        """
        data = self.datamodule(loaded)
        if not data.cleaner.lossless:
            raise loses_text(name, data.cleaner.name)
        rows = iter(rows_of(data, self.split))
        if next(rows, None) is not None and not any(row.begins for row in rows):
            raise UsageError(
                "--against: the text is one article, and how sure a difference is can be told over "
                "several. --data.documents line takes each line of a text file for one; "
                "--data.source or --split names other text."
            )

    def score(
        self, loaded: TextModel, name: str, protocol: Protocol
    ) -> tuple[Card, Score, ScoredText]:
        """Score a model.

        Raises:
            UsageError: If model, text and protocol do not go together.
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
    """Refuse to compare figures of a text that is not all there."""
    return UsageError(
        f"--against: bits per byte say nothing of {name} on this text, since its tokenizer, or "
        f"--data.cleaning {cleaning}, loses text. Compare models whose tokenizers are byte-level, "
        "on text as it is."
    )
