"""Steps whose loss or gradients are infinite or not a number: they end the run, or are left out."""

import logging
from dataclasses import dataclass
from typing import Literal

from lightning.pytorch import Trainer

from gpt2_lightning.errors import UsageError

log = logging.getLogger(__name__)

MOST_SKIPPED = 10  # steps in a row; more than a bad batch or two, it is the weights


class NotFinite(UsageError):
    """Ends a run whose loss or gradients have become infinite or not a number."""


@dataclass
class NonfiniteSteps:
    """What is done about such steps, and how many there were.

    Attributes:
        action: ``--model.on_nonfinite``.
        learning_rate: The peak, for messages.
        skipped: Steps left out since the run began.
        in_a_row: Of these, the newest without another between them.
    """

    action: Literal["stop", "skip"]
    learning_rate: float
    skipped: int = 0
    in_a_row: int = 0

    def leave_out(self, trainer: Trainer, step: int, norm: float, loss: float, rate: float) -> None:
        """Count a step that is left out, unless the run ends with it.

        Args:
            trainer: The trainer.
            step: The step, from 1.
            norm: Of its gradients.
            loss: Its loss, in nats per token.
            rate: Its learning rate.

        Raises:
            NotFinite: If such steps end the run, or were too many in a row.
        """
        what = f"the gradient norm is {norm} (train/loss {loss:.4g}, learning rate {rate:.3g})"
        if self.action == "stop":
            raise NotFinite(
                f"step {step:,}: {what}. The step was not taken. {self.remedies(trainer)} "
                "--model.on_nonfinite skip leaves such steps out, with --ckpt_path last too."
            )
        self.in_a_row += 1
        if self.in_a_row == MOST_SKIPPED:
            raise NotFinite(
                f"step {step:,}: {what}, in {MOST_SKIPPED} steps in a row. --model.on_nonfinite "
                "skip leaves out no more: the data or the weights themselves are at fault. "
                f"{self.remedies(trainer)}"
            )
        if self.skipped == 0:
            log.warning(
                "Step %s is left out: %s. train/skipped_steps counts such steps.", f"{step:,}", what
            )
        self.skipped += 1

    def remedies(self, trainer: Trainer) -> str:
        """Say what may keep loss and gradients finite."""
        ways = [f"a --model.learning_rate below {self.learning_rate:g}"]
        if not trainer.gradient_clip_val:
            ways.append("--trainer.gradient_clip_val 1.0")
        if trainer.precision != "32-true":
            ways.append("--trainer.precision 32-true")
        return f"Try in a new run: {', or '.join(ways)}."
