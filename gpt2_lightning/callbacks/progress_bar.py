"""The progress bar, and what stands for it in a log."""

import time
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console

from gpt2_lightning.callbacks.line import say
from gpt2_lightning.model.module import GPT2Module

SECONDS_OF_A_LINE = 30.0  # between two lines in a log


class ProgressBar(RichProgressBar):
    """Lightning's rich bar with the training loss beside it; without a terminal, a line at times.

    It is gone before the outcome is printed.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=int(Console().is_terminal))  # 0 draws nothing
        self._said = time.monotonic()

    @property
    def sanity_check_description(self) -> str:
        """Name the validation before training by what it is here."""
        return "Step 0"

    def _get_train_description(self, current_epoch: int) -> str:
        """Count epochs from 1, where Lightning shows the first of two as 0/1."""
        epochs = self.trainer.max_epochs
        of = f" of {epochs}" if epochs is not None and epochs > 0 else ""
        # as wide as the bar of a validation, so that neither moves
        return f"Epoch {current_epoch + 1}{of}".ljust(len(self.validation_description))

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the last logged training loss.

        It is a plain number already: Lightning's own way waits for the GPU at every step.
        """
        loss = cast(GPT2Module, pl_module).last_loss
        return {} if loss is None else {"train/loss": loss}

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Move the bar on, or print a line."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        now, module = time.monotonic(), cast(GPT2Module, pl_module)
        if self.is_enabled or not trainer.is_global_zero or not batch["ends_step"]:
            return
        if now - self._said >= SECONDS_OF_A_LINE:
            self._said = now
            loss = ""
            if module.last_loss is not None:
                loss = f", train/loss {module.last_loss:.3f} at step {module.step_of_last_loss:,}"
            say(f"Step {trainer.global_step:,} of {module.run_steps():,}{loss}")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the screen to what is printed at the end."""
        self.teardown(trainer, pl_module, "fit")
