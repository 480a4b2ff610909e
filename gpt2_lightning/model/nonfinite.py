"""Steps whose loss or gradients are infinite or not a number: they end the run, or are left out."""

import logging
import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from gpt2_lightning.errors import UsageError

log = logging.getLogger(__name__)

MOST_SKIPPED = 10  # steps in a row; more than a bad batch or two, it is the weights


class NotFinite(UsageError):
    """Ends a run whose loss or gradients have become infinite or not a number."""


@dataclass
class StepNorm:
    """The norm of a step's gradients, and what is said of the step should it not be finite.

    From a GPU it comes while the next step is computed, so that the host need not wait.

    Attributes:
        step: The step, from 1.
        value: The norm, a scalar; of all ranks.
        nats: Of the step's targets, of this rank.
        targets: Of the step, of all ranks.
        rate: Its learning rate.
    """

    step: int
    value: Tensor
    nats: Tensor
    targets: int
    rate: float

    def __post_init__(self) -> None:
        """Send the norm on its way."""
        self._arrives: torch.cuda.Event | None = None
        if self.value.is_cuda:
            self.value = self.value.to("cpu", non_blocking=True)  # to pinned memory
            self._arrives = torch.cuda.Event()
            self._arrives.record()

    def read(self) -> float:
        """Return the norm, when it has come."""
        if self._arrives is not None:
            self._arrives.synchronize()
        return float(self.value)


def skips_itself(module: LightningModule, optimizer: Optimizer, norm: Tensor) -> bool:
    """Let the optimizer leave the step out where its gradients are not finite, if it can.

    Fused AdamW looks at ``found_inf`` on the device, as GradScaler would set it: such a step
    changes neither weights nor states, and the host may learn of it later.

    Args:
        module: Which is trained.
        optimizer: The one that is about to take the step.
        norm: Of its gradients.

    Returns:
        Whether it can.
    """
    is_fused = isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["fused"]
    if not (waits_for(module.device) and is_fused and module.device_mesh is None):
        return False
    cast(Any, optimizer).found_inf = norm.isfinite().logical_not().float()
    return True


def waits_for(device: torch.device) -> bool:
    """Tell whether the host would have to wait for a number that is computed on a device."""
    return device.type == "cuda"


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

    def leaves_out(self, trainer: Trainer, norm: StepNorm) -> bool:
        """Count a step whose gradients are not finite; all ranks come here with the same norm.

        Args:
            trainer: The trainer.
            norm: Of the step's gradients.

        Returns:
            Whether the step is left out.

        Raises:
            NotFinite: If such steps end the run, or were too many in a row.
        """
        value = norm.read()
        if math.isfinite(value):
            self.in_a_row = 0
            return False
        total = cast(Tensor, trainer.strategy.reduce(norm.nats, reduce_op="sum"))
        loss = float(total) / norm.targets
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if scaled and math.isfinite(loss):
            return False  # fp16's scaler finds it too: it leaves the step out and lowers its scale
        self._leave_out(trainer, norm.step, value, loss, norm.rate)
        return True

    def _leave_out(
        self, trainer: Trainer, step: int, norm: float, loss: float, rate: float
    ) -> None:
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
