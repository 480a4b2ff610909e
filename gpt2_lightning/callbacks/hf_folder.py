"""The run's outcome: the best model in Hugging Face format, and a short table on the screen."""

import logging
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from rich.table import Table

from gpt2_lightning.callbacks.baseline import Baseline
from gpt2_lightning.inference.checkpoint import LoadedModel, load_checkpoint
from gpt2_lightning.inference.hf_folder import write_hf_folder
from gpt2_lightning.model.causal_lm import from_config
from gpt2_lightning.model.module import GPT2Module

log = logging.getLogger(__name__)


class HFFolder(Callback):
    """Writes ``hf/`` into the run folder at the end of fit, and when it is interrupted.

    The best checkpoint is taken, else the last one, else the weights as they stand.
    """

    def __init__(self) -> None:
        self.before: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.last: dict[str, float] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the numbers for the table."""
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
        self.before, self.best, self.last = (
            state_dict["before"],
            state_dict["best"],
            state_dict["last"],
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the baseline."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined] # set in Trainer.__init__ by a connector
            if isinstance(callback, Baseline) and callback.results:
                self.before = callback.results

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the folder and the table."""
        self._finish(trainer, cast(GPT2Module, pl_module))

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave a run folder that can be used, if training had begun."""
        stopped = isinstance(exception, KeyboardInterrupt | SystemExit)
        if stopped and trainer.state.fn == "fit" and trainer.global_step > 0:
            self._finish(trainer, cast(GPT2Module, pl_module))

    def _finish(self, trainer: Trainer, module: GPT2Module) -> None:
        if not trainer.is_global_zero or trainer.log_dir is None or cast(Any, trainer).fast_dev_run:
            return
        found = self._outcome(trainer, module)
        target = Path(trainer.log_dir) / "hf"
        write_hf_folder(target, found.model, found.tokenizer, module.sampling)
        self._print(target)

    @staticmethod
    def _outcome(trainer: Trainer, module: GPT2Module) -> LoadedModel:
        checkpointing = trainer.checkpoint_callback
        if isinstance(checkpointing, ModelCheckpoint):
            for path in (checkpointing.best_model_path, checkpointing.last_model_path):
                if path and Path(path).is_file():
                    return load_checkpoint(Path(path))
        model = from_config(module.model.config.to_dict(), attention="sdpa")
        model.load_state_dict(module.model.state_dict())
        return LoadedModel(model, cast(Any, trainer).datamodule.tokenizer)

    def _print(self, target: Path) -> None:
        table = Table(title="Validation", title_justify="left")
        table.add_column("")
        names = {
            "val/perplexity": "perplexity",
            "val/loss": "nats per token",
            "val/bits_per_byte": "bits per byte",
        }
        for title in names.values():
            table.add_column(title, justify="right")
        for label, row in (("before", self.before), ("best", self.best), ("last", self.last)):
            if row:
                table.add_row(label, *(_figure(row.get(name)) for name in names))
        console = Console()
        if table.row_count:
            console.print(table)
        console.print(f"Best model: {target}", soft_wrap=True, highlight=False)
        console.print(
            f'Use it:     python -m gpt2_lightning generate --model {target.parent} --prompt "..."',
            soft_wrap=True,
            highlight=False,
        )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}" if value >= 1000 else f"{value:.4f}"
