"""The progress bar."""

from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from gpt2_lightning.model.module import GPT2Module


class ProgressBar(RichProgressBar):
    """Lightning's rich bar with two numbers beside it, and gone before the outcome is printed."""

    @property
    def sanity_check_description(self) -> str:
        """Name the validation before training by what it is here."""
        return "Step 0"

    def _get_train_description(self, current_epoch: int) -> str:
        """Count epochs from 1, where Lightning shows the first of two as 0/1."""
        epochs = self.trainer.max_epochs
        of = f" of {epochs}" if epochs is not None and epochs > 0 else ""
        return f"Epoch {current_epoch + 1}{of}"

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the last logged training loss and validation perplexity.

        Both are plain numbers already: Lightning's own way waits for the GPU at every step.
        """
        module = cast(GPT2Module, pl_module)
        numbers = {
            "train/loss": module.last_loss,
            "val/perplexity": module.eval_results.get("val/perplexity"),
        }
        return {name: number for name, number in numbers.items() if number is not None}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the screen to what is printed at the end."""
        self.teardown(trainer, pl_module, "fit")
