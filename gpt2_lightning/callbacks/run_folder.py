"""The folder of the run, for callbacks."""

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


def run_folder(trainer: Trainer) -> Path | None:
    """Return where the run's files go, or None where nothing is kept.

    One process may ask alone; Trainer.log_dir waits for all of them.
    """
    for logger in trainer.loggers:
        if logger.log_dir is not None:
            return Path(logger.log_dir)
    checkpointing = trainer.checkpoint_callback
    if isinstance(checkpointing, ModelCheckpoint) and checkpointing.dirpath is not None:
        return Path(checkpointing.dirpath).parent
    return None
