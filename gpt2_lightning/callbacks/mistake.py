"""A user's mistake that shows only once the run has been set up: it leaves no run folder."""

from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from gpt2_lightning.callbacks.run_folder import LOCAL, run_folder
from gpt2_lightning.errors import UsageError

# what stands in a run folder before the first step
WRITTEN_BEFORE_TRAINING = ("config.yaml", "hparams.yaml", "metrics.csv", "events.out.tfevents.*")


class Mistake(Callback):
    """Takes back the run folder of a run that a user's mistake ended before its first step.

    Whether model and data suit each other is known only when both are there, and by then the
    settings have been written.
    """

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Remove what was written, unless the folder holds more than that."""
        theirs = isinstance(exception, UsageError | MisconfigurationException)
        if not theirs or not trainer.is_global_zero:
            return
        run = run_folder(trainer)  # None where config.yaml may be another run's
        names = [name for name in WRITTEN_BEFORE_TRAINING if run or name != "config.yaml"]
        local = [logger for logger in trainer.loggers if isinstance(logger, LOCAL)]
        for folder in {*([run] if run else []), *(Path(logger.log_dir) for logger in local)}:
            found = {file for name in names for file in folder.glob(name)}
            if folder.is_dir() and found == set(folder.iterdir()):
                for logger in local:  # it would write its last events into a file that is gone
                    if isinstance(logger, TensorBoardLogger) and Path(logger.log_dir) == folder:
                        logger.experiment.close()
                for file in found:
                    file.unlink()
                folder.rmdir()
