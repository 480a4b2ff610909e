"""A callback that sends the process a signal, for tests of stopping."""

import signal
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class SendSignal(Callback):
    """Sends a signal to one rank as a micro-batch begins."""

    def __init__(self, number: int, batch: int, rank: int = 0, epoch: int = 0) -> None:
        self.number = number
        self.batch = batch
        self.rank = rank
        self.epoch = epoch

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Send it, to this process."""
        here = (trainer.current_epoch, batch_idx) == (self.epoch, self.batch)
        if here and trainer.global_rank == self.rank:
            signal.raise_signal(self.number)
