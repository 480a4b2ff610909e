"""What people get wrong, found before anything is spent."""

from datetime import timedelta
from typing import Any

from lightning.pytorch.callbacks import Timer

from gpt2_lightning.planning.disk import Disk
from gpt2_lightning.planning.duration import Duration
from gpt2_lightning.planning.setting import Setting
from gpt2_lightning.planning.steps import Steps
from gpt2_lightning.planning.usual_rate import usual_rate


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
        *_of_account(values.model, setting),
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
    reached = int(steps.steps * (seconds - validating) / (duration.whole[0] - validating))
    reached = max(reached, 0)
    return [
        f"--trainer.max_time {trainer.max_time}: it ends the run after some {reached:,} of "
        f"{steps.steps:,} steps, and the learning rate's schedule ends after {steps.schedule:,}. "
        f"--trainer.max_steps {max(reached, 1)} with --model.schedule_steps {max(reached, 1)} "
        "would end all together."
    ]


def _of_rate(model: Any, setting: Setting, steps: Steps) -> list[str]:
    scratch = model.pretrained is None and model.hf_config is None
    usual = usual_rate(setting.shape, steps.tokens_per_step, from_scratch=scratch)
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
    if name.startswith("bf16") and not setting.place.has_bf16:
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
    processes = setting.place.processes
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


def _of_account(model: Any, setting: Setting) -> list[str]:
    found = []
    if setting.shape.model_type != "gpt2":
        found.append(
            f"The model is of type {setting.shape.model_type}: its activations are counted as "
            "GPT-2's of the same shape, and may be more."
        )
    if model.compile:
        found.append("--model.compile: the account and the figures from FLOP/s are without it.")
    return found
