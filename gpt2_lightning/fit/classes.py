"""Lightning's classes that flags name: which cannot do their work here, and what does it."""

import re
import traceback
from inspect import signature
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Trainer

from gpt2_lightning.errors import UsageError, one_line
from gpt2_lightning.fit.checks import MONITORED, NO_BATCH_NORM
from gpt2_lightning.fit.machine import FSDP2

# What a callback may go by beside: the latter two with --model.averaging.
ALSO_LOGGED = ("train/loss", "step", "val/raw_loss", "val/averaged_loss")

_BASE = "a base class, which does nothing itself. Give a class of your own that is made from it."

# Lightning's callbacks that cannot do their work here -> why, and what does it.
REFUSED_CALLBACKS = {
    "LearningRateFinder": "the schedule, not the optimizer, decides each step's rate here, so "
    "what it finds would not be used. `plan` says which rates are usual for a batch; try one with "
    "--model.learning_rate 3e-4 --trainer.max_steps 100.",
    "BatchSizeFinder": "the batch decides how many steps the schedule has, which is settled before "
    "it would be changed. `plan --measure` says what fits; --data.batch_size 4 with "
    "--trainer.accumulate_grad_batches 2 takes the step of a batch of 8.",
    "GradientAccumulationScheduler": "the blocks of a step decide its loss and how many steps the "
    "schedule has, so they are the same in all epochs. --trainer.accumulate_grad_batches N works.",
    "StochasticWeightAveraging": "its weights are put in place after the last validation, so they "
    "would be neither measured nor saved. --model.averaging ema works.",
    "ModelPruning": "it renames the weights, and no other program would read them as a GPT-2. "
    "torch.nn.utils.prune works on the finished model in hf/.",
    "BackboneFinetuning": "GPT-2 has no backbone and head that are trained apart. All of it is "
    "trained; --model.learning_rate 5e-5 changes it little.",
    "OnExceptionCheckpoint": "training could not go on exactly from the middle of a step. "
    "--checkpoint.every_n_train_steps N renews last.ckpt every so many steps.",
    "SpikeDetection": "Lightning 2.6 cannot load its state, so the run could not go on. "
    "--trainer.gradient_clip_val 1.0 bounds a step; --model.on_nonfinite decides of NaN.",
    "LambdaCallback": "its functions can be given from Python alone. Give a class of your own.",
    **dict.fromkeys(("Callback", "Checkpoint", "ProgressBar", "BaseFinetuning"), _BASE),
    "BasePredictionWriter": _BASE,
}

# The same of plugins.
REFUSED_PLUGINS = {
    "BitsandbytesPrecision": "it replaces torch's Linear layers, and GPT-2 has none but its head. "
    "--model.lora.rank 8 --model.lora.quantize nf4 trains an adapter beside matrices in 4 bits.",
    "TransformerEnginePrecision": "it replaces torch's Linear layers, and GPT-2 has none but its "
    "head. --trainer.precision bf16-mixed works.",
    "DeepSpeedPrecision": "DeepSpeed is not supported. --trainer.strategy fsdp2 shards, too.",
    "FSDPPrecision": "torch's first FSDP is not supported. --trainer.strategy fsdp2 with "
    "--trainer.precision bf16-mixed works.",
    **dict.fromkeys(
        ("XLAPrecision", "XLACheckpointIO"), "XLA is not supported. CPUs and GPUs work."
    ),
    **dict.fromkeys(("LayerSync", "TorchSyncBatchNorm"), NO_BATCH_NORM),
    **dict.fromkeys(("Precision", "CheckpointIO"), _BASE),
}

UNSUPPORTED = ("deepspeed", "xla", "singledevicexla")

# of settings that classes of Lightning's cannot do without
EXAMPLES = {"monitor": "val/loss", "save_dir": ".", "precision": "bf16-mixed", "device": "cpu"}


def check_strategy(trainer: Any, verb: str) -> None:
    """Refuse strategies that do not work here; name the class of the one that shards.

    Args:
        trainer: Its settings; a strategy that shards is changed in place.
        verb: A verb of Lightning's.

    Raises:
        UsageError: If the strategy is not supported.
    """
    asked = trainer.strategy
    path = asked if isinstance(asked, str) else asked.class_path
    name = path.rpartition(".")[2]
    kind = name.lower().removesuffix("strategy")
    begin = f"--trainer.strategy {name}:"
    settings = {} if isinstance(asked, str) else asked.get("init_args") or {}
    if kind in ("fsdp2", "modelparallel"):
        if (parts := settings.get("tensor_parallel_size", 1)) not in (1, "auto"):
            raise UsageError(
                f"{begin} tensor_parallel_size {parts}: must be 1. Weights are sharded over all "
                "processes, matrices are not computed in parts."
            )
        if verb == "predict":
            raise UsageError(
                f"{begin} predict continues other prompts in each process, and none has the whole "
                "model. --trainer.strategy auto works, and so does the verb generate."
            )
        for callback in trainer.callbacks or []:
            if (copies := callback.class_path.rpartition(".")[2]).endswith("WeightAveraging"):
                raise UsageError(
                    f"--trainer.callbacks {copies}: it copies the model, and torch copies none "
                    f"that --trainer.strategy {name} has sharded. --trainer.strategy ddp works."
                )
        ours = {"class_path": FSDP2, "init_args": settings}
        trainer.strategy = Namespace(**ours)  # type: ignore[no-untyped-call] # it says no types
    elif kind.startswith("fsdp"):
        raise UsageError(
            f"{begin} torch's first FSDP is not supported. --trainer.strategy fsdp2 shards "
            "weights, gradients and optimizer state, too (--config scale/fsdp)."
        )
    elif isinstance(asked, str) and name.endswith("Strategy"):
        raise UsageError(f"{begin} a class goes by --trainer.strategy.class_path {name}.")
    elif kind.startswith("ddp_spawn") or settings.get("start_method") == "spawn":
        raise UsageError(
            f"{begin} what it would hand to new processes cannot be copied. --trainer.strategy ddp "
            "starts the command again for each; ddp_fork works, too."
        )
    elif kind in ("", "parallel") and path.startswith("lightning."):
        raise UsageError(f"{begin} {_BASE}")
    elif kind.startswith(UNSUPPORTED) or (
        isinstance(asked, str) and not kind.startswith(("auto", "ddp", "single_device"))
    ):
        raise UsageError(
            f"{begin} not supported. Supported are auto, ddp (the whole model in each process) and "
            "fsdp2 (its weights, gradients and optimizer state sharded over the processes)."
        )


def check_callbacks(callbacks: Any) -> None:
    """Refuse callbacks of Lightning's that cannot do their work here, or go by what is not there.

    Args:
        callbacks: The user's own, as the settings name them.

    Raises:
        UsageError: If one is such.
    """
    all_of_lightning = all(map(_of_lightning, callbacks or []))  # another may log what it likes
    for callback in callbacks or []:
        name = callback.class_path.rpartition(".")[2]
        if name in REFUSED_CALLBACKS and _of_lightning(callback):
            raise UsageError(f"--trainer.callbacks {name}: {REFUSED_CALLBACKS[name]}")
        monitor = (callback.get("init_args") or {}).get("monitor")
        if monitor not in (None, *ALSO_LOGGED, *MONITORED) and all_of_lightning:
            raise UsageError(
                f"--trainer.callbacks {name}: monitor {monitor}: it is not measured. Measured are "
                f"{', '.join(MONITORED)}."
            )


def _of_lightning(settings: Any) -> bool:
    return str(settings.class_path).startswith("lightning.")


def check_plugins(plugins: Any, accelerator: str) -> None:
    """Refuse plugins of Lightning's that cannot do their work here.

    Args:
        plugins: The user's own, as the settings name them.
        accelerator: Where the run is: ``cpu``, ``cuda`` or another.

    Raises:
        UsageError: If one is such.
    """
    for plugin in plugins if isinstance(plugins, list) else [plugins] if plugins else []:
        name = plugin.class_path.rpartition(".")[2]
        if name in REFUSED_PLUGINS and _of_lightning(plugin):
            raise UsageError(f"--trainer.plugins {name}: {REFUSED_PLUGINS[name]}")
        precision = str((plugin.get("init_args") or {}).get("precision"))
        if accelerator == "cpu" and precision.startswith("16-"):
            raise UsageError(
                f"--trainer.plugins {name}: precision {precision} needs a GPU, and this run is on "
                "a CPU. --trainer.precision bf16-mixed works, or 32-true."
            )


def of_lightnings_class(error: BaseException) -> UsageError | None:
    """Say which class, named by a flag, has failed: a logger at any time, others at their own work.

    Args:
        error: What was raised.

    Returns:
        The error in a line; None where it is none of such a class.
    """
    kinds = "loggers|callbacks|profilers|plugins|strategies"
    group = {"loggers": "logger", "profilers": "profiler", "strategies": "strategy"}
    # of the types of a flag jsonargparse chains the first one's error alone; a test holds its words
    words = rf"class_path '(?:lightning\.pytorch\.({kinds})\.(?:\w+\.)*(\w+))':\s*(.+?)\s*\n"
    if given := re.search(words, str(error)):
        return UsageError(f"--trainer.{group.get(given[1], given[1])} {given[2]}: {given[3]}")
    own = r"^  - (?!Not a valid subclass|Expected a)(.+(?:\n    .+)*)"
    if "any of the Union subtypes" in str(error) and (
        reason := re.search(own, str(error), re.MULTILINE)
    ):
        return UsageError(f"--trainer: {' '.join(reason[1].split())[:400]}.")
    found: BaseException | None = error
    while found is not None:
        frames = [frame for frame, _ in traceback.walk_tb(found.__traceback__)]
        for frame in reversed(frames):
            module = frame.f_globals.get("__name__", "")
            part = re.match(r"lightning\.pytorch\.(loggers|callbacks|profilers)\b", module)
            owner = type(frame.f_locals.get("self"))
            at_work = part and (part[1] == "loggers" or frame is frames[-1])
            if part and at_work and owner.__module__.startswith("lightning.pytorch."):
                why = f"{owner.__name__}: {one_line(found)[:400]}."
                return UsageError(f"--trainer.{group.get(part[1], part[1])} {why}")
        found = found.__cause__ or found.__context__
    return None


def in_flags(message: str) -> str:
    """Name the flag in a message of Lightning's, which speaks of the trainer's arguments."""
    text = " ".join(message.split())
    for name in re.findall(r"`(?:Trainer\()?(\w+)", text):
        if name in signature(Trainer).parameters:
            return f"--trainer.{name}: {text}"
    return f"--trainer: {text}"


def of_a_class(message: str) -> UsageError | None:
    """Say what is wrong with the settings of a class that a flag names.

    Args:
        message: jsonargparse's, of a flag of several types, with each type's error in a line; it
            names the inner flags without those above them.

    Returns:
        The error; None where the message is of another kind.
    """
    flag = re.match(r'Parser key "([\w.]+)":', message)
    if flag is None:
        return None
    begin = f"--{flag[1]}"
    inner = re.search(r"^ +- ((?:--\w+(?:, )?)+): (.*)$", message, re.MULTILINE)
    if inner and inner[2].startswith("must be given"):
        names = re.findall(r"\w+", inner[1])
        lacks = rf"class_path='(?:\w+\.)*(\w+)', init_args=Namespace\([^()]*\b{names[0]}=None"
        named = re.search(lacks, message)
        such = " ".join(f"{begin}.{name} {EXAMPLES.get(name, name.upper())}" for name in names)
        return UsageError(
            f"{begin} {named[1] if named else ''}: it needs {' and '.join(names)}. {such} after it "
            "would work."
        )
    if inner:
        return UsageError(f"{begin}.{inner[1].removeprefix('--')}: {inner[2]}")
    if unknown := re.search(r"NestedArg\(key='([\w.]+)', val='(.*)'\)", message):
        return UsageError(f"{begin}.{unknown[1]} {unknown[2]}: the class before it has none such.")
    return None
