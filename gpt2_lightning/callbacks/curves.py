"""The curves: train and validation on one chart, and all of them as a table at the end."""

import csv
import io
from contextlib import nullcontext, suppress
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

# by this name it is known to tests, too
from gpt2_lightning.report.scalars import read_scalars as read_scalars
from gpt2_lightning.storage import refusal_of, write_text

LAYOUT = {
    "loss": {"nats per token": ["Multiline", ["train/loss", "val/loss"]]},
    "speed": {"predicted tokens/s": ["Multiline", ["train/tokens_per_second"]]},
}


class Curves(Callback):
    """Lays out TensorBoard's custom scalars, and writes ``metrics.csv`` from the events."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put training and validation on one chart."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.add_custom_scalars(LAYOUT)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write out what was logged, before the checkpoint that a run goes on from."""
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.flush()
                elif isinstance(logger, CSVLogger):
                    logger.save()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table."""
        self._write(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write what there is; a disk that has refused is not asked to speak twice."""
        with suppress(OSError) if refusal_of(exception) else nullcontext():
            self._write(trainer)

    @staticmethod
    def _write(trainer: Trainer) -> None:
        """Write the table, unless a CSV logger of the same folder does: it is the same table."""
        if not trainer.is_global_zero or trainer.state.fn != "fit":
            return
        by_logger = {it.log_dir for it in trainer.loggers if isinstance(it, CSVLogger)}
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.save()
            elif isinstance(logger, TensorBoardLogger) and Path(logger.log_dir).is_dir():
                logger.experiment.flush()
                if logger.log_dir not in by_logger:
                    write_metrics_csv(Path(logger.log_dir))


def write_metrics_csv(run: Path) -> None:
    """Write a run's scalars as ``metrics.csv``: one row a step, one column a name."""
    table = read_scalars(run)
    names = sorted({name for row in table.values() for name in row})
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["step", *names])
    writer.writeheader()
    writer.writerows({"step": step, **row} for step, row in sorted(table.items()))
    write_text(run / "metrics.csv", text.getvalue())
