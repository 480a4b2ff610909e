"""How long a run takes: a few steps, taken and timed, and a range of seconds."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.errors import UsageError
from gpt2_lightning.model.gpt2 import Architecture
from gpt2_lightning.model.lora import Lora
from gpt2_lightning.model.module import GPT2Module
from gpt2_lightning.model.sampling import SamplingOptions
from gpt2_lightning.plan.memory import Setting
from gpt2_lightning.plan.steps import Steps
from gpt2_lightning.storage import scratch_folder

WARM_UP, MEASURED = 2, 3  # steps of one micro-batch each


# Shares of its peak rate that a device has reached in training: GPT-3's and PaLM's, table 3 of
# Chowdhery et al., https://arxiv.org/abs/2204.02311. A small batch may stay below.
UTILIZATION = (0.213, 0.462)


@dataclass(frozen=True)
class MeasuredStep:
    """Seconds on this machine, each the median, the least and the most of a few.

    Attributes:
        micro_batch: Forward and backward pass of a micro-batch.
        update: Clipping and the optimizer's step.
        validation: A micro-batch of validation.
    """

    micro_batch: tuple[float, float, float]
    update: tuple[float, float, float]
    validation: tuple[float, float, float]


def measure_step(model: Mapping[str, Any], data: WikiTextDataModule, trainer: Any) -> MeasuredStep:
    """Train for a few steps of one micro-batch on one device, and keep nothing.

    Args:
        model: The flags of the model.
        data: The datamodule, of this run.
        trainer: The flags of the trainer, of which accelerator, precision and clipping are taken.

    Raises:
        UsageError: If the text is too short, or the model cannot be built.
    """
    if len(data.train_dataloader()) < WARM_UP + MEASURED:
        raise UsageError(
            f"--measure: it takes {WARM_UP + MEASURED} micro-batches, and the training split has "
            f"{len(data.train_dataloader())}. Leave it out, or give a smaller --data.batch_size."
        )
    # a schedule of these few steps would be shorter than the warm-up
    changed = {"warmup_steps": 0, "schedule_steps": WARM_UP + MEASURED, "schedule_changes": None}
    architecture = Architecture(**model["architecture"])
    sampling = SamplingOptions(**model["sampling"])
    parts = {"architecture": architecture, "sampling": sampling, "lora": Lora(**model["lora"])}
    module = GPT2Module(**{**model, **changed, **parts})
    clock = _Clock()
    with scratch_folder() as folder:
        Trainer(
            accelerator=trainer.accelerator,
            devices=1,
            precision=trainer.precision,
            gradient_clip_val=trainer.gradient_clip_val,
            gradient_clip_algorithm=trainer.gradient_clip_algorithm,
            max_steps=WARM_UP + MEASURED,
            limit_train_batches=WARM_UP + MEASURED,
            limit_val_batches=WARM_UP + MEASURED,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[clock],
        ).fit(module, data)
    return MeasuredStep(
        _summary(clock.micro_batches), _summary(clock.updates), _summary(clock.validations, 1)
    )


def _summary(seconds: list[float], warm_up: int = WARM_UP) -> tuple[float, float, float]:
    kept = sorted(seconds[warm_up:] or seconds)
    if not kept:  # a split of no batches
        return (math.nan,) * 3
    return kept[len(kept) // 2], kept[0], kept[-1]


class _Clock(Callback):
    """Seconds of each part of a step."""

    def __init__(self) -> None:
        self.micro_batches: list[float] = []
        self.updates: list[float] = []
        self.validations: list[float] = []
        self._at = 0.0

    def _lap(self, module: LightningModule) -> float:
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        now = time.perf_counter()
        self._at, before = now, self._at
        return now - before

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any
    ) -> None:
        """Begin."""
        self._lap(pl_module)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any
    ) -> None:
        """End forward and backward pass."""
        self.micro_batches.append(self._lap(pl_module))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """End the step."""
        self.updates.append(self._lap(pl_module))

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any
    ) -> None:
        """Begin."""
        self._lap(pl_module)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any
    ) -> None:
        """End."""
        self.validations.append(self._lap(pl_module))


@dataclass(frozen=True)
class Duration:
    """Seconds; each a likely figure, the least and the most.

    Attributes:
        step: An optimizer step.
        epoch: Training of an epoch.
        training: Training in all.
        validation: All validations, with the one before training.
        source: What the figures follow from.
    """

    step: tuple[float, float, float]
    epoch: tuple[float, float, float]
    training: tuple[float, float, float]
    validation: tuple[float, float, float]
    source: str

    @property
    def whole(self) -> tuple[float, float, float]:
        """Training and validations; samples and the writing of files are not counted."""
        training, validation = self.training, self.validation
        return (
            training[0] + validation[0],
            training[1] + validation[1],
            training[2] + validation[2],
        )


def from_measured(measured: MeasuredStep, setting: Setting, steps: Steps) -> Duration:
    """Return what a run takes at the speed of a few steps on this machine.

    Args:
        measured: Their times.
        setting: The run.
        steps: How far it goes.
    """
    parts = setting.accumulate
    pairs = zip(measured.micro_batch, measured.update, strict=True)
    step = [parts * micro + update for micro, update in pairs]
    micro_batches = _validation_micro_batches(steps)
    validation = [
        seconds * micro_batches if micro_batches else 0.0 for seconds in measured.validation
    ]
    return _duration(step, validation, steps, "steps measured on this machine")


def from_rate(rate: float, source: str, setting: Setting, steps: Steps) -> Duration:
    """Return what a run takes at a device's peak rate and the usual share of it.

    Forward and backward pass take ``flops_per_token`` for each position; gradient checkpointing a
    third of that more, for a second forward pass; validation a third.

    Args:
        rate: Peak rate of matrix products in the run's precision, in operations/s.
        source: Where it comes from.
        setting: The run.
        steps: How far it goes.
    """
    flops = setting.shape.flops_per_token * setting.rows
    again = 4 / 3 if setting.checkpointing else 1.0
    least, most = UTILIZATION
    shares = ((least * most) ** 0.5, most, least)
    step = [setting.accumulate * flops * again / (rate * share) for share in shares]
    micro_batches = _validation_micro_batches(steps)
    validation = [micro_batches * flops / 3 / (rate * share) for share in shares]
    return _duration(step, validation, steps, source)


def steps_within(seconds: float, steps: Steps, duration: Duration) -> int:
    """Return the steps that fit a time, beside the validations that are made however short it is.

    Args:
        seconds: The time.
        steps: Of a run.
        duration: Of that run.
    """
    all_of_them = _validation_micro_batches(steps)
    needed = steps.baseline_micro_batches + steps.validation_micro_batches
    validating = duration.validation[0] * needed / all_of_them if all_of_them else 0.0
    within = (seconds - validating) / (duration.whole[0] - validating)
    return max(int(steps.steps * within), 0)


def _validation_micro_batches(steps: Steps) -> int:
    return steps.baseline_micro_batches + steps.validations * steps.validation_micro_batches


def _duration(step: list[float], validation: list[float], steps: Steps, source: str) -> Duration:
    def times(seconds: list[float], count: int) -> tuple[float, float, float]:
        return seconds[0] * count, seconds[1] * count, seconds[2] * count

    return Duration(
        step=times(step, 1),
        epoch=times(step, steps.steps_per_epoch),
        training=times(step, steps.steps),
        validation=times(validation, 1),
        source=source,
    )
