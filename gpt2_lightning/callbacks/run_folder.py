"""The folder of the run, for callbacks."""

from pathlib import Path

from lightning.pytorch import Trainer

from gpt2_lightning.callbacks.checkpoint import run_checkpoint


def run_folder(trainer: Trainer) -> Path | None:
    """Return where the run's files go, or None where nothing is kept.

    One process may ask alone; Trainer.log_dir waits for all of them.
    """
    for logger in trainer.loggers:
        if logger.log_dir is not None:
            return Path(logger.log_dir)
    own = run_checkpoint(trainer)
    return None if own is None or own.dirpath is None else own.folder.parent
