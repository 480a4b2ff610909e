"""``--trainer.max_time`` as what the user waits, validations included."""

import math
import time
from datetime import timedelta
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Timer

from gpt2_lightning.callbacks.checkpoint import validation_is_due
from gpt2_lightning.callbacks.line import say
from gpt2_lightning.report.tables import duration as in_words

PROJECTED_AFTER = 2.0  # seconds of the first validation after which its length is estimated
WARM_UP = 1  # batches of it that are left out, as memory is first touched there


class TimeLimit(Timer):
    """Ends training early enough for the last validation to end within ``--trainer.max_time``.

    Lightning's own timer counts neither the validation before training nor the one at the end.
    This one counts from the moment it is made, tokenizing included, and holds back the seconds
    that the newest validation took, with its samples and checkpoint. What follows the last
    validation (hf/, report.html) is not held back. A run that is resumed gets the whole time
    again. All ranks follow the clock of rank 0.

    Args:
        duration: ``DD:HH:MM:SS``, or what `datetime.timedelta` takes.
    """

    def __init__(self, duration: str | timedelta | dict[str, int]) -> None:
        super().__init__(duration, verbose=False)
        seconds = self.time_remaining()
        assert seconds is not None
        self.limit: float = seconds
        self.reached = False
        self._began = time.monotonic()
        self._validation_began: float | None = None
        self._step_began: float | None = None
        self._validation = 0.0  # seconds of the newest one
        self._projected = False
        self._warm: float | None = None  # when the first batches were done

    @property
    def state_key(self) -> str:
        """Name the state as Lightning's timer does, which wrote the checkpoints of earlier runs."""
        return Timer.__qualname__

    def on_fit_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Leave out Lightning's check, which would end a resumed run at once."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Leave out the time that an earlier command took."""

    # --- how long a validation takes ----------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of a validation."""
        super().on_validation_start(trainer, pl_module)
        self._validation_began = time.monotonic()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Estimate, in the validation before training, how long it takes, and what that means."""
        if not trainer.sanity_checking or self._projected or self._validation_began is None:
            return
        now = time.monotonic()
        if batch_idx + 1 == WARM_UP:
            self._warm = now
        if self._warm is None or now - self._warm < PROJECTED_AFTER:
            return
        self._projected = True
        (batches,) = cast("list[float]", trainer.num_sanity_val_batches)
        each = (now - self._warm) / (batch_idx + 1 - WARM_UP)
        whole = self._warm - self._validation_began + each * (batches - WARM_UP)
        if trainer.is_global_zero and 2 * whole > self.limit / 2:
            say(
                f"A validation takes about {in_words(whole)}; one before training and one at the "
                f"end take {in_words(2 * whole)} of --trainer.max_time {in_words(self.limit)}"
                + (", so this run takes longer than that. " if 2 * whole >= self.limit else ". ")
                + f"--trainer.limit_val_batches {_share(self.limit / 20 / whole)} shortens them."
            )

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note how long the validation before training took."""
        self._note_validation()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note how long a validation took, its checkpoint included."""
        self._note_validation()
        if self._step_began is None:
            self._step_began = time.monotonic()

    def _note_validation(self) -> None:
        if self._validation_began is not None:
            self._validation = time.monotonic() - self._validation_began
            self._validation_began = None

    # --- the end ------------------------------------------------------------------------------

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop where another optimizer step and the last validation would not fit any more."""
        if not batch["ends_step"] or self._step_began is None:
            return
        now = time.monotonic()
        step, self._step_began = now - self._step_began, None
        # a validation that is due here is the last one, if another would not fit after it
        validations = 2 if validation_is_due(trainer, batch_idx) else 1
        ends = now - self._began + step + validations * self._validation > self.limit
        self.reached = trainer.strategy.broadcast(ends)
        if self.reached:
            trainer.should_stop = True  # Lightning validates before such a stop


def _share(share: float) -> str:
    """Return a share, cut to its first digit."""
    digit = 10.0 ** math.floor(math.log10(share))
    return f"{math.floor(share / digit + 1e-9) * digit:g}"
