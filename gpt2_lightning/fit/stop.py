"""How a run ends early and whole: by a signal, at the next step; by validations no better."""

import math
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from gpt2_lightning.checkpoint import EARLY_STOPPING_KEY
from gpt2_lightning.errors import UsageError
from gpt2_lightning.fit.checkpoints import run_checkpoint, typed, validation_is_due
from gpt2_lightning.fit.processes import is_of_another_process, lost_process, requeue_signals
from gpt2_lightning.logs import say
from gpt2_lightning.model.module import GPT2Module
from gpt2_lightning.storage import undo

SIGNALS = (signal.SIGTERM, signal.SIGINT)

STOPPING = "Stopping where nothing is lost; a second signal ends the run at once."

FINISHING = "The run is over; what came of it is written first. A second signal ends it at once."


class Stopped(SystemExit):
    """Ends a run on request; its code is 128 and the signal's number: 143, or 130 for Ctrl-C.

    Attributes:
        by_all: Whether all processes end so, at the same step.
    """

    by_all = True


class Stop(Callback):
    """Saves ``last.ckpt`` and ends the run at the optimizer step in which a signal came.

    All ranks agree on that step, so none waits for another; a validation that is due at that step
    is still made. A second signal ends the process at once. While the split is validated before
    training, there is nothing to save, and the run ends with the batch. A run that ends by itself
    ends with a validation, so that its last step is measured and saved. In a SLURM job SIGUSR1
    ends the run likewise; `run` then asks for a requeue.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._speaks = False
        self._training = True
        self.lost: str | None = None  # what became of another process, once one was lost
        self._parent = os.getppid()
        self._found: dict[signal.Signals, Any] = {}
        self._put_off = False  # another callback asked for the end in the middle of a step
        self._after_validation = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find who speaks, and see that validations, and so checkpoints, fall on whole steps.

        Raises:
            UsageError: If they do not.
        """
        self._speaks = trainer.is_global_zero
        interval, accumulate = trainer.val_check_interval, trainer.accumulate_grad_batches
        if stage == "fit" and isinstance(interval, int) and interval % accumulate:
            near = max(accumulate, interval // accumulate * accumulate)
            raise UsageError(
                f"--trainer.val_check_interval {interval}: it counts micro-batches, and an "
                f"optimizer step takes {accumulate} of them. --trainer.val_check_interval {near} "
                "would work."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See that an epoch has a batch, and a validation where it is to.

        Raises:
            UsageError: If it has none.
        """
        data, interval = typed(trainer).datamodule, trainer.val_check_interval
        train, overfits = data.train_dataloader(), typed(trainer).overfit_batches > 0
        for name, share, there in (
            ("limit_train_batches", trainer.limit_train_batches, len(train)),
            ("limit_val_batches", trainer.limit_val_batches, len(data.val_dataloader())),
        ):
            if isinstance(share, float) and 0 < share * there < 1:
                flag = f"--trainer.{'overfit_batches' if overfits else name}"
                raise UsageError(
                    f"{flag} {share:g}: of {there} batches that is less than one. {flag} 1 takes "
                    "one."
                )
        batches = train.num_batches
        by_epoch = trainer.check_val_every_n_epoch is not None
        if by_epoch and isinstance(interval, int) and interval > batches:
            raise UsageError(
                f"--trainer.val_check_interval {interval}: it counts micro-batches, and an epoch "
                f"has {batches}. --trainer.val_check_interval 1.0 validates once an epoch; with "
                "--trainer.check_val_every_n_epoch null the micro-batches are counted over epochs."
            )

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen in the place of Lightning, which would stop in the middle of an accumulation.

        When the run ends, Lightning puts back the handlers that it found.
        """
        self._listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen, where there was no validation before training; validate at whole steps."""
        self._listen()
        batches, accumulate = trainer.val_check_batch, trainer.accumulate_grad_batches
        if isinstance(batches, int) and batches < trainer.num_training_batches:
            trainer.val_check_batch = -(-batches // accumulate) * accumulate  # a share of the epoch

    def _listen(self) -> None:
        if threading.current_thread() is threading.main_thread():  # Python's rule for handlers
            for number in (*SIGNALS, *requeue_signals()):
                signal.signal(number, self._receive)

    def listen_for_requeue(self) -> None:
        """Listen before training, while the text is tokenized, to what would end a SLURM job."""
        self._speaks = not getattr(rank_zero_only, "rank", 0)
        if threading.current_thread() is threading.main_thread():
            for number in requeue_signals():
                signal.signal(number, self._receive)

    def listen_to_the_end(self) -> None:
        """Listen while the results are written: Lightning has put back the handlers it found."""
        self._training = False
        if threading.current_thread() is threading.main_thread():
            self._found = {number: signal.getsignal(number) for number in SIGNALS}
        self._listen()

    def leave(self) -> None:
        """Put back the handlers that were found.

        Raises:
            Stopped: If a signal came while the results were written.
        """
        for number, handler in self._found.items():
            signal.signal(number, handler)
        self._found = {}
        if self.received is not None:
            stopped = Stopped(128 + self.received)
            stopped.by_all = False
            raise stopped

    def _receive(self, number: int, frame: FrameType | None) -> None:
        asks_for_requeue = number in requeue_signals()
        if asks_for_requeue and not self._training:
            return  # a run that is over needs no other start
        self.received = number
        signal.signal(number, signal.SIG_IGN if asks_for_requeue else self._end_at_once)
        if self._speaks:
            say(STOPPING if self._training else FINISHING, sys.stderr)

    @staticmethod
    def _end_at_once(number: int, frame: FrameType | None) -> None:
        undo()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

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
            self._put_off |= trainer.should_stop
            trainer.should_stop = False
            return
        last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
        ends = trainer.global_step == trainer.max_steps or (last_epoch and trainer.is_last_batch)
        if changes := cast(GPT2Module, pl_module).schedule_changes:
            ends |= trainer.global_step >= changes[-1][1]
        loop = trainer.fit_loop
        epochs = trainer.current_epoch + trainer.is_last_batch
        enough = epochs >= (trainer.min_epochs or 0) and trainer.global_step >= (
            loop.min_steps or 0
        )
        if self._put_off or ends:
            trainer.should_stop = True  # Lightning validates before such a stop
        if ends or (trainer.should_stop and enough):  # but not while a minimum has not been met,
            loop.min_epochs, loop.epoch_loop.min_steps = 0, None  # of epochs by their ends
        self._agree(trainer)
        if self.received is None:
            return
        self._after_validation = trainer.should_stop or validation_is_due(trainer, batch_idx)
        if not self._after_validation:
            self._end(trainer, pl_module, self.received)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save and end after a validation that was due."""
        if self._after_validation and self.received is not None:
            self._end(trainer, pl_module, self.received)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Find whether it was another process that ended."""
        if trainer.world_size > 1 and is_of_another_process(exception):
            self.lost = lost_process(trainer, self._parent)

    @staticmethod
    def _end(trainer: Trainer, pl_module: LightningModule, received: int) -> NoReturn:
        cast(GPT2Module, pl_module).log_last_step()
        save_last(trainer)
        raise Stopped(128 + received)

    def _agree(self, trainer: Trainer) -> None:
        """Let every rank know of a signal that one received."""
        if trainer.world_size == 1:
            return
        number = torch.tensor(self.received or 0, device=trainer.strategy.root_device)
        number = cast(Tensor, trainer.strategy.reduce(number, reduce_op="max"))
        self.received = int(number) or None


class EarlyStop(EarlyStopping):
    """Ends a run whose validations have become no better, by what ``--checkpoint.monitor`` says.

    Args:
        patience: Validations without a better one after which the run ends; null never ends it.
        min_delta: By how much a validation must be better to count.
    """

    def __init__(self, patience: int | None = None, min_delta: float = 0.0) -> None:
        if patience is not None and patience < 1:
            raise UsageError(
                f"--early_stopping.patience {patience}: must be >= 1, or null, which never stops."
            )
        if not 0 <= min_delta < math.inf:
            raise UsageError(f"--early_stopping.min_delta {min_delta}: must be >= 0.")
        if patience is None and min_delta:
            raise UsageError(
                f"--early_stopping.min_delta {min_delta}: without --early_stopping.patience it "
                "does nothing. Give both."
            )
        self._given = patience, min_delta
        self._begin("val/loss", "min")

    def _begin(self, monitor: str, mode: str) -> None:
        """Compare by one number from now on; Lightning fits its bounds to the mode at the start."""
        patience, min_delta = self._given
        super().__init__(
            monitor,
            min_delta=min_delta,
            patience=patience or 1,
            mode=mode,
            strict=False,  # what was not logged up to a validation, RunCheckpoint has said
            check_finite=False,  # --model.on_nonfinite decides
            check_on_train_epoch_end=False,
        )

    @property
    def enabled(self) -> bool:
        """Whether it may end the run."""
        return self._given[0] is not None

    @property
    def reached(self) -> bool:
        """Whether it has ended the run."""
        return self.enabled and self.wait_count >= self.patience

    @property
    def state_key(self) -> str:
        """Name the state in a checkpoint."""
        return EARLY_STOPPING_KEY

    def state_dict(self) -> dict[str, Any]:
        """Keep the best value and the validations since, in plain values."""
        if not self.enabled:
            return {}
        best = {"monitor": self.monitor, "mode": self.mode, "best": float(self.best_score)}
        return best | {"wait_count": self.wait_count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting, with the patience that is given now, if it is the same number."""
        if (state_dict["monitor"], state_dict["mode"]) == (self.monitor, self.mode):
            self.best_score = torch.tensor(state_dict["best"])
            self.wait_count = state_dict["wait_count"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take what the run's own checkpoints are chosen by.

        Raises:
            UsageError: If the run is to end by validations, and has none.
        """
        if self.enabled and stage == "fit" and trainer.limit_val_batches == 0:
            raise UsageError(
                f"--early_stopping.patience {self.patience}: it counts validations, and "
                "--trainer.limit_val_batches 0 leaves them out. Leave one of the two out."
            )
        own = run_checkpoint(trainer)
        if own is not None and own.monitor is not None:
            self._begin(own.monitor, own.mode)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train no further where it has ended the run already, unless it may go on for longer."""
        trainer.should_stop |= self.reached

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the run after a validation, if it is one too many."""
        if self.enabled:
            super().on_validation_end(trainer, pl_module)

    def __str__(self) -> str:
        """Say why it ends the run."""
        return (
            f"--early_stopping.patience {self.patience}: {self.wait_count} validation(s) without a "
            f"better {self.monitor} than {float(self.best_score):.4g}"
        )


def check_minimum(trainer: Any) -> None:
    """Refuse a minimum beyond the run's own end; it is for what ends a run early.

    Args:
        trainer: The flags of the trainer.

    Raises:
        UsageError: If a run could not keep it.
    """
    for unit in ("epochs", "steps"):
        least, most = trainer[f"min_{unit}"], trainer[f"max_{unit}"]
        if not least:
            continue
        if most is not None and 0 < most < least:
            raise UsageError(
                f"--trainer.min_{unit} {least}: the run ends by --trainer.max_{unit} {most}. Leave "
                "one of the two out."
            )
        if trainer.max_time is not None:
            raise UsageError(
                f"--trainer.min_{unit} {least}: the run ends within --trainer.max_time "
                f"{trainer.max_time} however few it takes. Leave one of the two out."
            )


class StopWhileFinishing(Callback):
    """Lets `Stop` hear signals while hf/ and the report are written; it stands before them."""

    def __init__(self, stop: Stop) -> None:
        self.stop = stop

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """StopWhileFinishing from here on."""
        self.stop.listen_to_the_end()


def save_last(trainer: Trainer) -> None:
    """Save the run's ``last.ckpt``, where checkpoints are kept at all."""
    if typed(trainer).fast_dev_run:
        return
    own = run_checkpoint(trainer)
    if own is None or own.dirpath is None or not (own.keeps_last or own.save_top_k):
        return
    if own.step_of_last != trainer.global_step or own.save_weights_only:
        own.save_last_state(trainer, weights_only=False)  # the optimizer too: it can go on
