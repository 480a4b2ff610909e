"""What came of a run: a short table on the screen at its end."""

from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from gpt2_lightning.callbacks.run_folder import run_folder
from gpt2_lightning.data.yardstick import xz_bits_per_byte
from gpt2_lightning.model.module import GPT2Module
from gpt2_lightning.report.tables import figure

COLUMNS = {
    "val/perplexity": "perplexity",
    "val/loss": "nats per token",
    "val/bits_per_byte": "bits per byte",
}


class Outcome(Callback):
    """Prints the validation numbers before training, at best and at last, and where the model is.

    Where the text is short enough, what xz needs for it stands beside them.
    """

    def __init__(self) -> None:
        self.before: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.last: dict[str, float] = {}

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the numbers before training, if they are the whole split's."""
        if trainer.num_sanity_val_steps == float("inf"):
            self.before = dict(cast(GPT2Module, pl_module).eval_results)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the numbers of this validation."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self.last = dict(cast(GPT2Module, pl_module).eval_results)
        if not self.best or self.last["val/loss"] < self.best["val/loss"]:
            self.best = self.last

    def state_dict(self) -> dict[str, Any]:
        """Keep the numbers for a run that goes on."""
        return {"before": self.before, "best": self.best, "last": self.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the numbers again."""
        self.before = state_dict["before"]
        self.best, self.last = state_dict["best"], state_dict["last"]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print it all."""
        if not trainer.is_global_zero:
            return
        console = Console()
        if table := self._table(cast(Any, trainer).datamodule):
            console.print(table)
        self._print_place(trainer, console)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Print where the model of an interrupted run is."""
        if trainer.is_global_zero and trainer.state.fn == "fit":
            self._print_place(trainer, Console())

    @staticmethod
    def _print_place(trainer: Trainer, console: Console) -> None:
        run = run_folder(trainer)
        if run is None or not (run / "hf").is_dir():
            return
        for line in (
            f"Best model: {run / 'hf'}",
            f'Use it:     python -m gpt2_lightning generate --model {run} --prompt "..."',
        ):
            console.print(line, soft_wrap=True, highlight=False)

    def _table(self, data: Any) -> Table | None:
        rows = {"before": self.before, "best": self.best, "last": self.last}
        if "val/bits_per_byte" in self.best:
            splits = data.stores["train"], data.stores["validation"]
            if (xz := xz_bits_per_byte(*splits, data.tokenizer)) is not None:
                rows["xz"] = {"val/bits_per_byte": xz}
        if not any(rows.values()):
            return None
        notes = []
        if "xz" in rows:
            notes.append("xz: a compressor that has seen the training text")
        if not data.cleaner.lossless:
            notes.append(
                f"of text that --data.cleaning {data.cleaner.name} has cut: not comparable with "
                "published figures"
            )
        table = Table(title="Validation", title_justify="left", caption="\n".join(notes) or None)
        table.add_column("")
        for title in COLUMNS.values():
            table.add_column(title, justify="right")
        for label, row in rows.items():
            if row:
                table.add_row(label, *(figure(row.get(name)) for name in COLUMNS))
        return table
