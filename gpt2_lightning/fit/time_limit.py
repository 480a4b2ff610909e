"""--minutes and --trainer.max_time: the schedule is fitted to the time that a run has."""

import math
import time
from collections import deque
from datetime import timedelta
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Timer

from gpt2_lightning.fit.checkpoints import typed, validation_is_due
from gpt2_lightning.fit.run_folder import note_schedule
from gpt2_lightning.logs import say
from gpt2_lightning.model.module import GPT2Module
from gpt2_lightning.report.tables import duration as in_words

PROJECTED_AFTER = 2.0  # seconds of the first validation after which its length is estimated

WARM_UP = 1  # batches of it that are left out, as memory is first touched there

FORWARDS_OF_A_STEP = 3  # a backward pass takes twice a forward pass

FITTED_AFTER = 0.03  # share of the time in which the first steps are measured

STEPS_MEASURED = 50  # the newest ones, of which the speed is the mean

RESERVE = 0.02  # share of the time that is left for steps that turn out slower

SPARE = 0.05  # share of the time that may be left over, and that lies between two changes

FEW_STEPS = 100  # a schedule of fewer has hardly begun when it ends

FINISHING = 3.0  # seconds for hf/, report.html and the table; at most `SPARE` of the time


class TimeLimit(Timer):
    """Fits the schedule to ``--trainer.max_time``, and ends the run within it.

    Lightning's own timer counts neither the validation before training nor the one at the end, and
    cuts the learning rate's schedule off. This one counts from the command's beginning, imports and
    tokenizing included. It measures the first steps and spreads the schedule over those that fit
    before the last validation; a run that turns out slower or quicker is fitted again. What it has
    decided is noted in the checkpoint and in ``config.yaml`` (``--model.schedule_changes``), so
    that a resumed run ends with the same step, and a repeated one takes the same steps. Where the
    epochs are over before, or ``--model.schedule_steps`` is given, nothing is changed; steps and a
    last validation that would not fit are then cut off. A resumed run gets the whole time again.
    All ranks follow the clock of rank 0.

    Args:
        duration: ``DD:HH:MM:SS``, or what `datetime.timedelta` takes.
        began: When it began, by `time.monotonic`; null is now.
    """

    def __init__(
        self, duration: str | timedelta | dict[str, int], began: float | None = None
    ) -> None:
        super().__init__(duration, verbose=False)
        seconds = self.time_remaining()
        assert seconds is not None
        self.limit: float = seconds
        self.reached = False
        self._began = time.monotonic() if began is None else began
        self._trained_from: float | None = None  # when the first step began
        self._validation_began: float | None = None
        self._step_began: float | None = None  # when the step before it, or a validation, ended
        self._steps: deque[float] = deque(maxlen=STEPS_MEASURED)  # seconds of each
        self._warm_steps = 0  # the first is slower, and left out
        self._fitted = False
        self._changed = -math.inf  # when the schedule was changed last
        self._known = False  # whether an earlier command has said the end: it is not put off then
        self._epochs_end: int | None = None  # the step with which the epochs, or max_steps, end
        self._validate_every = math.inf  # steps between two validations
        self._validation = 0.0  # seconds of the newest one
        self._batch: float | None = None  # seconds of one batch of the validation before training
        self._projected = False
        self._warm: float | None = None  # when the first batches were done

    @property
    def state_key(self) -> str:
        """Name the state as Lightning's timer does, which wrote the checkpoints of earlier runs."""
        return Timer.__qualname__

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell the module that the time ends the run, where nothing else does."""
        super().setup(trainer, pl_module, stage)
        cast(GPT2Module, pl_module).has_time_limit = True

    def on_fit_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Leave out Lightning's check, which would end a resumed run at once."""

    def state_dict(self) -> dict[str, Any]:
        """Keep nothing: a run that goes on has the whole time again, or no limit any more."""
        return {}

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
        if not trainer.sanity_checking or self._validation_began is None:
            return
        now = time.monotonic()
        if batch_idx + 1 == WARM_UP:
            self._warm = now
            return
        if self._warm is None:
            return
        self._batch = each = (now - self._warm) / (batch_idx + 1 - WARM_UP)
        if self._projected or now - self._warm < PROJECTED_AFTER:
            return
        self._projected = True
        (batches,) = cast("list[float]", trainer.num_sanity_val_batches)
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

    def _note_validation(self) -> None:
        if self._validation_began is not None:
            self._step_began = time.monotonic()
            self._validation = self._step_began - self._validation_began
            self._validation_began = None

    # --- the schedule -------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit the schedule roughly, where the epochs are clearly too many, or none are given.

        So the warm-up suits the run from its first step. It goes by the validation before training.
        """
        module = cast(GPT2Module, pl_module)
        self._epochs_end = module.allowed_steps()
        self._known = bool(module.schedule_changes)
        batches, accumulate = trainer.val_check_batch, trainer.accumulate_grad_batches
        if trainer.enable_validation and isinstance(batches, int):
            every = trainer.check_val_every_n_epoch or 1
            self._validate_every = max(batches * every / accumulate, 1.0)
        fits = module.fits_time and trainer.global_step == 0 and not module.schedule_changes
        end = None
        if fits and self._batch is not None:
            seconds = self._batch * FORWARDS_OF_A_STEP * accumulate
            end = max(int(self._left(RESERVE) / self._with_validations(seconds)), 1)
            if self._epochs_end is not None and end >= self._epochs_end / 2:
                end = None  # near enough to wait for the measurement
        self._change(trainer, module, trainer.strategy.broadcast(end))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note how long a validation took, its checkpoint included."""
        self._note_validation()
        if self._step_began is None:
            self._step_began = time.monotonic()
        if self._trained_from is None:
            self._trained_from = self._step_began

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Measure a step, fit the schedule, and stop where no other step would fit any more."""
        if not batch["ends_step"] or self._step_began is None:
            return
        now, module = time.monotonic(), cast(GPT2Module, pl_module)
        seconds, self._step_began = now - self._step_began, now
        if self._warm_steps:
            self._steps.append(seconds)
        self._warm_steps += 1
        # a validation that is due here is the last one, if another would not fit after it
        validations = 2 if validation_is_due(trainer, batch_idx) else 1
        ends = now - self._began + seconds + validations * self._validation > self.limit
        end = self._fit(trainer, module) if module.fits_time else None
        self.reached, end = trainer.strategy.broadcast((ends, end))
        if self.reached:
            trainer.should_stop = True  # Lightning validates before such a stop
        else:
            self._change(trainer, module, end)

    def _fit(self, trainer: Trainer, module: GPT2Module) -> int | None:
        """Return the step with which the schedule should end; None leaves it as it is."""
        step, planned = trainer.global_step, self._planned(module)
        assert self._trained_from is not None
        share = (time.monotonic() - self._trained_from) / self.limit
        measured = len(self._steps) >= 3 and share >= FITTED_AFTER
        if not self._steps or not (measured or share >= 3 * FITTED_AFTER) or step == planned:
            return None
        each = self._with_validations(sum(self._steps) / len(self._steps))
        first, self._fitted = not self._fitted, True
        if planned is not None:
            needed = (planned - step) * each
            slow, quick = needed > self._left(), needed < self._left(RESERVE + SPARE)
            by_epochs = planned == self._epochs_end and not module.schedule_changes
            if first and quick and by_epochs and trainer.is_global_zero:
                say(
                    f"The run ends after about {in_words(needed + self._spent())} of "
                    f"{in_words(self.limit)}, with --trainer.max_epochs or max_steps; "
                    "--trainer.max_epochs -1 uses all of the time."
                )
            if not slow and (by_epochs or self._known or not (first or quick)):
                return None
            # a change of pace is seen little by little; near the end nothing can wait
            waits = time.monotonic() - self._changed < SPARE * self.limit
            if waits and not first and self._left() > 2 * SPARE * self.limit:
                return None
        end = step + max(int(self._left(RESERVE) / each), 1)
        return end if self._epochs_end is None else min(end, self._epochs_end)

    def _change(self, trainer: Trainer, module: GPT2Module, end: int | None) -> None:
        if end is None or end == self._planned(module):
            return
        before = module.schedule_changes[-1][1] if module.schedule_changes else None
        module.change_schedule(end)
        self._changed = time.monotonic()
        if not trainer.is_global_zero:
            return
        note_schedule(trainer, module.schedule_changes)
        if trainer.global_step == 0:
            say(f"About {end:,} steps fit the time; the first ones are measured.")
        elif before is None or len(module.schedule_changes) == 2:
            each = sum(self._steps) / len(self._steps)
            say(f"{end:,} steps of {each:.3g} s fit the time; the schedule ends with the last.")
            blocks = typed(trainer).datamodule.batch_size * trainer.accumulate_grad_batches
            blocks *= trainer.world_size
            if end < FEW_STEPS and blocks > 1:
                say(
                    f"In so few steps smaller ones learn more: of {blocks // 2} block(s) instead "
                    f"of {blocks} (--data.batch_size x --trainer.accumulate_grad_batches x "
                    "processes)."
                )
        else:
            say(f"Step {trainer.global_step:,}: {end:,} steps fit the time, not {before:,}.")

    def _planned(self, module: GPT2Module) -> int | None:
        """Return the step that the run ends with, as far as it is known; it takes no loader."""
        ends = [self._epochs_end, *(end for _, end in module.schedule_changes[-1:])]
        return min((end for end in ends if end is not None), default=None)

    def _spent(self) -> float:
        return time.monotonic() - self._began

    def _left(self, reserve: float = 0.0) -> float:
        """Return the seconds for training: without the last validation, and what follows it."""
        finishing = min(FINISHING, SPARE * self.limit)
        held_back = self._validation + finishing + reserve * self.limit
        return max(self.limit - self._spent() - held_back, 0.0)

    def _with_validations(self, seconds: float) -> float:
        return seconds + self._validation / self._validate_every


def _share(share: float) -> str:
    """Return a share, cut to its first digit."""
    digit = 10.0 ** math.floor(math.log10(share))
    return f"{math.floor(share / digit + 1e-9) * digit:g}"
