"""A run's end that loses nothing: by ``max_steps``, SIGTERM or Ctrl-C."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """Ends a run on request; its code is 128 and the signal's number: 143, or 130 for Ctrl-C."""


class Stop(Callback):
    """Saves ``last.ckpt`` and ends the run at the optimizer step in which a signal came.

    All ranks agree on that step, so none waits for another. A second signal ends the process at
    once. While the split is validated before training, there is nothing to save, and the run
    ends with the batch. Where ``max_steps`` ends a run, a validation comes first.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen in the place of Lightning, which would stop in the middle of an accumulation.

        When the run ends, Lightning puts back the handlers that it found.
        """
        for number in SIGNALS:
            signal.signal(number, self._receive)

    on_train_start = on_sanity_check_start  # there may be no validation before training

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, signal.SIG_DFL)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """End the validation before training, where nothing is lost."""
        if trainer.sanity_checking:
            self._agree(trainer)
            if self.received is not None:
                raise Stopped(128 + self.received)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save and end, if a rank was asked to."""
        if not batch["ends_step"]:
            return
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True  # Lightning validates before such a stop
        self._agree(trainer)
        if self.received is None:
            return
        save_last(trainer)
        raise Stopped(128 + self.received)

    def _agree(self, trainer: Trainer) -> None:
        """Let every rank know of a signal that one received."""
        if trainer.world_size == 1:
            return
        for number in SIGNALS:
            asked = self.received == number
            if trainer.strategy.reduce_boolean_decision(asked, all=False):
                self.received = number


def save_last(trainer: Trainer) -> None:
    """Save the run's ``last.ckpt``, where checkpoints are kept at all."""
    checkpointing = trainer.checkpoint_callback
    if isinstance(checkpointing, ModelCheckpoint) and checkpointing.dirpath is not None:
        last = Path(checkpointing.dirpath) / "last.ckpt"
        trainer.save_checkpoint(last, weights_only=False)  # the optimizer too: it can go on
