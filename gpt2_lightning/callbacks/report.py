"""The page about the run, written at its end."""

import logging

from lightning.pytorch import Callback, LightningModule, Trainer

from gpt2_lightning.callbacks.line import say
from gpt2_lightning.callbacks.run_folder import run_folder
from gpt2_lightning.model.module import NotFinite
from gpt2_lightning.report.page import write_page
from gpt2_lightning.report.run import read_run

log = logging.getLogger(__name__)


class Report(Callback):
    """Writes ``report.html`` from the run folder at the end of fit, and when it is stopped.

    It stands after the callbacks that write what it reads.
    """

    def __init__(self) -> None:
        self._trained = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take note that there is something to report."""
        self._trained = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the page."""
        self._write(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write it of a run that was stopped, too."""
        if self._trained and isinstance(exception, KeyboardInterrupt | SystemExit | NotFinite):
            self._write(trainer)

    @staticmethod
    def _write(trainer: Trainer) -> None:
        folder = run_folder(trainer)
        if not trainer.is_global_zero or folder is None:
            return
        try:
            write_page([read_run(str(folder))], folder / "report.html")
        except Exception as error:  # the model is trained and saved: no reason to end in an error
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            log.warning(
                "%s was not written (%s). To try again: python -m gpt2_lightning report %s",
                folder / "report.html",
                reason,
                folder,
            )
        else:
            line = f"Report:     {folder / 'report.html'}"
            say(line)
