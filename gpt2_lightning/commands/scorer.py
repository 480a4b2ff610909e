"""Scorer: what `evaluate` does with each model, the text being the same."""

from dataclasses import dataclass, field

from gpt2_lightning.commands.evaluate_screen import EvaluateScreen
from gpt2_lightning.data.cache import cache_folder
from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.data.scored_text import ScoredText
from gpt2_lightning.data.token_store import store_name
from gpt2_lightning.data.tokenizer import save_tokenizer_files, tokenizer_files
from gpt2_lightning.inference.card import Card
from gpt2_lightning.inference.checkpoint import load_model
from gpt2_lightning.inference.device import DtypeName, place
from gpt2_lightning.inference.evaluated_text import EvaluatedText
from gpt2_lightning.inference.evaluation import evaluate
from gpt2_lightning.inference.processes import Processes
from gpt2_lightning.inference.protocol import EvaluatedSplit, Protocol
from gpt2_lightning.inference.scoring import Score
from gpt2_lightning.inference.text_model import TextModel


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
        folder = cache_folder(self.data.cache_dir) / "tokenizers" / store_name(files)
        save_tokenizer_files(files, folder)
        data = WikiTextDataModule(**self.data.given(), tokenizer=str(folder))
        if self.opened:
            data.share_source(self.opened[-1])
        self.opened.append(data)
        return data

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
