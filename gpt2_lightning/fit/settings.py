"""The flags of fit: parsed, filled in from one another, and checked; nothing is built of them."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from inspect import signature
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from jsonargparse import ArgumentParser
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT  # no public name has it
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from gpt2_lightning.checkpoint import read_checkpoint, step_of
from gpt2_lightning.data.datamodule import DEFAULT_VOCAB_SIZE, WikiTextDataModule
from gpt2_lightning.data.token_store import cache_tokenizer
from gpt2_lightning.data.tokenizer import cache_folder, load_tokenizer
from gpt2_lightning.errors import UsageError
from gpt2_lightning.fit.checkpoints import RunCheckpoint
from gpt2_lightning.fit.checks import (
    FROM_SCRATCH,
    check_checkpoint,
    check_idle,
    check_model,
    check_numbers,
    check_shards,
    check_trainer,
    check_unchanged,
    check_unsharded,
    check_unused,
    whole_number,
)
from gpt2_lightning.fit.classes import (
    check_callbacks,
    check_plugins,
    check_strategy,
    of_a_class,
)
from gpt2_lightning.fit.flags import LINKS
from gpt2_lightning.fit.machine import (
    accelerator_of,
    check_accelerator,
    check_precision,
    from_environment,
    say_environment,
    settle,
)
from gpt2_lightning.fit.run_folder import DEFAULT_LOGGER, check_loggers, named_folder
from gpt2_lightning.fit.samples import Samples
from gpt2_lightning.fit.stop import EarlyStop, check_minimum
from gpt2_lightning.logs import quieten
from gpt2_lightning.model.gpt2 import weights_of
from gpt2_lightning.model.lora import lora_of
from gpt2_lightning.model.module import GPT2Module
from gpt2_lightning.parser import (
    bound_yaml,
    check_config_file,
    check_config_files,
    code_named_in,
    given_files,
    option_strings,
    refuse,
    value_of,
    with_recipes,
    with_underscores,
    without_additions,
)
from gpt2_lightning.run_folder import (
    Run,
    are_own_settings,
    find_checkpoint,
    hf_of,
    model_of,
    run_of,
)

log = logging.getLogger(__name__)

DEFAULT_SEED = 1  # a run can be repeated unless asked otherwise


DEFAULT_EPOCHS = 3  # where no length is given; Lightning would take 1000

DEFAULTS = {
    "trainer.logger": DEFAULT_LOGGER,
    "trainer.num_sanity_val_steps": -1,  # the whole split, kept as the curve's beginning
    "trainer.use_distributed_sampler": False,  # the loaders deal the blocks out themselves
    "trainer.enable_model_summary": False,  # StartSummary has it in a line, tied weights once
    "checkpoint.monitor": "val/loss",
    "checkpoint.mode": "min",
    "checkpoint.save_last": True,
    "checkpoint.save_on_train_epoch_end": False,  # after the validation, where a run can go on
    # a metric's name with its slash would make a folder
    "checkpoint.filename": "best-step{step}-val_loss{val/loss:.3f}",
    "checkpoint.auto_insert_metric_name": False,
    "checkpoint.enable_version_counter": False,
}

# What is not linked as it is; how many tokens are new is known when the tokenizer has been read.
COMPUTED: dict[str, Callable[[Any], int]] = {
    "seed_everything": whole_number,
    "data.add_tokens": lambda file: 0,
}

# What a checkpoint brings with it.
CARRIED = (
    *("--data.tokenizer", "--data.tokenizer_revision", "--data.vocab_size"),
    "--data.add_tokens",
)


class GPT2Trainer(Trainer):
    """Lightning's trainer; on the command line its precision may be ``auto``.

    Args:
        precision: Lightning's names, or ``auto``: bf16-mixed where this machine multiplies in bf16
            much more quickly, else 32-true. It is chosen before the trainer is built.
        kwargs: As Lightning's.
    """

    def __init__(
        self, *, precision: _PRECISION_INPUT | Literal["auto"] | None = None, **kwargs: Any
    ) -> None:
        assert precision != "auto"
        super().__init__(precision=precision, **kwargs)


class GPT2ArgumentParser(LightningArgumentParser):
    """Lightning's parser, with messages for people."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)  # --mod is a typo, not --model

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message instead of printing the usage and ending the process."""
        if (found := of_a_class(message)) is not None:
            raise found
        refuse(self, message)


def add_flags(parser: LightningArgumentParser) -> None:
    """Add the flags beside those of trainer, model and data; the defaults; the links of values."""
    parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
    parser.add_lightning_class_args(Samples, "samples")
    parser.add_lightning_class_args(EarlyStop, "early_stopping")
    name: Any = str | None
    parser.add_argument(
        "--run_name",
        "--run",  # not for torchrun, which takes it for an abbreviation of its own --run-path
        type=name,
        default=None,
        help="Name of the run: its folder in lightning_logs/. Null numbers it: version_N.",
    )
    minutes: Any = float | None
    parser.add_argument(
        "--minutes",
        type=minutes,
        default=None,
        help="Time of the whole command, to which the schedule is fitted: --trainer.max_time, in "
        "minutes.",
    )
    parser.set_defaults(DEFAULTS)
    for target, source in LINKS.items():
        parser.link_arguments(source, target, compute_fn=COMPUTED.get(source))


def name_after_verb(parser: LightningArgumentParser, verb: str) -> None:
    """Let a parser speak of itself by its verb."""
    parser.prog = f"gpt2_lightning {verb}"
    parser.usage = f"python -m gpt2_lightning {verb} [--config FILE] [flags]"


class FitSettings:
    """The flags of `fit`, and a verb's own beside them: parsed, filled in and checked.

    Nothing is built, so nothing is read, downloaded or written: that is the verb's to do.

    Attributes:
        values: The settings as `fit` would use them: ``trainer``, ``model``, ``data`` and so on.
        own: The verb's own flags, by name.
    """

    def __init__(self, verb: str, words: list[str], own: Callable[..., Any]) -> None:
        """Parse a command line.

        Args:
            verb: The verb's name, for --help and messages.
            words: The words after the verb.
            own: The verb's function: its first parameter takes these settings, the others are
                the verb's own flags, with its docstring for their help.

        Raises:
            UsageError: If a flag is unknown, or says what cannot be.
        """
        quieten()
        bound_yaml()
        # as LightningCLI's parser of `fit` is
        parser = GPT2ArgumentParser(description=(own.__doc__ or "").splitlines()[0])
        name_after_verb(parser, verb)
        parser.add_argument(
            "-c", "--config", action="config", help="YAML file of flags, or a recipe's name."
        )
        seed: Any = bool | int
        parser.add_argument(
            "--seed_everything", type=seed, default=DEFAULT_SEED, help="Seed of the run."
        )
        parser.add_lightning_class_args(GPT2Trainer, "trainer")
        parser.add_lightning_class_args(GPT2Module, "model")
        parser.add_lightning_class_args(WikiTextDataModule, "data")
        add_flags(parser)
        given = {"model", "train_dataloaders", "val_dataloaders", "datamodule"}
        parser.add_method_arguments(Trainer, "fit", skip={*given})
        names = parser.add_function_arguments(own, as_group=False, skip={1})
        for action in parser._actions:  # no public list of a parser's flags
            if action.dest in names and action.default is False:
                action.nargs, action.const = "?", True  # a bare --json will do
        line = CommandLine("fit", words, parser)
        self.values = parser.parse_args(line.words)
        line.fill_in(self.values, any_machine=True)
        self.own = {name: self.values[name] for name in names}


class CommandLine:
    """The words after a verb, and the checkpoint whose settings they change.

    Attributes:
        words: What is to be parsed: first the settings of the checkpoint's run.
        given: What the user typed.
        typed: The same, with the files of recipes for their names.
        checkpoint_file: What ``--ckpt_path`` means, if it was given.
        going_on: Run folder of the checkpoint, as it was spelled where the run began.
        run_name: The run's name, if ``--run_name`` gave one.
        begins_again: With ``--ckpt_path auto``, the folder of a run that has no checkpoint yet.
    """

    def __init__(self, verb: str, words: list[str], parser: ArgumentParser) -> None:
        """Read the words as far as they name files.

        Args:
            verb: A verb of Lightning's.
            words: Those after it.
            parser: The verb's.

        Raises:
            UsageError: If a file is not there, or not what it should be.
        """
        self.verb = verb
        self.given = with_underscores(words)
        self.typed = with_recipes(self.given)
        environment = [f"--trainer.{name}={value}" for _, name, value in from_environment()]
        self.words = [*environment, *self.typed]
        check_config_files(self.typed, option_strings(parser))
        self.checkpoint_file: Path | None = None
        self.going_on: str | None = None
        self.run_name: str | None = None
        self.begins_again: Path | None = None
        named = value_of(self.typed, "--ckpt_path")
        if named == "auto":
            self._begin_or_go_on(parser)
        elif named is not None:
            self.checkpoint_file = find_checkpoint(named, _root_of_runs(self.words))
            for flag in CARRIED:
                if value_of(self.typed, flag) is not None:
                    raise UsageError(
                        f"{flag}: {self.checkpoint_file} carries its own tokenizer. Leave the "
                        "flag out."
                    )
        if self.checkpoint_file is not None:
            settings = self._own_settings(self.checkpoint_file, parser)
            # with auto the line is the one that began the run, whose settings hold its additions
            words = without_additions(self.typed) if named == "auto" else self.typed
            self.words = [*environment, "--config", settings, *words]

    @property
    def after_step(self) -> int | None:
        """The optimizer step after which training goes on; None where it begins, or none is."""
        goes_on = self.checkpoint_file is not None and self.verb == "fit"
        return step_of(self.checkpoint_file) if self.checkpoint_file and goes_on else None

    def _begin_or_go_on(self, parser: ArgumentParser) -> None:
        """Find the last checkpoint of the run that is named, if it has one yet.

        Raises:
            UsageError: If the run has no name by which a restart could find it.
        """
        if self.verb != "fit":
            raise UsageError(
                f"--ckpt_path auto: it begins a run or goes on with it, and {self.verb} does "
                "neither. Give the run's folder, last or best."
            )
        settings: Any = parser.parse_args(self.words)
        if settings.checkpoint.dirpath is not None:
            raise UsageError(
                "--ckpt_path auto: it looks for checkpoints in the run's folder. Leave "
                "--checkpoint.dirpath out; --trainer.default_root_dir moves the whole run."
            )
        folder = named_folder(settings.trainer, settings.run_name)
        if folder is None:
            raise UsageError(
                "--ckpt_path auto: a restart finds its run by its name. Give it one: --run_name "
                "NAME, such as --run_name $SLURM_JOB_ID."
            )
        run = Run(folder)
        if (file := run.last_checkpoint()) is None:
            there = list(run.checkpoints.glob("*.ckpt"))
            if there or run.known("facts").get("ended") == "finished":
                found = "it has ended, and kept no checkpoint"
                if there:
                    found = f"none of its {len(there)} checkpoints is whole"
                raise UsageError(
                    f"--ckpt_path auto: {folder}: {found}. Nothing of it was changed. Give the "
                    "run another name, or remove the folder to begin it again."
                )
            log.info("--ckpt_path auto: %s has no checkpoint yet, and the run begins.", folder)
            self.begins_again = folder
            self.words += ["--ckpt_path=null"]
            return
        self.checkpoint_file = file
        carried = run.settings.get("data") or {}
        for flag in CARRIED:
            given = value_of(self.typed, flag)
            name = flag.removeprefix("--data.")
            if given is not None and given != str(carried.get(name)):
                raise UsageError(
                    f"{flag} {given}: {file} was trained with {carried.get(name)}. Leave the flag "
                    "as it was, or give the run another name."
                )

    def _own_settings(self, file: Path, parser: ArgumentParser) -> str:
        """Return the settings of a checkpoint's run, for ``--config``, if they run no other's code.

        Raises:
            UsageError: If they name code that is neither Lightning's nor the user's.
        """
        run = run_of(file)
        if run is None or not (config := run.config).is_file():
            settings = settings_of(read_checkpoint(file))
            if (name := code_named_in(settings)) is not None:
                raise UsageError(
                    f"--ckpt_path {file}: its settings name {name}, whose code would run. No "
                    "checkpoint of gpt2_lightning has such settings, and it is not used."
                )
            return json.dumps(settings)
        settings = check_config_file(config, f"--ckpt_path: {config}", option_strings(parser))
        name = code_named_in(settings, config.parent)
        trusted = [file.resolve() for _, file in given_files(self.typed)]
        if (
            name is not None
            and config.resolve() not in trusted
            and not are_own_settings(config.read_text(encoding="utf-8"))
        ):
            raise UsageError(
                f"--ckpt_path: {config} names {name}, which is not Lightning's and could run code, "
                "and no run of yours began with these settings on this machine. If you trust "
                f"them, say so with --config {config}."
            )
        return str(config)

    def fill_in(self, config: Any, *, any_machine: bool = False) -> None:
        """Fill in the tokenizer and the vocabulary, and look for contradictions.

        Args:
            config: The parsed settings, changed in place.
            any_machine: Whether they may be for another machine: a GPU need not be here, and
                ``auto`` stays.

        Raises:
            UsageError: If a setting says what cannot be.
        """
        say_environment(config.trainer)
        if config.trainer.callbacks and not isinstance(config.trainer.callbacks, list):
            config.trainer.callbacks = [config.trainer.callbacks]  # one, as on a command line
        if config.minutes is not None:
            self._set_minutes(config)
        if not any_machine:
            check_accelerator(config.trainer.accelerator)
        check_strategy(config.trainer, self.verb)
        check_unsharded(config.model, config.trainer)
        check_trainer(config.trainer, self.verb)
        check_callbacks(config.trainer.callbacks)
        check_loggers(config.trainer.logger)
        check_plugins(config.trainer.plugins, accelerator_of(config.trainer))
        check_checkpoint(config.checkpoint, config.trainer.callbacks)
        check_numbers(config.model, config.data.add_tokens)
        if config.model.pretrained is not None:
            config.model.pretrained = model_of(config.model.pretrained)
        if self.checkpoint_file is None and not config.get("ckpt_path"):
            check_model(self.verb, config.model.pretrained)
            self._leave_other_model(config)
        if config.trainer.max_epochs is None and config.trainer.max_steps == -1:
            timed = config.trainer.max_time is not None and config.model.schedule_steps is None
            config.trainer.max_epochs = -1 if timed else DEFAULT_EPOCHS
        check_minimum(config.trainer)
        # a name is no setting: a repeat has its own
        self.run_name, config.run_name = config.run_name, None
        if config.get("ckpt_path") and self.checkpoint_file is None:  # from a YAML file
            if config.ckpt_path == "auto":
                raise UsageError("ckpt_path: auto of a YAML file: give it as --ckpt_path auto.")
            root = config.trainer.default_root_dir
            self.checkpoint_file = find_checkpoint(config.ckpt_path, root and str(root))
        if self.checkpoint_file is not None:
            self._go_on_from(self.checkpoint_file, config)
        elif config.model.pretrained is not None:
            check_unused(self.typed, f"--model.pretrained {config.model.pretrained}", FROM_SCRATCH)
            if config.data.tokenizer is None:
                config.data.tokenizer = config.model.pretrained
                config.data.tokenizer_revision = config.model.revision
            if config.data.add_tokens is not None:
                config.data.vocab_size = tokens = _tokens_of(config.data)
                own = load_tokenizer(config.data.tokenizer, config.data.tokenizer_revision)
                config.model.added_tokens = tokens - len(own)
        elif config.data.tokenizer is not None:
            check_unused(self.typed, f"--data.tokenizer {config.data.tokenizer}", FROM_SCRATCH[:1])
            config.data.vocab_size = _tokens_of(config.data)
        elif config.data.add_tokens is not None:
            raise UsageError(
                f"--data.add_tokens {config.data.add_tokens}: a BPE that is trained on the text "
                "learns its own tokens. Give a tokenizer to add to: --data.tokenizer, or a model "
                "that brings one, --model.pretrained."
            )
        elif config.data.vocab_size is None:
            config.data.vocab_size = DEFAULT_VOCAB_SIZE
        config.model.vocab_size = config.data.vocab_size
        check_idle(self.typed, self.verb, config)
        check_precision(config.trainer)
        if not any_machine:
            settle(config)

    def _set_minutes(self, config: Any) -> None:
        """Take ``--minutes`` as ``--trainer.max_time``, which it stands for.

        Raises:
            UsageError: If it is not above 0, or the other was typed as well.
        """
        if not 0 < config.minutes < math.inf:
            raise UsageError(f"--minutes {config.minutes:g}: must be > 0.")
        if (other := value_of(self.typed, "--trainer.max_time")) is not None:
            raise UsageError(
                f"--minutes {config.minutes:g}: --trainer.max_time {other} says the same. Leave "
                "one of the two out."
            )
        rest, seconds = divmod(max(round(config.minutes * 60), 1), 60)
        rest, minutes = divmod(rest, 60)
        days, hours = divmod(rest, 24)
        config.trainer.max_time = f"{days:02}:{hours:02}:{minutes:02}:{seconds:02}"
        config.minutes = None

    def _leave_other_model(self, config: Any) -> None:
        """Take what the model brings where a YAML file has that of the file's own model.

        A run's config.yaml names the tokenizer and the revision that it derived from its model, or
        how one from scratch was built.
        """
        saved: dict[str, dict[str, Any]] = {"model": {}, "data": {}}
        for file in filter(None, config.get("config") or []):
            document = yaml.safe_load(Path(str(file)).read_text(encoding="utf-8"))
            for group, settings in saved.items():
                settings.update((document or {}).get(group) or {})
        before, now = saved["model"].get("pretrained"), config.model.pretrained
        if now is not None:
            built = {flag: flag.removeprefix("--").split(".") for flag in FROM_SCRATCH}
            left_out = [
                flag for flag, (group, name) in built.items() if saved[group].get(name) is not None
            ]
            if left_out and (before is None or "--model.hf_config" in left_out):
                log.info(
                    "%s of the configuration file: left out, --model.pretrained %s brings its own.",
                    " and ".join(left_out),
                    now,
                )
                config.data.vocab_size = config.model.hf_config = None
        if before is None or now in (before, hf_of(before)):
            return
        derived = {
            "--data.tokenizer": saved["data"].get("tokenizer") in (before, hf_of(before)),
            "--model.revision": saved["model"].get("revision") is not None,
        }
        for flag, is_derived in derived.items():
            group, name = flag.removeprefix("--").split(".")
            if not is_derived or any(word.partition("=")[0] == flag for word in self.typed):
                continue
            log.info(
                "%s %s of the configuration file belongs to %s, and is left out with "
                "--model.pretrained %s.",
                flag,
                config[group][name],
                before,
                now,
            )
            config[group][name] = None
            if name == "tokenizer" and value_of(self.typed, "--data.tokenizer_revision") is None:
                config.data.tokenizer_revision = None

    def _go_on_from(self, file: Path, config: Any) -> None:
        """Build the model and the tokenizer that a checkpoint carries, in its own run folder."""
        checkpoint, run = read_checkpoint(file), run_of(file)
        weights_of(checkpoint, f"--ckpt_path {file}")
        if self.verb == "fit":
            if config.trainer.fast_dev_run:
                raise UsageError(
                    f"--trainer.fast_dev_run: it tries a run's first steps, and {file} stands "
                    f"after step {checkpoint['global_step']:,}. It works without --ckpt_path."
                )
            if not checkpoint.get("callbacks"):
                raise UsageError(
                    f"--ckpt_path: {file} holds weights alone (--checkpoint.save_weights_only "
                    "true), from which training cannot go on. Begin a new run with them: "
                    f"--model.pretrained {run.folder if run else 'RUN'}, without --ckpt_path."
                )
            check_shards(file, config.trainer)
            for group, key, built in (
                # first: what is linked is a flag of data
                ("data", "datamodule_hyper_parameters", WikiTextDataModule),
                ("model", "hyper_parameters", GPT2Module),
            ):
                if trained := checkpoint.get(key):
                    if group == "model" and lora_of(checkpoint) is not None:
                        # the base may have been moved: its digest is compared
                        moved = ("pretrained", "revision")
                        trained = trained | {name: config.model[name] for name in moved}
                    check_unchanged(group, config[group], trained, file, defaults_of(built))
            config.trainer.num_sanity_val_steps = 0  # the curves have their beginning
        config.ckpt_path = str(file)
        if config.trainer.precision == "auto":  # that of the run, on whatever machine
            before = checkpoint["trainer_settings"].get("precision", "auto")
            config.trainer.precision = before
        config.model.hf_config = checkpoint["hf_config"]
        config.data.tokenizer_revision = None
        config.data.add_tokens = None  # its tokenizer has them
        cache = cache_folder(config.data.cache_dir)
        config.data.tokenizer = str(cache_tokenizer(checkpoint["tokenizer_files"], cache))
        if self.verb == "validate":
            config.trainer.logger = False  # it would lie over a point of the run's own curve
        self.going_on = _own_run(checkpoint, file)


def _tokens_of(data: Any) -> int:
    return len(load_tokenizer(data.tokenizer, data.tokenizer_revision, data.add_tokens))


def defaults_of(built: type) -> dict[str, Any]:
    """Return what a class takes where it is not told, in plain values."""
    found = {}
    for name, it in signature(built).parameters.items():
        value = it.default
        if is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)
        if value is not it.empty:
            found[name] = list(value) if isinstance(value, tuple) else value
    return found


def settings_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's own settings, as a config file would have them."""
    model = dict(checkpoint.get("hyper_parameters") or {})
    data = dict(checkpoint.get("datamodule_hyper_parameters") or {})
    # linked, or brought by the checkpoint
    for name in ("hf_config", "block_size", "vocab_size", "seed", "add_tokens", "added_tokens"):
        model.pop(name, None)
    data.pop("add_tokens", None)
    return {"seed_everything": data.pop("seed", None), "model": model, "data": data}


def _root_of_runs(words: list[str]) -> str | None:
    """Return the folder below which a command line says that runs are."""
    for flag in ("logger.init_args.save_dir", "logger.save_dir", "default_root_dir"):
        if (root := value_of(words, f"--trainer.{flag}")) is not None:
            return root
    return None


def _own_run(checkpoint: dict[str, Any], file: Path) -> str | None:
    """Return the run folder that a checkpoint lies in, spelled as it was where the run began.

    ModelCheckpoint knows its files again only by the letters of their path.
    """
    run = run_of(file)
    if run is None:
        return None
    for state in checkpoint.get("callbacks", {}).values():
        spelled = str(state.get("dirpath", "")) if isinstance(state, dict) else ""
        if spelled.endswith("/checkpoints") and Path(spelled).absolute() == run.checkpoints:
            return spelled.removesuffix("/checkpoints")
    folder, here = run.folder, Path.cwd()
    return f"./{folder.relative_to(here)}" if folder.is_relative_to(here) else str(folder)
