"""What is refused before anything is built: flags that contradict the machine or a checkpoint."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Timer

from gpt2_lightning.errors import UsageError

# What a checkpoint's run may change without changing its losses.
FREE_TO_CHANGE = {
    # the schedule's length is compared as such, when it is known
    "model": {
        "attention",
        "compile",
        "gradient_checkpointing",
        "sampling",
        "schedule_steps",
        "hf_config",
    },
    "data": {"prompts", "cache_dir", "tokenizer", "tokenizer_revision", "vocab_size"},
}

# Settings of the model -> the least value that makes sense, and the greatest, if there is one.
RANGES: dict[str, tuple[float, float | None]] = {
    "learning_rate": (0, None),
    "weight_decay": (0, None),
    "warmup_steps": (0, None),
    "schedule_steps": (1, None),
    "dropout": (0, 1),
    "attention_dropout": (0, 1),
    "architecture.layers": (1, None),
    "architecture.heads": (1, None),
    "architecture.width": (1, None),
    "architecture.positions": (1, None),
    "architecture.dropout": (0, 1),
}


def check_numbers(model: Any) -> None:
    """Refuse settings of the model that are out of range.

    Raises:
        UsageError: If one is.
    """
    for name, (least, greatest) in RANGES.items():
        value = model[name]
        if value is None or (value >= least and (greatest is None or value <= greatest)):
            continue  # what is no number is out of range
        wanted = f"{least} or more" if greatest is None else f"from {least} to {greatest}"
        raise UsageError(f"--model.{name} {value}: it has to be {wanted}.")
    if not all(0 <= beta < 1 for beta in model.betas):
        first, second = model.betas
        raise UsageError(
            f"--model.betas [{first}, {second}]: both have to be from 0 to below 1. Try [0.9, 0.95]"
        )


def check_unused(typed: list[str], pretrained: str) -> None:
    """Refuse typed flags that say how a model from scratch is built, where there are weights.

    Raises:
        UsageError: If there is one.
    """
    for word in typed:
        flag = word.partition("=")[0]
        if flag.startswith("--model.architecture.") or flag == "--data.vocab_size":
            raise UsageError(
                f"{flag}: --model.pretrained {pretrained} brings its own. Leave the flag out, or "
                "give --model.pretrained null to start from scratch."
            )


def whole_number(seed: Any) -> int:
    """Refuse a seed that is drawn anew in every process.

    Raises:
        UsageError: If it is no whole number.
    """
    if isinstance(seed, bool):
        raise UsageError(
            f"--seed_everything {str(seed).lower()}: give a whole number, so that the run can be "
            "repeated and resumed."
        )
    return int(seed)


def check_precision(trainer: Any) -> None:
    """Refuse a precision that the device does not have.

    Raises:
        UsageError: If Lightning would take another one.
    """
    precision = str(trainer.precision)
    on_cpu = trainer.accelerator == "cpu" or (
        trainer.accelerator == "auto"
        and not torch.cuda.is_available()
        and not torch.backends.mps.is_available()
    )
    if on_cpu and precision in ("16", "16-mixed", "16-true"):
        raise UsageError(
            f"--trainer.precision {precision}: fp16 needs a GPU, and this run is on a CPU, where "
            "Lightning would take bf16 without a word. --trainer.precision bf16-mixed would work, "
            "or 32-true."
        )


def check_accelerator(asked: Any) -> None:
    """Refuse a GPU where there is none.

    Raises:
        UsageError: If there is none.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    there["gpu"] = any(there.values())
    if not there.get(str(asked), True):
        raise UsageError(
            f"--trainer.accelerator {asked}: torch finds none on this machine. "
            "--trainer.accelerator auto takes what there is."
        )


def check_max_time(asked: Any) -> None:
    """Refuse a duration that cannot be read.

    Raises:
        UsageError: If it is none.
    """
    try:
        Timer(asked)
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise UsageError(
            f"--trainer.max_time {asked}: days, hours, minutes and seconds are expected, as "
            "DD:HH:MM:SS. 00:01:30:00 is an hour and a half."
        ) from error


def refuse_changes(group: str, given: Any, trained: dict[str, Any], file: Path) -> None:
    """Refuse flags that would make a run that goes on another run.

    Args:
        group: ``model`` or ``data``.
        given: Its flags.
        trained: What they were in the checkpoint.
        file: The checkpoint.

    Raises:
        UsageError: If one has changed.
    """
    given = given.as_dict()
    for name, before in trained.items():
        if name in FREE_TO_CHANGE[group] or name not in given:
            continue
        now = list(given[name]) if isinstance(given[name], tuple) else given[name]
        if now != before:
            flag = "--seed_everything" if name == "seed" else f"--{group}.{name}"
            raise UsageError(
                f"{flag} {now}: {file} was trained with {before}, and going on with "
                f"another value would be another run. Leave the flag out, or start a new run "
                f"from the weights: --model.pretrained {file.parent.parent / 'hf'}."
            )
