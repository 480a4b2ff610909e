"""Flags against the machine: what it cannot do is refused, what `auto` means is chosen for it.

And the flags that come from its environment.
"""

import logging
import os
import statistics
import time
from importlib.util import find_spec
from inspect import signature
from typing import Any, cast

import torch
import yaml
from lightning.pytorch import Trainer
from torch import Tensor

from gpt2_lightning.errors import UsageError
from gpt2_lightning.model.gpt2 import Architecture
from gpt2_lightning.pretrained import load_config

log = logging.getLogger(__name__)

PREFIX = "PL_TRAINER_"  # of variables that stand for flags of the trainer

# What `--trainer.strategy fsdp2` stands for. Lightning has no name for its own.
FSDP2 = "gpt2_lightning.fit.sharding.FSDP2Strategy"

SHARDED_PRECISIONS = ("auto", "32-true", "32", "bf16-mixed", "bf16-true")

# Products in bf16 have to be so many times as quick as in fp32: beside them a step has norms,
# attention and the optimizer, which bf16-mixed leaves in fp32, and it casts the weights.
WORTHWHILE = 1.5

SHORT = 100  # optimizer steps that compilation, of half a minute and more, does not pay for

TRITON_CAPABILITY = (7, 0)  # the oldest GPUs for which Triton compiles


def check_precision(trainer: Any) -> None:
    """Refuse a precision that the device or the strategy does not have.

    Args:
        trainer: Its settings, after `check_strategy`.

    Raises:
        UsageError: If Lightning would take another one.
    """
    precision, strategy = str(trainer.precision), trainer.strategy
    if precision.startswith("transformer-engine"):
        raise UsageError(
            f"--trainer.precision {precision}: it replaces torch's Linear layers, and GPT-2 has "
            "none but its head. --trainer.precision bf16-mixed works."
        )
    if accelerator_of(trainer) == "cpu" and precision in ("16", "16-mixed", "16-true"):
        raise UsageError(
            f"--trainer.precision {precision}: fp16 needs a GPU, and this run is on a CPU, where "
            "Lightning would take bf16 without a word. --trainer.precision bf16-mixed would work, "
            "or 32-true."
        )
    sharded = not isinstance(strategy, str) and strategy.class_path == FSDP2
    if sharded and trainer.precision is not None and precision not in SHARDED_PRECISIONS:
        raise UsageError(
            f"--trainer.precision {precision}: --trainer.strategy fsdp2 works with "
            f"{', '.join(SHARDED_PRECISIONS)}."
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


def accelerator_of(trainer: Any) -> str:
    """Return where `--trainer.accelerator` puts a run on this machine: cpu, cuda, mps, or its word.

    Args:
        trainer: The flags of the trainer.
    """
    if str(trainer.accelerator) not in ("auto", "gpu"):
        return str(trainer.accelerator)
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


# --- what auto means --------------------------------------------------------------------------


def settle(settings: Any) -> None:
    """Put what is chosen for this machine in the place of ``auto``, and say so in a line.

    Args:
        settings: The flags of `fit`, filled in; changed in place.

    Raises:
        UsageError: If the model whose size decides is not there.
    """
    trainer, model = settings.trainer, settings.model
    chosen = []
    if trainer.precision == "auto":
        trainer.precision, reason = precision_for(accelerator_of(trainer), trainer, model)
        chosen.append(f"--trainer.precision {trainer.precision} ({reason})")
    if model.compile == "auto":
        model.compile, reason = compile_for(accelerator_of(trainer), trainer)
        chosen.append(f"--model.compile {str(model.compile).lower()} ({reason})")
    if accelerator_of(trainer) == "cuda" and torch.get_float32_matmul_precision() == "highest":
        chosen.append("products in fp32 without TF32 (torch's own choice)")
    if chosen:
        log.info("Chosen for this machine: %s.", ", ".join(chosen))


def settle_elsewhere(settings: Any, *, accelerator: str, has_bf16: bool) -> None:
    """Put what would be chosen for another machine in the place of ``auto``.

    Args:
        settings: The flags of `fit`, filled in; changed in place.
        accelerator: ``cpu``, ``cuda`` or another.
        has_bf16: Whether it has instructions for bf16.
    """
    if settings.trainer.precision == "auto":
        settings.trainer.precision = "bf16-mixed" if has_bf16 else "32-true"
    if settings.model.compile == "auto":
        settings.model.compile = accelerator == "cuda"


def precision_for(accelerator: str, trainer: Any, model: Any) -> tuple[str, str]:
    """Choose the precision of training: bf16-mixed where it is worth it, else fp32.

    On a CPU, products of the model's size are timed in both types. Several processes, which would
    disturb each other's timing, go by the processor's instructions, and so agree.

    Args:
        accelerator: ``cpu``, ``cuda``, ``mps`` or another.
        trainer: The flags of the trainer.
        model: The flags of the model.

    Returns:
        Lightning's name for it, and the reason.
    """
    if accelerator == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
        reason = f"{torch.cuda.get_device_name()} {'multiplies' if has else 'does not multiply'}"
        return "bf16-mixed" if has else "32-true", f"{reason} in bf16"
    if accelerator != "cpu":
        return "32-true", f"on {accelerator}"
    if str(trainer.devices) not in ("auto", "1") or int(trainer.num_nodes) > 1:
        has = cpu_has_bf16()
        reason = f"the processor has {'' if has else 'no '}instructions for bf16"
        return "bf16-mixed" if has else "32-true", reason
    speedup = bf16_speedup(_width(model))
    reason = f"matrix products in bf16 are {speedup:.2g} times as quick as in fp32"
    return "bf16-mixed" if speedup >= WORTHWHILE else "32-true", reason


def compile_for(accelerator: str, trainer: Any) -> tuple[bool, str]:
    """Choose whether the transformer is compiled: where a GPU has Triton, and a run is no trial.

    On CPUs GPT-2 124M, 2 x 1024 tokens, became 8 % quicker in fp32 and 18 % slower in bf16 on one
    with AVX512-BF16, and 9 % slower in fp32 on one with AVX2, after a minute of compilation.

    Args:
        accelerator: ``cpu``, ``cuda``, ``mps`` or another.
        trainer: The flags of the trainer.

    Returns:
        The choice, and the reason.
    """
    if accelerator != "cuda":
        return False, f"on {accelerator} it gains too little for the minute that it takes"
    if trainer.fast_dev_run or 0 < trainer.max_steps < SHORT:
        return False, f"fewer than {SHORT} steps"
    if find_spec("triton") is None or torch.cuda.get_device_capability() < TRITON_CAPABILITY:
        return False, "no Triton for this GPU"
    return True, "Triton"


def check_agreement(trainer: Trainer) -> None:
    """See that all processes train in one precision; `auto` on unlike machines may give two.

    Raises:
        UsageError: If they do not, in each of them.
    """
    if trainer.world_size == 1:
        return
    first = trainer.strategy.broadcast(trainer.precision)
    differs = torch.tensor(int(trainer.precision != first), device=trainer.strategy.root_device)
    if cast(Tensor, trainer.strategy.reduce(differs, reduce_op="max")):
        raise UsageError(
            f"--trainer.precision: rank 0 trains in {first}, and another process does not: their "
            f"machines differ. --trainer.precision {first} on all of them would work."
        )


def cpu_has_bf16() -> bool:
    """Tell whether the processor has instructions for products in bf16."""
    if not hasattr(torch.cpu, "get_capabilities"):  # torch 2.9, without public names for it
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    capabilities = torch.cpu.get_capabilities()
    return any(has for name, has in capabilities.items() if name.endswith("bf16"))


def bf16_speedup(width: int) -> float:
    """Time products of a model's size, in half a second.

    Args:
        width: Of the model's hidden states.

    Returns:
        How many times as quick as in fp32 they are in bf16.
    """
    ratio = 0.0
    for rows in (16, 256):  # few first: without instructions for bf16, many would take seconds
        seconds = []
        for dtype in (torch.float32, torch.bfloat16):
            left = torch.full((rows, width), 0.5, dtype=dtype)
            right = torch.full((width, 4 * width), 0.5, dtype=dtype)
            found = []
            for _ in range(4):
                start = time.perf_counter()
                left @ right
                found.append(time.perf_counter() - start)
            seconds.append(statistics.median(found[1:]))  # the first one warms up
        ratio = seconds[0] / seconds[1]
        if ratio < 1 / WORTHWHILE:
            break
    return ratio


def _width(model: Any) -> int:
    """Return the width of the model's hidden states."""
    if model.pretrained is None:
        return int(model.architecture.width)
    said = f"--model.pretrained {model.pretrained}"
    try:
        return int(load_config(model.pretrained, model.revision, said=said).hidden_size)
    except OSError:  # it is not there: loading the model says so
        return Architecture().width


def from_environment() -> list[tuple[str, str, str]]:
    """Return Lightning's ``PL_TRAINER_*`` variables: variable, flag of the trainer, value.

    Raises:
        UsageError: If there is no such flag.
    """
    found = []
    for variable, value in sorted(os.environ.items()):
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in signature(Trainer).parameters:
            raise UsageError(f"{variable}: there is no flag --trainer.{name}. Unset the variable.")
        found.append((variable, name, value))
    return found


def say_environment(trainer: Any) -> None:
    """Say which of those variables are taken, and which are overruled by a flag or a recipe.

    Args:
        trainer: The trainer's settings, as they were parsed.
    """
    for variable, name, value in from_environment():
        found = trainer[name]
        is_plain = found is None or isinstance(found, str | int | float)
        if is_plain and found != yaml.safe_load(value) and str(found) != value:
            log.info("%s=%s: overruled by --trainer.%s %s.", variable, value, name, found)
        else:
            log.info("%s=%s: taken for --trainer.%s.", variable, value, name)
