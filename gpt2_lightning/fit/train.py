"""GPT2CLI: LightningCLI with the trainer, the callbacks and the folder that every run has."""

import logging
import signal
import sys
from enum import Enum
from typing import Any

import yaml
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.callbacks import ProgressBar as BarOfLightning
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.profilers import PyTorchProfiler
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from gpt2_lightning import startup
from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.errors import UsageError, one_line
from gpt2_lightning.fit.averaging import WeightAverage
from gpt2_lightning.fit.checkpoints import give_to_async, give_to_trainer
from gpt2_lightning.fit.classes import in_flags, of_lightnings_class
from gpt2_lightning.fit.finish import HFFolder, Report, RunSummary
from gpt2_lightning.fit.monitoring import Baseline, Curves, ProgressBar, StartSummary, Throughput
from gpt2_lightning.fit.processes import (
    Heartbeat,
    check_meeting,
    requeue,
    requeue_signals,
    slurm_environment,
    start_process_group,
    wait_for_all,
)
from gpt2_lightning.fit.records import Facts, Predictions, Surprisal
from gpt2_lightning.fit.run_folder import (
    RemoveFailedStart,
    RunFolder,
    clear_start,
    hold,
    place_loggers,
    ready_loggers,
    release,
)
from gpt2_lightning.fit.settings import (
    DEFAULT_SEED,
    CommandLine,
    GPT2ArgumentParser,
    GPT2Trainer,
    add_flags,
    name_after_verb,
)
from gpt2_lightning.fit.stop import EarlyStop, Stop, Stopped, StopWhileFinishing
from gpt2_lightning.fit.time_limit import TimeLimit
from gpt2_lightning.logs import quieten, say
from gpt2_lightning.model.gpt2 import check_attend
from gpt2_lightning.model.module import GPT2Module
from gpt2_lightning.parser import bound_yaml, code_named_in
from gpt2_lightning.run_folder import Run, run_of
from gpt2_lightning.storage import disk_message, refusal_of, sweep

log = logging.getLogger(__name__)

MOST_USED = """The flags that most runs need:
  --model.pretrained --data.source --data.block_size --data.batch_size
  --model.learning_rate --trainer.max_epochs --minutes
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


class GPT2CLI(LightningCLI):
    """Runs a verb of Lightning's with settings that are filled in and checked.

    Args:
        words: The verb, and its flags.
    """

    def __init__(self, words: list[str]) -> None:
        bound_yaml()
        self.stop = Stop()
        self.verb = words[0]
        try:
            super().__init__(
                GPT2Module,
                WikiTextDataModule,
                trainer_class=GPT2Trainer,
                args=words,
                seed_everything_default=DEFAULT_SEED,
                auto_configure_optimizers=False,  # it would turn the schedule once an epoch
                load_from_checkpoint_support=False,  # checkpoints hold plain values
                parser_class=GPT2ArgumentParser,
                parser_kwargs={self.verb: {"description": DESCRIPTIONS[self.verb]}},
                save_config_callback=None,  # RunFolder writes config.yaml, for every logger
            )
        except RuntimeError as error:
            if self.stop.lost is None:
                raise
            if self.stop.lost:
                say(f"error: {self.stop.lost} ({one_line(error)[:300]})", sys.stderr)
            raise SystemExit(1) from error
        finally:
            profiler = getattr(getattr(self, "trainer", None), "profiler", None)
            if isinstance(profiler, PyTorchProfiler) and _has_not_begun(profiler):
                profiler.profiler = None  # Lightning would ask it for events when it is freed

    # Lightning calls it as a method, and which verb runs only the instance knows
    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the verb that runs, alone: a parser takes a fifth of a second to build."""
        return {self.verb: LightningCLI.subcommands()[self.verb]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the flags beside those of trainer, model and data."""
        add_flags(parser)

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        """Set the verb's parser up, under its name."""
        super().setup_parser(*args, **kwargs)
        parser = self._subcommand_parsers[self.verb]
        name_after_verb(parser, self.verb)
        if self.verb in ("validate", "test"):  # RunSummary prints the numbers
            parser.set_defaults({"verbose": False})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the words; with a checkpoint, on top of its run's own settings."""
        assert isinstance(args, list)
        self.line = CommandLine(self.verb, args[1:], self._subcommand_parsers[self.verb])
        self.config = parser.parse_args([self.verb, *self.line.words])

    def _parse_ckpt_path(self) -> None:
        """Take nothing over from the checkpoint silently.

        Lightning would let a checkpoint's hyper-parameters win over the user's flags.
        """

    def before_instantiate_classes(self) -> None:
        """Fill in what follows from other flags, and refuse what contradicts them."""
        self.line.fill_in(self.config[self.subcommand])

    def instantiate_classes(self) -> None:
        """Build what the settings say; where loggers write is no setting of config.yaml's."""
        config = self.config[self.subcommand]
        if self.subcommand == "fit":
            self.stop.listen_for_requeue()
        for callback in config.trainer.callbacks or []:
            settings = callback.get("init_args") or {}
            for name, value in settings.items():
                if isinstance(value, Enum) and isinstance(value, str):  # Timer's default interval
                    settings[name] = value.value  # as YAML has it
        self.settings = self._parser(self.subcommand).dump(config, skip_none=False)
        run = run_of(self.line.checkpoint_file) if self.line.checkpoint_file else None
        if run is not None and self.subcommand == "fit":
            hold(run.folder, f"--ckpt_path {run.folder}")
            for left in (*sweep(run.folder), *sweep(run.checkpoints)):
                log.info("%s is removed: a process that was killed had left it.", left)
        if (folder := self.line.begins_again) is not None and not config.trainer.fast_dev_run:
            hold(folder, f"--ckpt_path auto: {folder}")
            clear_start(Run(folder))
        after_step = self.line.after_step
        place_loggers(config.trainer, self.line.going_on, self.line.run_name, after_step)
        try:
            super().instantiate_classes()
        except UsageError:
            raise
        except Exception as error:  # a package that is not there, values that do not suit
            if (failed := of_lightnings_class(error)) is not None:
                raise failed from error
            raise
        check_attend(self.model.model, self.datamodule.attend)

    def after_fit(self) -> None:
        """End as a signal asked that came while the results were written."""
        self.stop.leave()

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Add the callbacks that every run has."""
        settings = self._get(self.config_init, "trainer")
        given = settings.callbacks or []
        bar = settings.enable_progress_bar is not False
        bar &= not any(isinstance(it, BarOfLightning) for it in given)  # there can be one
        limit = settings.max_time
        root = str(settings.default_root_dir or ".")
        averages = self.config[self.subcommand].model.averaging
        callbacks: list[Callback] = [
            RunFolder(  # first: the others write there
                self.settings,
                root,
                self.line.going_on,
                checkpoint=self.line.checkpoint_file,
                name=self.line.run_name,
                begins_again=self.line.begins_again is not None,
                names_code=code_named_in(yaml.safe_load(self.settings)) is not None,
            ),
            *([ProgressBar()] if bar else []),  # before them: what others print comes after it
            StopWhileFinishing(self.stop),  # before those that write at the end
            *([WeightAverage()] if averages else []),
            Baseline(),
            StartSummary(),
            Throughput(),
            Curves(),
            Surprisal(),
            *([] if limit is None else [TimeLimit(limit, startup.command_began)]),
            self.stop,
            Heartbeat(),
            HFFolder(),
            RunSummary(),
            Facts([self.line.verb, *self.line.given]),
            Report(),  # reads what those above have written
            Predictions(),
            RemoveFailedStart(root),
        ]
        self.trainer_defaults = {"callbacks": callbacks}
        give_to_async(settings.plugins)
        plugins = settings.plugins if isinstance(settings.plugins, list) else [settings.plugins]
        if not any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
            plugins = [*filter(None, plugins), *slurm_environment()]
        ours = {"max_time": None, "plugins": plugins or None}  # Stop and TimeLimit do it
        try:
            trainer: Any = super().instantiate_trainer(**{**kwargs, **ours})
        except (
            MisconfigurationException,
            ValueError,
            TypeError,
            ImportError,
            RuntimeError,  # two callbacks whose states a checkpoint could not tell apart
        ) as error:
            raise UsageError(in_flags(str(error))) from error
        check_meeting(trainer)
        start_process_group(trainer.strategy)
        give_to_trainer(trainer)
        again = self.line.begins_again is not None
        ready_loggers(
            trainer.loggers,
            self.line.going_on,
            begins_again=again,
            after_step=self.line.after_step,
        )
        trainer.callbacks.sort(key=_place)
        return trainer


def _has_not_begun(profiler: PyTorchProfiler) -> bool:
    """Tell whether a run has ended before torch's profiler began to record."""
    return getattr(profiler.profiler, "profiler", None) is None


def _place(callback: Callback) -> int:
    """Return where among the callbacks one stands; Lightning asks them in this order.

    A checkpoint holds the state of those before it. Stop puts off the stops that others ask for,
    and ends a run when its validation is saved. Facts and the report tell of what was saved.
    """
    if isinstance(callback, WeightAverage):
        return -2  # what others show of a validation is of the weights that it has found better
    if isinstance(callback, EarlyStop):
        return -1  # others say at the start that nothing is left to train
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
        GPT2CLI(words)
    except MisconfigurationException as error:  # what Lightning finds in flags once it has begun
        raise UsageError(in_flags(str(error))) from error
    except UsageError:
        raise
    except Stopped as ended:
        if ended.by_all:
            wait_for_all()
        if ended.code in {128 + number for number in requeue_signals()}:
            release()
            rank_zero_only(requeue)()
        raise
    except Exception as error:
        if (refused := refusal_of(error)) is not None:
            raise UsageError(f"{disk_message(refused)} {ELSEWHERE}") from error
        if (failed := of_lightnings_class(error)) is not None:
            raise failed from error
        raise
    except SIGTERMException as ended:  # outside training Lightning itself stops, with code 0
        raise SystemExit(128 + signal.SIGTERM) from ended
    except SystemExit as ended:
        if isinstance(ended.__context__, KeyboardInterrupt):  # it ends with code 1
            raise SystemExit(128 + signal.SIGINT) from ended
        raise
    finally:
        release()
