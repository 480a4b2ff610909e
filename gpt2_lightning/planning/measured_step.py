"""How long this machine takes for a step: a few of them, taken and timed."""

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.errors import UsageError
from gpt2_lightning.model.causal_lm import Architecture
from gpt2_lightning.model.module import GPT2Module
from gpt2_lightning.model.sampling import SamplingOptions
from gpt2_lightning.storage import scratch_folder

WARM_UP, MEASURED = 2, 3  # steps of one micro-batch each


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
    changed = {"warmup_steps": 0, "schedule_steps": WARM_UP + MEASURED}
    architecture = Architecture(**model["architecture"])
    sampling = SamplingOptions(**model["sampling"])
    module = GPT2Module(**{**model, **changed, "architecture": architecture, "sampling": sampling})
    clock = _Clock()
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "gpt2_lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:  # what is said of a run is not true of these few steps
        logger.setLevel(logging.ERROR)
    try:
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
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
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
