"""What is refused before training: flags against each other and a checkpoint."""

import math
from pathlib import Path
from string import Formatter
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Timer

from gpt2_lightning.checkpoint import is_sharded
from gpt2_lightning.errors import UsageError
from gpt2_lightning.fit.machine import FSDP2
from gpt2_lightning.model.lora import check_lora
from gpt2_lightning.model.metrics import METRICS
from gpt2_lightning.parser import value_of

# What a checkpoint's run may change without changing its losses.
FREE_TO_CHANGE = {
    # the schedule's length is compared as such, when it is known
    "model": {
        "attention",
        "compile",
        "gradient_checkpointing",
        "on_nonfinite",  # until a loss is not finite, it decides nothing
        "sampling",
        "schedule_steps",
        "schedule_changes",
        "hf_config",
        *("add_tokens", "added_tokens"),  # a checkpoint's model has them
    },
    "data": {
        *("prompts", "cache_dir", "remote_cache", "remote_cache_gb"),
        *("tokenizer", "tokenizer_revision", "vocab_size", "add_tokens"),
    },
}

# What `ModelCheckpoint` can go by.
MONITORED = tuple(metric.name for metric in METRICS if metric.monitored)

NO_BATCH_NORM = "GPT-2 has no batch norm to synchronize. Leave it out."

# Flags of the trainer that could do nothing here -> why, and what does their work.
REFUSED_FLAGS = {
    "barebones": "it leaves out checkpoints, curves and validation, of which a run is made here. "
    "`plan --measure` times bare steps.",
    "sync_batchnorm": NO_BATCH_NORM,
    "reload_dataloaders_every_n_epochs": "the text is read once, and the loaders change by "
    "themselves. --data.shift_blocks true cuts it at other places in each epoch.",
    "model_registry": "it downloads checkpoints from Lightning's cloud. --ckpt_path takes a file "
    "or run folder, --model.pretrained a Hub id.",
}

PROFILERS = ("simple", "advanced", "pytorch")

# Flags of how a model from scratch, or its tokenizer, is built.
FROM_SCRATCH = ("--data.vocab_size", "--model.architecture", "--model.hf_config")

# Settings -> the least value that makes sense, and the greatest, if there is one.
Ranges = dict[str, tuple[float, float | None]]

MODEL_RANGES: Ranges = {
    "learning_rate": (0, None),
    "weight_decay": (0, None),
    "warmup_steps": (0, None),
    "schedule_steps": (1, None),
    "decay_share": (0.001, 1),
    "dropout": (0, 0.999),  # with 1 nothing would be left of the hidden states
    "attention_dropout": (0, 0.999),
    "lora.rank": (0, None),
    "lora.alpha": (0.001, None),
    "lora.dropout": (0, 0.999),
    "architecture.layers": (1, None),
    "architecture.heads": (1, None),
    "architecture.width": (1, None),
    "architecture.positions": (1, None),
    "architecture.dropout": (0, 0.999),
}

TRAINER_RANGES: Ranges = {
    "accumulate_grad_batches": (1, None),
    "check_val_every_n_epoch": (1, None),
    "num_nodes": (1, None),
    "max_epochs": (-1, None),
    "max_steps": (-1, None),
    "min_epochs": (0, None),
    "min_steps": (0, None),
    "num_sanity_val_steps": (-1, None),
    "log_every_n_steps": (0, None),
    "gradient_clip_val": (0, None),  # below 0 it would turn the gradient round
    "limit_train_batches": (0, None),
    "limit_val_batches": (0, None),
    "limit_test_batches": (0, None),
    "limit_predict_batches": (0, None),
    "overfit_batches": (0, None),
}


def _check_ranges(group: str, settings: Any, ranges: Ranges) -> None:
    for name, (least, greatest) in ranges.items():
        value = settings[name]
        if value is None:
            continue
        if not math.isfinite(value) or value < least or (greatest is not None and value > greatest):
            wanted = f">= {least}" if greatest is None else f"from {least} to {greatest}"
            raise UsageError(f"--{group}.{name} {value}: must be {wanted}.")


def check_numbers(model: Any, add_tokens: str | None) -> None:
    """Refuse settings of the model that are out of range.

    Args:
        model: Its settings.
        add_tokens: ``--data.add_tokens``.

    Raises:
        UsageError: If one is.
    """
    _check_ranges("model", model, MODEL_RANGES)
    if not all(0 <= beta < 1 for beta in model.betas):
        first, second = model.betas
        raise UsageError(
            f"--model.betas [{first}, {second}]: both must be >= 0 and < 1. Try [0.9, 0.95]"
        )
    _check_adapter(model, add_tokens)


def _check_adapter(model: Any, add_tokens: str | None) -> None:
    lora = model.lora
    if not lora.rank:
        for name in ("alpha", "dropout", "quantize"):
            if value := lora[name]:
                raise UsageError(
                    f"--model.lora.{name} {value}: without a rank there is no adapter. Add "
                    "--model.lora.rank 8."
                )
        return
    check_lora(lora, model.pretrained)
    if add_tokens is not None:
        raise UsageError(
            f"--model.lora.rank {lora.rank}: the embedding is not trained, and the tokens of "
            f"--data.add_tokens {add_tokens} would mean nothing. --model.lora.rank 0 trains all "
            "weights."
        )
    if model.optimizer == "muon":
        raise UsageError(
            f"--model.lora.rank {lora.rank}: --model.optimizer muon was never tried on an adapter, "
            "of whose matrices only products are updates. --model.optimizer adamw works."
        )


def check_trainer(trainer: Any, verb: str) -> None:
    """Refuse settings of the trainer that are out of range.

    Args:
        trainer: The settings.
        verb: A verb of Lightning's, or one that takes the flags of `fit`.

    Raises:
        UsageError: If one is.
    """
    _check_ranges("trainer", trainer, TRAINER_RANGES)
    for name, reason in REFUSED_FLAGS.items():
        if trainer[name]:
            raise UsageError(f"--trainer.{name} {str(trainer[name]).lower()}: {reason}")
    if isinstance(trainer.profiler, str) and trainer.profiler not in PROFILERS:
        raise UsageError(
            f"--trainer.profiler {trainer.profiler}: must be {', '.join(PROFILERS)}, or a class "
            "such as PyTorchProfiler."
        )
    if getattr(trainer.profiler, "class_path", "").endswith(".XLAProfiler"):
        raise UsageError(
            "--trainer.profiler XLAProfiler: XLA is not supported. CPUs and GPUs work."
        )
    if trainer.gradient_clip_algorithm is not None and not trainer.gradient_clip_val:
        raise UsageError(
            f"--trainer.gradient_clip_algorithm {trainer.gradient_clip_algorithm}: nothing is "
            "clipped without --trainer.gradient_clip_val, such as 1.0."
        )
    for name in ("max_steps", "max_epochs", "limit_train_batches"):
        if trainer[name] == 0:
            raise UsageError(
                f"--trainer.{name} 0: nothing would be trained. Give 1 or more, or "
                f"{'null' if name.startswith('limit') else -1} for no limit; the verb validate "
                "measures without training."
            )
    splits = {"validate": "val", "test": "test", "predict": "predict"}
    if verb in splits and trainer[flag := f"limit_{splits[verb]}_batches"] == 0:
        raise UsageError(f"--trainer.{flag} 0: {verb} would do nothing. Give 1 or more, or null.")
    interval = trainer.val_check_interval
    if isinstance(interval, int | float) and not interval > 0:
        raise UsageError(
            f"--trainer.val_check_interval {interval}: must be > 0, micro-batches or a "
            "share of the epoch. --trainer.limit_val_batches 0 leaves validation out."
        )
    if interval is not None and not isinstance(interval, int | float):
        raise UsageError(
            f"--trainer.val_check_interval {interval}: must be a number. Validations by the clock "
            "would fall inside optimizer steps, and elsewhere in a run that goes on. 500 counts "
            "micro-batches, 0.25 is a share of the epoch; --trainer.max_time limits the time."
        )
    if trainer.enable_checkpointing is False:
        raise UsageError(
            "--trainer.enable_checkpointing false: a run has its checkpoints by --checkpoint. "
            "--checkpoint.save_top_k 0 with --checkpoint.save_last false keeps none."
        )
    _check_max_time(trainer.max_time)


def check_model(verb: str, pretrained: str | None) -> None:
    """Refuse to measure or use a model of random weights.

    Args:
        verb: A verb of Lightning's, without ``--ckpt_path``.
        pretrained: ``--model.pretrained``.

    Raises:
        UsageError: If there is no other.
    """
    if verb in ("validate", "test", "predict") and pretrained is None:
        raise UsageError(
            f"{verb}: of which model? --ckpt_path last is the newest run's last checkpoint, best "
            "its best one; --model.pretrained names a model that was trained elsewhere."
        )


def check_checkpoint(checkpoint: Any, callbacks: Any) -> None:
    """Refuse to keep checkpoints by what is not measured.

    Args:
        checkpoint: Its settings.
        callbacks: The user's own, which may measure something else.

    Raises:
        UsageError: If a setting of ``--checkpoint`` says what cannot be.
    """
    monitor = checkpoint.monitor
    if monitor is not None and monitor not in MONITORED and not callbacks:
        raise UsageError(
            f"--checkpoint.monitor {monitor}: it is not measured. Measured are "
            f"{', '.join(MONITORED)}."
        )
    _check_filename(checkpoint, callbacks)
    if checkpoint.mode not in ("min", "max"):
        raise UsageError(f"--checkpoint.mode {checkpoint.mode}: must be min or max.")
    if checkpoint.save_top_k < -1:
        raise UsageError(
            f"--checkpoint.save_top_k {checkpoint.save_top_k}: must be >= 0, or -1 for all."
        )
    every = checkpoint.every_n_train_steps
    if every is not None and every < 0:
        raise UsageError(f"--checkpoint.every_n_train_steps {every}: must be >= 1, or null.")
    for name in ("save_on_train_epoch_end", "save_on_exception"):
        if checkpoint[name]:
            raise UsageError(
                f"--checkpoint.{name} true: training could not go on exactly from there. "
                "Checkpoints are saved after validations; --checkpoint.every_n_train_steps N "
                "renews last.ckpt between them."
            )


def _check_filename(checkpoint: Any, callbacks: Any) -> None:
    """Refuse a pattern of names that would name something else, or one file twice."""
    pattern = checkpoint.filename
    if pattern is None:
        return
    begin = f"--checkpoint.filename {pattern}:"
    known = ("epoch", "step", *MONITORED)
    try:
        parts = list(Formatter().parse(pattern))
        names = [name for _, name, _, _ in parts if name is not None]
        for _, name, form, _ in parts:
            format(1 if name in ("epoch", "step") else 1.0, form if name and form else "")
    except ValueError as error:
        raise UsageError(
            f"{begin} it cannot be read ({error}). best-step{{step}}-{{val/loss:.3f}} would work."
        ) from error
    unknown = [name for name in names if name not in known]
    if unknown and not callbacks:  # which may log it
        raise UsageError(
            f"{begin} {', '.join(unknown)} is not measured. A name may hold {', '.join(known)}."
        )
    fixed = "".join(text for text, _, _, _ in parts)
    if "/" in fixed or (checkpoint.auto_insert_metric_name and any("/" in it for it in names)):
        raise UsageError(
            f"{begin} a slash would make a folder of each. --checkpoint.dirpath FOLDER puts them "
            "elsewhere; --checkpoint.auto_insert_metric_name false leaves out the metrics' names."
        )
    if pattern.startswith("last"):
        raise UsageError(f"{begin} names that begin with last are those of the last state.")
    several = checkpoint.save_top_k not in (0, 1) and not checkpoint.enable_version_counter
    if several and "step" not in names:
        raise UsageError(
            f"{begin} with --checkpoint.save_top_k {checkpoint.save_top_k} the checkpoints of two "
            "steps could have one name, and the later would replace the better. Add {step}."
        )


def check_unsharded(model: Any, trainer: Any) -> None:
    """Refuse what needs whole weights where a strategy shards them.

    Args:
        model: Its settings.
        trainer: Its settings, after `check_strategy`.

    Raises:
        UsageError: If the model's settings need them.
    """
    strategy = trainer.strategy
    if (strategy if isinstance(strategy, str) else strategy.class_path) != FSDP2:
        return
    if model.lora.rank:
        raise UsageError(
            f"--model.lora.rank {model.lora.rank}: gradients and optimizer state of an adapter are "
            "small, and its checkpoints are not written from shards. --trainer.strategy ddp works."
        )
    for flag, asked, instead in (
        ("optimizer", "muon", "--model.optimizer adamw"),
        ("averaging", "ema", "--model.averaging null"),
    ):
        if model[flag] == asked:
            raise UsageError(
                f"--model.{flag} {asked}: it needs whole matrices, and --trainer.strategy fsdp2 "
                f"shards them. {instead} or --trainer.strategy ddp would work."
            )


def check_shards(file: Path, trainer: Any) -> None:
    """Refuse to train on from shards with a strategy that cannot read the optimizer's.

    Args:
        file: The checkpoint.
        trainer: Its settings, after `check_strategy`.

    Raises:
        UsageError: If the checkpoint is in shards and the strategy is another.
    """
    strategy = trainer.strategy
    name = strategy if isinstance(strategy, str) else strategy.class_path
    if is_sharded(file) and name != FSDP2:
        raise UsageError(
            f"--trainer.strategy {name}: {file} is in shards, from which training "
            "goes on with --trainer.strategy fsdp2 alone. A new run can begin with its weights: "
            f"--model.pretrained {file.parent.parent}, without --ckpt_path."
        )


def check_unused(typed: list[str], by: str, flags: tuple[str, ...]) -> None:
    """Refuse typed flags that another one leaves without effect.

    Args:
        typed: The words of the command line.
        by: That other flag and its value.
        flags: Those that it leaves without effect; those below them, too.

    Raises:
        UsageError: If one was typed.
    """
    for word, following in zip(typed, [*typed[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        named = any(flag == it or flag.startswith(f"{it}.") for it in flags)
        if named and (value if equals else following) != "null":
            raise UsageError(
                f"{flag}: {by} brings its own. Leave one of the two out, or set it to null."
            )


def check_idle(typed: list[str], verb: str, config: Any) -> None:
    """Refuse typed flags that do nothing without another setting.

    Args:
        typed: The words of the command line.
        verb: A verb of Lightning's, or one that takes the flags of `fit`.
        config: The settings, filled in.

    Raises:
        UsageError: If one was typed, and the other is not there.
    """
    data, model = config.data, config.model
    of_hub = model.pretrained is not None and not Path(model.pretrained).expanduser().exists()
    for flag, works, needs in (
        ("--model.decay_share", model.schedule == "wsd", "--model.schedule wsd"),
        ("--model.revision", of_hub, "a Hub id as --model.pretrained"),
        ("--data.remote_cache_gb", data.remote_cache is not None, "--data.remote_cache"),
        ("--data.prompts", verb == "predict", "the verb predict"),
        ("--samples.prompts", config.samples.enabled, "--samples.enabled true"),
    ):
        value = value_of(typed, flag)
        if value not in (None, "null") and not works:
            raise UsageError(f"{flag} {value}: it does nothing without {needs}. Leave it out.")


def whole_number(seed: Any) -> int:
    """Refuse a seed that is drawn anew in every process, or that NumPy does not take.

    Args:
        seed: ``--seed_everything``.

    Raises:
        UsageError: If it is such.
    """
    if isinstance(seed, bool):
        raise UsageError(
            f"--seed_everything {str(seed).lower()}: give a whole number, so that the run can be "
            "repeated and resumed."
        )
    if not 0 <= int(seed) < 2**32:
        raise UsageError(f"--seed_everything {seed}: must be from 0 to {2**32 - 1}.")
    return int(seed)


def _check_max_time(asked: Any) -> None:
    try:
        Timer(asked)
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise UsageError(
            f"--trainer.max_time {asked}: days, hours, minutes and seconds are expected, as "
            "DD:HH:MM:SS. 00:01:30:00 is an hour and a half."
        ) from error


def check_unchanged(
    group: str, given: Any, trained: dict[str, Any], file: Path, defaults: dict[str, Any]
) -> None:
    """Refuse flags that would make a run that goes on another run.

    Args:
        group: ``model`` or ``data``.
        given: Its flags.
        trained: What they were in the checkpoint.
        file: The checkpoint.
        defaults: What the flags are where nobody gives them: so an earlier version was trained
            that did not have them.

    Raises:
        UsageError: If one has changed.
    """
    given = given.as_dict()
    for name, before in (defaults | trained).items():
        if name in FREE_TO_CHANGE[group] or name not in given:
            continue
        if isinstance(before, dict) and isinstance(defaults.get(name), dict):
            before = defaults[name] | before
        now = list(given[name]) if isinstance(given[name], tuple) else given[name]
        if now != before:
            flag = "--seed_everything" if name == "seed" else f"--{group}.{name}"
            raise UsageError(
                f"{flag} {now}: {file} was trained with {before}, and going on with "
                f"another value would be another run. Leave the flag out, or start a new run "
                f"from the weights: --model.pretrained {file.parent.parent / 'hf'}."
            )
