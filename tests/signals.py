"""A callback that sends the process a signal, for tests of stopping."""

import os
import signal
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from gpt2_lightning.cli import main
from gpt2_lightning.export import hf_folder
from gpt2_lightning.fit import finish
from gpt2_lightning.storage import whole_file


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


class SendSignalIn(Callback):
    """Sends this process a signal in one of a run's activities.

    Args:
        number: The signal.
        place: ``training``, ``validation`` (the second one), ``sampling`` or ``baseline``.
    """

    def __init__(self, number: int, place: str) -> None:
        self.number = number
        self.place = place

    def _send(self, place: str) -> None:
        if place == self.place:
            self.place = "sent"
            signal.raise_signal(self.number)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Send it in the fourth step."""
        if batch_idx == 3:
            self._send("training")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Send it while the split is measured."""
        if trainer.sanity_checking:
            self._send("baseline")
        elif trainer.global_step == 4:
            self._send("validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send it where the samples are made."""
        if trainer.global_step == 4:
            self._send("sampling")


class KillOnce(Callback):
    """Kills one rank as a micro-batch begins, at each of some batches once over all restarts."""

    def __init__(self, batches: list[int], rank: int) -> None:
        self.batches = batches
        self.rank = rank

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Kill this process, and leave a file that says so."""
        done = Path(f"killed_{batch_idx}")
        if batch_idx in self.batches and trainer.global_rank == self.rank and not done.exists():
            done.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def fit_and_signal(number: int, during: str, words: list[str]) -> None:
    """Run `fit`, and send a signal twice while it writes its results, once in a whole file.

    Args:
        number: The signal.
        during: ``hf`` or ``report``: what is being written.
        words: After ``fit``.
    """

    def interrupted(*given: Any) -> None:
        signal.raise_signal(number)
        with whole_file(Path("lightning_logs/version_0/report.html")):
            signal.raise_signal(number)

    place: Any = hf_folder if during == "hf" else finish
    setattr(place, "_verify_model" if during == "hf" else "write_page", interrupted)
    main(["fit", *words])
