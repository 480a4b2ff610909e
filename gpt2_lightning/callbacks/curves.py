"""What TensorBoard shows beside the curves, and all curves as a table at the end."""

import csv
import io
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from gpt2_lightning.callbacks.checkpoint import run_checkpoint

# by this name it is known to tests, too
from gpt2_lightning.report.scalars import read_scalars as read_scalars
from gpt2_lightning.storage import refusal_of, write_text

LAYOUT = {
    "loss": {"nats per token": ["Multiline", ["train/loss", "val/loss"]]},
    "perplexity": {"per token": ["Multiline", ["train/perplexity", "val/perplexity"]]},
    "speed": {"predicted tokens/s": ["Multiline", ["train/tokens_per_second"]]},
}


# the flags in which runs are compared most; those of a group that a run does not use are left out
SETTINGS = {
    "model": (
        "learning_rate",
        "schedule",
        "warmup_steps",
        "weight_decay",
        "dropout",
        "attention_dropout",
        "pretrained",
    ),
    "model.architecture": ("layers", "heads", "width"),
    "data": ("batch_size", "block_size", "source", "subset", "cleaning", "blocks", "vocab_size"),
    "trainer": (
        "accumulate_grad_batches",
        "gradient_clip_val",
        "max_epochs",
        "max_steps",
        "precision",
        "world_size",
    ),
}
NUMBERS = {"dropout", "attention_dropout", "gradient_clip_val", "max_epochs", "vocab_size"}


class Curves(Callback):
    """Fills TensorBoard's custom scalars and HPARAMS, and writes ``metrics.csv`` from the events.

    HPARAMS takes the last value of a curve. So that runs can be compared by the model that each
    has kept, ``val/loss_best`` is the validation loss of the best checkpoint, at its step; where
    another number chose it, that number's ``_best`` stands there, too.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put training and validation on one chart."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.add_custom_scalars(LAYOUT)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell HPARAMS of the run; where it was told before, TensorBoard keeps to that."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                _add_settings(logger, settings_of_run(trainer, pl_module), _compared_by(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write out what was logged, before the checkpoint that a run goes on from."""
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.flush()
                elif isinstance(logger, CSVLogger):
                    logger.save()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the best figures and the table."""
        _log_best(trainer)
        self._write(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write what there is; a disk that has refused is not asked to speak twice."""
        # TensorBoard's writer raises the refusal of its thread again, wrapped
        again = suppress(OSError, ValueError, RuntimeError)
        with again if refusal_of(exception) else nullcontext():
            _log_best(trainer)
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


def settings_of_run(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Return a run's `SETTINGS` by their flags; None where a flag says nothing."""
    model = cast(dict[str, Any], pl_module.hparams)
    groups: dict[str, dict[str, Any]] = {
        "model": model,
        "model.architecture": {} if model["pretrained"] else model["architecture"],
        "data": cast(Any, trainer).datamodule.hparams,
        "trainer": {name: getattr(trainer, name) for name in SETTINGS["trainer"]},
    }
    return {
        f"{group}.{name}": groups[group].get(name)
        for group, names in SETTINGS.items()
        for name in names
    }


def _compared_by(trainer: Trainer) -> list[str]:
    own = run_checkpoint(trainer)
    chosen = ["val/loss_best"]
    if own is not None and own.monitor not in (None, "val/loss"):
        chosen.insert(0, f"{own.monitor}_best")
    return [*chosen, "val/loss", "val/perplexity", "val/bits_per_byte", "train/loss"]


def _add_settings(logger: TensorBoardLogger, settings: dict[str, Any], metrics: list[str]) -> None:
    """Write the summaries of HPARAMS into the run's own events.

    ``SummaryWriter.add_hparams`` would make a folder of its own for them, and Lightning's
    ``log_hyperparams`` wants the metrics' values, which only the end knows.
    """
    from torch.utils.tensorboard.summary import hparams

    # TensorBoard takes the columns of all runs from one of them: a run that leaves a flag out
    # names its column as well
    columns = {flag: _filler(flag) if it is None else it for flag, it in settings.items()}
    experiment, _, _ = hparams(columns, dict.fromkeys(metrics, 0.0))
    _, begin, _ = hparams(settings, {})
    for summary in (experiment, begin):
        logger.experiment.file_writer.add_summary(summary)


def _filler(flag: str) -> float | str:
    """Return a value of a flag's type."""
    group, _, name = flag.rpartition(".")
    return 0.0 if group == "model.architecture" or name in NUMBERS else ""


def _log_best(trainer: Trainer) -> None:
    own = run_checkpoint(trainer)
    if trainer.state.fn != "fit" or own is None or own.best is None:
        return
    known = own.best["figures"] | {own.monitor or "val/loss": own.best["value"]}
    figures = {f"{name}_best": known.get(name) for name in ("val/loss", own.monitor) if name}
    measured = {name: value for name, value in figures.items() if value is not None}
    for logger in trainer.loggers:
        logger.log_metrics(measured, step=own.best["step"])
