"""What makes a run fit and what people get wrong; disk space and usual learning rates."""

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Timer

from gpt2_lightning.plan.memory import FP32, Setting, estimate_memory
from gpt2_lightning.plan.shape import Shape, precision_of
from gpt2_lightning.plan.steps import Steps
from gpt2_lightning.plan.time import Duration, steps_within

FAR = 5.0  # times outside the usual range

# The transformers Trainer's default, at its language-modeling example's default batch of eight
# blocks of 1,024 tokens: https://github.com/huggingface/transformers/tree/main/examples/pytorch/
# language-modeling
TUNING_RATE, TUNING_TOKENS = 5e-5, 8 * 1024

# It found the best rate of an adapter to be some 10 times that of all weights, in short runs 15.
LORA_SOURCE = "Schulman and Thinking Machines Lab, LoRA Without Regret, 2025"

# The batch of the rule below.
SCRATCH_TOKENS = 2**19
ROOM = 0.9  # share of the memory that may be planned for: estimates are right to about a tenth


@dataclass(frozen=True)
class Disk:
    """Bytes of a run folder.

    Attributes:
        checkpoint: One checkpoint: weights and, unless left out, two running means for each.
        checkpoints: How many are kept: the best ones and the last.
        hf: The weights of hf/.
        peak: The most at any time: a checkpoint is written before the one that it replaces goes.
        free: Free bytes where the run folder comes to stand.
        folder: Where that is.
    """

    checkpoint: int
    checkpoints: int
    hf: int
    peak: int
    free: int
    folder: str

    @property
    def kept(self) -> int:
        """Bytes after the run."""
        return self.checkpoint * self.checkpoints + self.hf


def disk_of(setting: Setting, steps: Steps, checkpoint: Any, folder: Path) -> Disk:
    """Count what a run writes; curves, samples and the report take a few megabytes more.

    Args:
        setting: The run.
        steps: How far it goes.
        checkpoint: The flags of the checkpoints.
        folder: The logger's folder, which may not be there yet.
    """
    numbers = 1 if checkpoint.save_weights_only else 3
    one = numbers * setting.precision.weights * sum(setting.shape.trained)
    best = int(checkpoint.save_top_k)
    best = steps.validations if best < 0 else min(best, steps.validations)
    kept = best + bool(checkpoint.save_last) if setting.saves else 0
    hf = FP32 * setting.shape.parameters if setting.exports else 0
    there = folder.expanduser().resolve()
    while not there.exists():
        there = there.parent
    return Disk(
        checkpoint=one if setting.saves else 0,
        checkpoints=kept,
        hf=hf,
        peak=one * (kept + (1 if kept else 0)) + hf,
        free=shutil.disk_usage(there).free,
        folder=str(folder),
    )


@dataclass(frozen=True)
class UsualRate:
    """A range of peak learning rates.

    Attributes:
        low: Lower end.
        high: Upper end.
        rule: Where it comes from, in words.
    """

    low: float
    high: float
    rule: str

    def __str__(self) -> str:
        low, high = f"{self.low:.1e}", f"{self.high:.1e}"
        return low if low == high else f"{low} to {high}"

    def is_far(self, rate: float) -> bool:
        """Tell whether a rate lies far outside."""
        return not self.low / FAR <= rate <= self.high * FAR


def usual_rate(shape: Shape, tokens_per_step: int, *, from_scratch: bool) -> UsualRate:
    """Return the range between a known rate as it is, and scaled to the batch.

    Adam's rate goes with the square root of the batch: Malladi et al., "On the SDEs and Scaling
    Rules for Adaptive Gradient Algorithms", https://arxiv.org/abs/2205.10287. Small batches are
    often trained at the unscaled rate, so that both ends count as usual. The known rate is that
    of the transformers Trainer for fine-tuning; from scratch 0.003239 - 0.0001395 ln N for N
    parameters outside the embeddings and batches of 2^19 tokens: Kaplan et al., "Scaling Laws for
    Neural Language Models", https://arxiv.org/abs/2001.08361, appendix D.6.

    Args:
        shape: The model.
        tokens_per_step: Positions in an optimizer step.
        from_scratch: Whether it starts from random weights.
    """
    if from_scratch:
        count = max(shape.layers * shape.layer_parameters, 1)
        known, tokens = max(0.003239 - 0.0001395 * math.log(count), 1e-5), SCRATCH_TOKENS
        name = "Kaplan et al. (2020) for a model of this size"
    else:
        known, tokens = TUNING_RATE, TUNING_TOKENS
        name = "the transformers Trainer's default for fine-tuning"
    scaled = known * math.sqrt(tokens_per_step / tokens)
    return UsualRate(
        min(known, scaled),
        max(known, scaled),
        f"{name}, {known:.1e} at {tokens:,} tokens a step, as it is or scaled by the square root "
        f"of the batch (Malladi et al., 2022) to {scaled:.1e}",
    )


@dataclass(frozen=True)
class Advice:
    """A change that leaves the training as it is, or nearly so.

    Attributes:
        flags: To add or to change.
        needed: Bytes that each device then needs.
        fits: Whether it has them.
    """

    flags: str
    needed: int
    fits: bool


def fits(needed: int, memory: int) -> bool:
    """Tell whether a device has what is needed, with room for what is not counted."""
    return needed <= ROOM * memory


def advice(setting: Setting) -> list[Advice]:
    """Return single changes, each with what it brings; where none is enough, several together.

    Args:
        setting: The run that does not fit.
    """
    memory = setting.hardware.memory
    assert memory is not None

    def with_flags(flags: str, changed: Setting) -> Advice:
        needed = estimate_memory(changed).needed
        return Advice(flags, needed, fits(needed, memory))

    before = estimate_memory(setting).needed
    single = [with_flags(flags, changed) for flags, changed in _changes(setting)]
    found = [it for it in single if it.needed < before]
    if any(it.fits for it in found):
        return found
    flags, changed = [], setting
    for change in ("checkpointing", "batch", "fsdp", "bf16"):
        step = next((it for it in _changes(changed, only=change)), None)
        if step is None or estimate_memory(step[1]).needed >= estimate_memory(changed).needed:
            continue
        flags.append(step[0])
        changed = step[1]
        if len(flags) > 1:
            together = with_flags(" ".join(flags), changed)
            found.append(together)
            if together.fits:
                break
    return found


def _changes(setting: Setting, only: str | None = None) -> Iterator[tuple[str, Setting]]:
    hardware, memory = setting.hardware, setting.hardware.memory
    assert memory is not None
    if only in (None, "checkpointing") and not setting.checkpointing:
        yield (
            "--model.gradient_checkpointing true",
            replace(setting, checkpointing=True),
        )
    if only in (None, "batch"):
        smaller = [
            setting.with_micro_batch(size)
            for size in range(setting.batch_size - 1, 0, -1)
            if (setting.batch_size * setting.accumulate) % size == 0
        ]
        enough = (it for it in smaller if fits(estimate_memory(it).needed, memory))
        if smaller:
            chosen = next(enough, smaller[-1])  # the largest that fits, else the smallest
            yield (
                f"--data.batch_size {chosen.batch_size} "
                f"--trainer.accumulate_grad_batches {chosen.accumulate}",
                chosen,
            )
    if only in (None, "fsdp") and hardware.strategy == "ddp" and hardware.accelerator == "cuda":
        yield (
            "--config scale/fsdp",
            replace(setting, hardware=hardware.with_strategy("fsdp")),
        )
    if only in (None, "bf16") and setting.precision.name == "32-true" and hardware.has_bf16:
        yield (
            "--trainer.precision bf16-mixed",
            replace(setting, precision=precision_of("bf16-mixed")),
        )


def caveats(
    values: Any, setting: Setting, steps: Steps, disk: Disk, duration: Duration | None
) -> list[str]:
    """Return warnings, each with what would mend it.

    Args:
        values: The flags of `fit`.
        setting: The run.
        steps: How far it goes.
        disk: What it writes.
        duration: How long it takes, where that is known.
    """
    return [
        *_of_schedule(values.model, steps),
        *_of_time(values.trainer, steps, duration),
        *_of_rate(values.model, setting, steps),
        *_of_blocks(setting, steps),
        *_of_precision(setting),
        *_of_validation(values.trainer, steps),
        *_of_devices(values.trainer, setting),
        *_of_disk(disk),
        *_of_estimates(values.model, setting),
    ]


def _of_schedule(model: Any, steps: Steps) -> list[str]:
    found = []
    if model.warmup_steps >= steps.schedule > 0:
        found.append(
            f"--model.warmup_steps {model.warmup_steps}: the schedule has only {steps.schedule:,} "
            "steps, and fit refuses this. "
            f"--model.warmup_steps {steps.schedule // 10} would work."
        )
    elif model.warmup_steps >= steps.steps > 0:
        found.append(
            f"--model.warmup_steps {model.warmup_steps}: the run ends after {steps.steps:,} steps, "
            "before the learning rate is at its peak. "
            f"--model.warmup_steps {steps.steps // 10} would work."
        )
    if steps.steps < steps.schedule:
        found.append(
            f"The run ends after {steps.steps:,} steps, and the learning rate's schedule after "
            f"{steps.schedule:,}: it never comes down. --model.schedule_steps {steps.steps} would "
            "end both together."
        )
    return found


def _of_time(trainer: Any, steps: Steps, duration: Duration | None) -> list[str]:
    seconds = Timer(trainer.max_time).time_remaining()
    if seconds is None or duration is None or duration.whole[0] <= seconds:
        return []
    # the validations before training and at its end are made however short the time is
    micro_batches = steps.baseline_micro_batches + steps.validation_micro_batches
    all_of_them = steps.baseline_micro_batches + steps.validations * steps.validation_micro_batches
    validating = duration.validation[0] * micro_batches / all_of_them if all_of_them else 0.0
    if seconds and validating > seconds / 2:
        fewer = max(1, int(steps.validation_micro_batches * seconds / 10 / validating))
        return [
            f"--trainer.max_time {trainer.max_time}: the validations before training and at the "
            f"end take about {timedelta(seconds=round(validating))}. "
            f"--trainer.limit_val_batches {fewer} shortens them."
        ]
    reached = steps_within(seconds, steps, duration)
    return [
        f"--trainer.max_time {trainer.max_time}: it ends the run after some {reached:,} of "
        f"{steps.steps:,} steps, and the learning rate's schedule ends after {steps.schedule:,}. "
        f"--trainer.max_steps {max(reached, 1)} with --model.schedule_steps {max(reached, 1)} "
        "would end all together."
    ]


def _of_rate(model: Any, setting: Setting, steps: Steps) -> list[str]:
    scratch = model.pretrained is None and model.hf_config is None
    usual = usual_rate(setting.shape, steps.tokens_per_step, from_scratch=scratch)
    if setting.shape.adapter:
        rule = f"10 times that of all weights for LoRA ({LORA_SOURCE}): {usual.rule}"
        usual = UsualRate(10 * usual.low, 10 * usual.high, rule)
    if not usual.is_far(model.learning_rate):
        return []
    return [
        f"--model.learning_rate {model.learning_rate:g}: with {steps.tokens_per_step:,} tokens a "
        f"step, {usual} is usual ({usual.rule})."
    ]


def _of_blocks(setting: Setting, steps: Steps) -> list[str]:
    found = []
    if setting.block_size > setting.shape.positions:
        found.append(
            f"--data.block_size {setting.block_size}: the model has {setting.shape.positions:,} "
            "positions, and fit refuses this. "
            f"--data.block_size {setting.shape.positions} would work."
        )
    if steps.training_blocks < steps.blocks_per_step:
        found.append(
            f"A step takes {steps.blocks_per_step:,} blocks, and the training split has "
            f"{steps.training_blocks:,}: an epoch is one step, filled up with masked blocks. Give "
            "a smaller --data.batch_size, --trainer.accumulate_grad_batches or --data.block_size."
        )
    return found


def _of_precision(setting: Setting) -> list[str]:
    name = setting.precision.name
    if name.startswith("bf16") and not setting.hardware.has_bf16:
        return [
            f"--trainer.precision {name}: this device has no instructions for bf16, and takes many "
            "times as long as in fp32. "
            + ("16-mixed" if not setting.on_cpu else "32-true")
            + " would work."
        ]
    if name not in ("bf16-true", "16-true"):
        return []
    mixed = "bf16-mixed" if name == "bf16-true" else "16-mixed"
    digits = "8" if name == "bf16-true" else "11"
    return [
        f"--trainer.precision {name}: the weights themselves are in half precision, of {digits} "
        "significant bits, and most updates are too small to change them. "
        f"--trainer.precision {mixed} keeps them in fp32 (Micikevicius et al., "
        "https://arxiv.org/abs/1710.03740, section 3.1)."
    ]


def _of_validation(trainer: Any, steps: Steps) -> list[str]:
    interval, by_epoch = trainer.val_check_interval, trainer.check_val_every_n_epoch
    parts = int(trainer.accumulate_grad_batches)
    whole = isinstance(interval, int | float) and interval == int(interval) and interval > 1
    interval = int(interval) if whole else interval
    if whole and interval % parts:
        near = max(parts, interval // parts * parts)
        return [
            f"--trainer.val_check_interval {interval}: it counts micro-batches, an optimizer step "
            f"takes {parts} of them, and fit refuses this. --trainer.val_check_interval {near} "
            "would work."
        ]
    if whole and by_epoch is not None and interval > steps.micro_batches:
        return [
            f"--trainer.val_check_interval {interval}: an epoch has only {steps.micro_batches:,} "
            "micro-batches, and fit refuses this. Add --trainer.check_val_every_n_epoch null to "
            "count over the epochs, or give a share such as 0.5."
        ]
    if steps.validation_micro_batches and steps.steps and not steps.validations_at_own_interval:
        asked = (
            f"--trainer.val_check_interval {interval}"
            if interval is not None
            else f"--trainer.check_val_every_n_epoch {by_epoch}"
        )
        return [
            f"{asked}: the run has {steps.steps:,} steps ({steps.epochs:.2g} epochs), so that "
            "this interval never comes, and only its end is validated: no best checkpoint among "
            "several, and no curve. Give a smaller one."
        ]
    return []


def _of_devices(trainer: Any, setting: Setting) -> list[str]:
    if str(trainer.devices) not in ("auto", "-1") or setting.on_cpu:
        return []
    processes = setting.hardware.processes
    blocks = setting.batch_size * setting.accumulate
    return [
        f"--trainer.devices {trainer.devices}: the global batch is {blocks:,} blocks for each "
        f"device that is found, {blocks * processes:,} here. On another machine it is another run, "
        "and a checkpoint does not go on there. Name the number, and divide "
        "--trainer.accumulate_grad_batches by it."
    ]


def _of_disk(disk: Disk) -> list[str]:
    if disk.peak <= disk.free:
        return []
    return [
        f"The run writes {disk.peak / 1e9:.1f} GB to {disk.folder}, which has "
        f"{disk.free / 1e9:.1f} GB free. --checkpoint.save_top_k 0 keeps the last checkpoint "
        "alone; --trainer.logger.init_args.save_dir puts the run elsewhere."
    ]


def _of_estimates(model: Any, setting: Setting) -> list[str]:
    found = []
    if setting.shape.model_type != "gpt2":
        found.append(
            f"The model is of type {setting.shape.model_type}: its activations are counted as "
            "GPT-2's of the same shape, and may be more."
        )
    if model.compile:
        found.append(
            "--model.compile: the estimate of memory and the figures from FLOP/s are without it."
        )
    return found
