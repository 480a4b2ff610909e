"""The curve's beginning: the validation split before any training."""

from typing import cast

from lightning.pytorch import Callback, LightningModule, Trainer

from gpt2_lightning.model.module import GPT2Module


class Baseline(Callback):
    """Logs the validation numbers at step 0, so that a curve begins at the untrained model's.

    Lightning's check before training is widened to the whole split
    (``--trainer.num_sanity_val_steps -1``, the default here) and its result is kept.
    """

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what Lightning would throw away."""
        if trainer.num_sanity_val_steps != float("inf"):
            return  # a part of the split says nothing
        for logger in trainer.loggers:
            logger.log_metrics(cast(GPT2Module, pl_module).eval_results, step=0)
            logger.save()
