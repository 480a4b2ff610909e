"""GPT2CLI: the flags of fit, their defaults and links; the flags alone, for plan and inspect."""

import json
import logging
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from enum import Enum
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException

from gpt2_lightning.checkpoint import (
    give_to_async,
    give_to_trainer,
    read_checkpoint,
    weights_of,
    write_tokenizer_of,
)
from gpt2_lightning.data.datamodule import DEFAULT_VOCAB_SIZE, WikiTextDataModule
from gpt2_lightning.data.tokenizer import cache_folder, load_tokenizer
from gpt2_lightning.errors import UsageError
from gpt2_lightning.fit.checkpoints import RunCheckpoint
from gpt2_lightning.fit.checks import (
    FROM_SCRATCH,
    Mistake,
    check_accelerator,
    check_callbacks,
    check_checkpoint,
    check_numbers,
    check_precision,
    check_trainer,
    check_unchanged,
    check_unused,
    in_flags,
    whole_number,
)
from gpt2_lightning.fit.finish import HFFolder, Outcome, Report
from gpt2_lightning.fit.monitoring import Baseline, Curves, ProgressBar, Throughput, Totals
from gpt2_lightning.fit.records import Facts, Predictions, Samples, Surprisal
from gpt2_lightning.fit.run_folder import (
    DEFAULT_LOGGER,
    RunFolder,
    hold,
    place_loggers,
    ready_loggers,
    release,
)
from gpt2_lightning.fit.stop import Listen, Stop, TimeLimit
from gpt2_lightning.logs import quieten, say
from gpt2_lightning.model.module import GPT2Module
from gpt2_lightning.parser import (
    bound_yaml,
    check_config_file,
    check_config_files,
    code_named_in,
    given_files,
    refuse,
    value_of,
    with_underscores,
)
from gpt2_lightning.run_folder import are_own_settings, find_checkpoint, hf_of, model_of, run_of
from gpt2_lightning.storage import disk_message, refusal_of, sweep

log = logging.getLogger(__name__)

DEFAULT_EPOCHS = 3  # where no length is given; Lightning would take 1000

DEFAULTS = {
    "trainer.logger": DEFAULT_LOGGER,
    "trainer.num_sanity_val_steps": -1,  # the whole split, kept as the curve's beginning
    "trainer.use_distributed_sampler": False,  # the loaders deal the blocks out themselves
    "trainer.enable_model_summary": False,  # Totals says it in a line, tied weights counted once
    "checkpoint.monitor": "val/loss",
    "checkpoint.mode": "min",
    "checkpoint.save_last": True,
    "checkpoint.save_on_train_epoch_end": False,  # after the validation, where a run can go on
    # a metric's name with its slash would make a folder
    "checkpoint.filename": "best-step{step}-val_loss{val/loss:.3f}",
    "checkpoint.auto_insert_metric_name": False,
    "checkpoint.enable_version_counter": False,
}

MOST_USED = """The flags that most runs need:
  --model.pretrained --data.source --data.block_size --data.batch_size
  --model.learning_rate --trainer.max_epochs --trainer.max_time DD:HH:MM:SS
  --trainer.accumulate_grad_batches --trainer.precision --trainer.devices
  --ckpt_path last"""

DESCRIPTIONS = {
    "fit": f"Train or fine-tune; evaluates, samples and saves on the way.\n{MOST_USED}",
    "validate": "Perplexity on the validation split, measured as in training.",
    "test": "Perplexity on the test split, measured as in training.",
    "predict": "Continue every prompt of a file, spread over the devices.",
}

ELSEWHERE = (
    "--trainer.default_root_dir FOLDER puts a run on another disk, --data.cache_dir FOLDER its "
    "tokens."
)

# What a checkpoint brings with it.
CARRIED = ("--data.tokenizer", "--data.tokenizer_revision", "--data.vocab_size")


class GPT2ArgumentParser(LightningArgumentParser):
    """Lightning's parser, with messages for people."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)  # --mod is a typo, not --model

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message instead of printing the usage and ending the process."""
        # what jsonargparse shows of a logger without its required argument
        lacking = r"class_path='(?:\w+\.)*(\w+)', init_args=Namespace\(save_dir=None"
        if named := re.search(lacking, message):
            raise UsageError(
                f"--trainer.logger: {named[1]} needs a folder. --trainer.logger.save_dir . after "
                "it would work, and puts its files into the run folder."
            )
        refuse(self, message)


class GPT2CLI(LightningCLI):
    """Fills in what follows from other flags, and refuses what contradicts them.

    Args:
        words: A verb of Lightning's, and its flags.
        parser_kwargs: Of each verb's parser, by verb.
    """

    trains = True  # and so writes into a run folder

    def __init__(self, words: list[str], **parser_kwargs: dict[str, Any]) -> None:
        bound_yaml()
        self.stop = Stop()
        try:
            super().__init__(
                GPT2Module,
                WikiTextDataModule,
                args=words,
                seed_everything_default=1,  # a run can be repeated unless asked otherwise
                auto_configure_optimizers=False,  # it would turn the schedule once an epoch
                load_from_checkpoint_support=False,  # checkpoints hold plain values
                parser_class=GPT2ArgumentParser,
                parser_kwargs=parser_kwargs,
                save_config_callback=None,  # RunFolder writes config.yaml, for every logger
            )
        except RuntimeError as error:
            if self.stop.lost is None:
                raise
            if self.stop.lost:
                say(f"error: {self.stop.lost}", sys.stderr)
            raise SystemExit(1) from error

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks that flags can change, and the links of plain values."""
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(Samples, "samples")
        parser.set_defaults(DEFAULTS)
        parser.link_arguments("data.block_size", "model.block_size")
        parser.link_arguments("data.vocab_size", "model.vocab_size")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=whole_number)
        parser.link_arguments("seed_everything", "model.seed", compute_fn=whole_number)

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        """Set the parsers up, each under its verb's name."""
        super().setup_parser(*args, **kwargs)
        for verb, parser in self._subcommand_parsers.items():
            parser.prog = f"gpt2_lightning {verb}"
            parser.usage = f"python -m gpt2_lightning {verb} [--config FILE] [flags]"
            if verb in ("validate", "test"):  # Outcome prints the numbers
                parser.set_defaults({"verbose": False})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the words; with a checkpoint, on top of its run's own settings."""
        assert isinstance(args, list)
        words = with_underscores(args)
        self.typed = words
        check_config_files(words[1:], self._subcommand_parsers[words[0]])
        self.checkpoint_file: Path | None = None
        self.going_on: str | None = None  # the folder of the run that goes on
        if (asked := value_of(words, "--ckpt_path")) is not None:
            self.checkpoint_file = find_checkpoint(asked, _root_of_runs(words))
            for flag in CARRIED:
                if value_of(words, flag) is not None:
                    raise UsageError(
                        f"{flag}: {self.checkpoint_file} carries its own tokenizer. Leave the "
                        "flag out."
                    )
            words = [words[0], "--config", self._own_settings(words), *words[1:]]
        self.config = parser.parse_args(words)

    def _own_settings(self, words: list[str]) -> str:
        """Return the settings of a checkpoint's run, for ``--config``, if they run no other's code.

        Raises:
            UsageError: If they name code that is neither Lightning's nor the user's.
        """
        file = self.checkpoint_file
        assert file is not None
        run = run_of(file)
        if run is None or not (config := run / "config.yaml").is_file():
            settings = settings_of(read_checkpoint(file))
            if (name := code_named_in(settings)) is not None:
                raise UsageError(
                    f"--ckpt_path {file}: its settings name {name}, whose code would run. No "
                    "checkpoint of gpt2_lightning has such settings, and it is not used."
                )
            return json.dumps(settings)
        parser = self._subcommand_parsers[words[0]]
        settings = check_config_file(config, f"--ckpt_path: {config}", parser)
        name = code_named_in(settings, config.parent)
        trusted = [file.resolve() for _, file in given_files(words)]
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

    def _parse_ckpt_path(self) -> None:
        """Take nothing over from the checkpoint silently.

        Lightning would let a checkpoint's hyper-parameters win over the user's flags.
        """

    def before_instantiate_classes(self) -> None:
        """Fill in the tokenizer and the vocabulary, and look for contradictions."""
        config = self.config[self.subcommand]
        self.check_machine(config.trainer)
        check_trainer(config.trainer)
        check_callbacks(config.trainer.callbacks)
        check_checkpoint(config.checkpoint, config.trainer.callbacks)
        check_numbers(config.model)
        if config.model.pretrained is not None:
            config.model.pretrained = model_of(config.model.pretrained)
        if self.checkpoint_file is None and not config.get("ckpt_path"):
            self._leave_other_model(config)
        if config.trainer.max_epochs is None and config.trainer.max_steps == -1:
            config.trainer.max_epochs = DEFAULT_EPOCHS
        if config.get("ckpt_path") and self.checkpoint_file is None:  # from a YAML file
            root = config.trainer.default_root_dir
            self.checkpoint_file = find_checkpoint(config.ckpt_path, root and str(root))
        if self.checkpoint_file is not None:
            self._go_on_from(self.checkpoint_file, config)
        elif config.model.pretrained is not None:
            check_unused(self.typed, f"--model.pretrained {config.model.pretrained}", FROM_SCRATCH)
            if config.data.tokenizer is None:
                config.data.tokenizer = config.model.pretrained
                config.data.tokenizer_revision = config.model.revision
        elif config.data.tokenizer is not None:
            check_unused(self.typed, f"--data.tokenizer {config.data.tokenizer}", FROM_SCRATCH[:1])
            tokenizer = load_tokenizer(config.data.tokenizer, config.data.tokenizer_revision)
            config.data.vocab_size = len(tokenizer)
        elif config.data.vocab_size is None:
            config.data.vocab_size = DEFAULT_VOCAB_SIZE
        config.model.vocab_size = config.data.vocab_size

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

    def check_machine(self, trainer: Any) -> None:
        """Refuse what this machine does not have.

        Raises:
            UsageError: If it lacks what the flags ask for.
        """
        check_precision(trainer)
        check_accelerator(trainer.accelerator)

    def _go_on_from(self, file: Path, config: Any) -> None:
        """Build the model and the tokenizer that a checkpoint carries, in its own run folder."""
        checkpoint = read_checkpoint(file)
        weights_of(checkpoint, f"--ckpt_path {file}")
        if self.subcommand == "fit":
            if config.trainer.fast_dev_run:
                raise UsageError(
                    f"--trainer.fast_dev_run: it tries a run's first steps, and {file} stands "
                    f"after step {checkpoint['global_step']:,}. It works without --ckpt_path."
                )
            if not checkpoint.get("callbacks"):
                raise UsageError(
                    f"--ckpt_path: {file} holds weights alone (--checkpoint.save_weights_only "
                    "true), from which training cannot go on. Begin a new run with them: "
                    f"--model.pretrained {run_of(file) or 'RUN'}, without --ckpt_path."
                )
            for group, key, built in (
                # first: what is linked is a flag of data
                ("data", "datamodule_hyper_parameters", WikiTextDataModule),
                ("model", "hyper_parameters", GPT2Module),
            ):
                if trained := checkpoint.get(key):
                    check_unchanged(group, config[group], trained, file, defaults_of(built))
            config.trainer.num_sanity_val_steps = 0  # the curves have their beginning
        config.ckpt_path = str(file)
        config.model.hf_config = checkpoint["hf_config"]
        config.data.tokenizer_revision = None
        config.data.tokenizer = str(
            write_tokenizer_of(checkpoint, cache_folder(config.data.cache_dir))
        )
        if self.subcommand == "validate":
            config.trainer.logger = False  # it would lie over a point of the run's own curve
        run = run_of(file)
        if run is not None and self.subcommand == "fit" and self.trains:
            hold(run, f"--ckpt_path {run}")
            for left in (*sweep(run), *sweep(file.parent)):
                log.info("%s is removed: a process that was killed had left it.", left)
        self.going_on = _own_run(checkpoint, file)

    def instantiate_classes(self) -> None:
        """Build what the settings say; where loggers write is no setting of config.yaml's."""
        config = self.config[self.subcommand]
        for callback in config.trainer.callbacks or []:
            settings = callback.get("init_args") or {}
            for name, value in settings.items():
                if isinstance(value, Enum) and isinstance(value, str):  # Timer's default interval
                    settings[name] = value.value  # as YAML has it
        self.settings = self._parser(self.subcommand).dump(config, skip_none=False)
        place_loggers(config.trainer, self.going_on)
        super().instantiate_classes()

    def after_fit(self) -> None:
        """End as a signal asked that came while the results were written."""
        self.stop.leave()

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Add the callbacks that every run has."""
        settings = self._get(self.config_init, "trainer")
        bar = settings.enable_progress_bar is not False
        limit = settings.max_time
        root = str(settings.default_root_dir or ".")
        callbacks: list[Callback] = [
            RunFolder(  # first: the others write there
                self.settings,
                root,
                self.going_on,
                names_code=code_named_in(yaml.safe_load(self.settings)) is not None,
            ),
            *([ProgressBar()] if bar else []),  # before them: what others print comes after it
            Listen(self.stop),  # before those that write at the end
            Baseline(),
            Totals(),
            Throughput(),
            Curves(),
            Surprisal(),
            *([] if limit is None else [TimeLimit(limit)]),
            self.stop,
            HFFolder(),
            Outcome(),
            Facts(self.typed),
            Report(),  # reads what those above have written
            Predictions(),
            Mistake(),
        ]
        self.trainer_defaults = {"callbacks": callbacks}
        give_to_async(self._get(self.config_init, "trainer").plugins)
        try:
            trainer: Any = super().instantiate_trainer(**{**kwargs, "max_time": None})
        except (
            MisconfigurationException,
            ValueError,
            TypeError,
            ImportError,
            RuntimeError,  # two callbacks whose states a checkpoint could not tell apart
        ) as error:
            raise UsageError(in_flags(str(error))) from error
        give_to_trainer(trainer)
        ready_loggers(trainer.loggers, self.going_on)
        trainer.callbacks.sort(key=_place)
        return trainer


def _place(callback: Callback) -> int:
    """Return where among the callbacks one stands; Lightning asks them in this order.

    A checkpoint holds the state of those before it. Stop puts off the stops that others ask for,
    and ends a run when its validation is saved. Facts and the report tell of what was saved.
    """
    order: tuple[type, ...] = (Checkpoint, Stop, Facts, Report)
    return next((n for n, kind in enumerate(order, 1) if isinstance(callback, kind)), 0)


def run(words: list[str]) -> None:
    """Run one of Lightning's verbs.

    Args:
        words: The verb and its flags.

    Raises:
        SystemExit: With code 130 after Ctrl-C and 143 after SIGTERM.
    """
    quieten()
    try:
        GPT2CLI(words, **{verb: {"description": text} for verb, text in DESCRIPTIONS.items()})
    except MisconfigurationException as error:  # what Lightning finds in flags once it has begun
        raise UsageError(in_flags(str(error))) from error
    except UsageError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        if (refused := refusal_of(error)) is None:
            raise
        raise UsageError(f"{disk_message(refused)} {ELSEWHERE}") from error
    except SIGTERMException as ended:  # outside training Lightning itself stops, with code 0
        raise SystemExit(128 + signal.SIGTERM) from ended
    except SystemExit as ended:
        if isinstance(ended.__context__, KeyboardInterrupt):  # it ends with code 1
            raise SystemExit(128 + signal.SIGINT) from ended
        raise
    finally:
        release()


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
    for name in ("hf_config", "block_size", "vocab_size", "seed"):
        model.pop(name, None)
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
        if spelled.endswith("/checkpoints") and Path(spelled).absolute() == run / "checkpoints":
            return spelled.removesuffix("/checkpoints")
    return f"./{run.relative_to(Path.cwd())}" if run.is_relative_to(Path.cwd()) else str(run)


class FitSettings(GPT2CLI):
    """The flags of `fit`, and a verb's own beside them: parsed, filled in and checked.

    Nothing is built, so nothing is read, downloaded or written: that is the verb's to do.

    Attributes:
        values: The settings as `fit` would use them: ``trainer``, ``model``, ``data`` and so on.
        own: The verb's own flags, by name.
    """

    trains = False

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
        self._verb, self._own = verb, own
        super().__init__(["fit", *words], fit={"description": (own.__doc__ or "").splitlines()[0]})
        self.values = self.config.fit
        self.own = {name: self.values[name] for name in self._own_names}

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the one verb whose flags these are."""
        return {"fit": GPT2CLI.subcommands()["fit"]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the verb's own flags to those of `fit`."""
        super().add_arguments_to_parser(parser)
        self._own_names = parser.add_function_arguments(self._own, as_group=False, skip={1})
        for action in parser._actions:
            if action.dest in self._own_names and action.default is False:
                action.nargs, action.const = "?", True  # a bare --json will do

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the words under the verb's own name."""
        own = self._subcommand_parsers["fit"]
        own.prog = f"gpt2_lightning {self._verb}"
        own.usage = f"python -m gpt2_lightning {self._verb} [--config FILE] [flags]"
        super().parse_arguments(parser, args)

    def check_machine(self, trainer: Any) -> None:
        """Take any accelerator: a plan may be for another machine."""
        check_precision(trainer)

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def _set_seed(self) -> None:
        """Leave the generators alone."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Train nothing."""
