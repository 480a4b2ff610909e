"""The folder of the run: where it is, the settings in it, and the loggers that write there."""

import csv
import os
from contextlib import suppress
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import torch.distributed as dist
import yaml
from filelock import FileLock, Timeout
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from gpt2_lightning.checkpoint import step_of
from gpt2_lightning.errors import UsageError
from gpt2_lightning.fit.checkpoints import run_checkpoint, typed
from gpt2_lightning.run_folder import EVENTS, LOGS, Run, remember_run, remember_settings
from gpt2_lightning.storage import sweep, write_text

LOCAL = (TensorBoardLogger, CSVLogger)  # loggers with a folder of their own for each run

DEFAULT_LOGGER: dict[str, Any] = {
    "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
    # hp_metric would be a curve of one point at -1
    "init_args": {"save_dir": ".", "name": str(LOGS), "default_hp_metric": False},
}


COMET_ONLINE = "COMET_START_ONLINE"  # the variable by which Comet keeps a run on this disk

# loggers that keep runs elsewhere -> the argument that names one of their runs, to go on with it
TRACKERS = {"WandbLogger": "id", "MLFlowLogger": "run_id", "CometLogger": "experiment_key"}


def place_loggers(
    trainer: Any,
    going_on: str | None = None,
    name: str | None = None,
    after_step: int | None = None,
) -> None:
    """Decide, in the settings, where each logger writes.

    The run folder is that of the first TensorBoard or CSV logger, which is moved to the front,
    where Lightning looks. Loggers that keep their runs elsewhere (W&B, MLflow, Comet) get a
    TensorBoard logger beside them: the report and ``metrics.csv`` are made of its events. What they
    keep on this disk lies beside the run folders, and a run that goes on goes on with its own run
    there.

    Args:
        trainer: The trainer's settings, changed in place.
        going_on: Run folder of the checkpoint that the run goes on from.
        name: Name of a run that begins (``--run_name``).
        after_step: Step after which training goes on. What a killed process has logged of later
            ones is hidden in TensorBoard, as those steps are taken again.

    Raises:
        UsageError: If a logger would put its files elsewhere than the run.
    """
    if name is not None and (name in ("", ".", "..") or Path(name).name != name):
        raise UsageError(
            f"--run_name {name}: must be the name of one folder. --trainer.default_root_dir FOLDER "
            "says where lightning_logs/ lies."
        )
    if trainer.default_root_dir is not None:  # a shell expands ~ on the command line alone
        trainer.default_root_dir = str(Path(str(trainer.default_root_dir)).expanduser())
    if trainer.fast_dev_run:  # it leaves nothing; some loggers write as soon as they are made
        trainer.logger = False
    if trainer.logger is False:
        return
    loggers = [] if trainer.logger in (None, True) else trainer.logger
    loggers = loggers if isinstance(loggers, list) else [loggers]
    local = [it for it in loggers if issubclass(_class(it.class_path), LOCAL)]
    elsewhere = [it for it in loggers if it not in local]
    if not local:
        parts = DEFAULT_LOGGER | {"init_args": _namespace(DEFAULT_LOGGER["init_args"])}
        local = [_namespace(parts)]
    for logger in local:
        if logger.init_args.get("save_dir") in (None, "."):  # not given, or our default
            logger.init_args.save_dir = trainer.default_root_dir or "."
        logger.init_args.save_dir = str(Path(str(logger.init_args.save_dir)).expanduser())
        if (inner := logger.init_args.get("sub_dir")) is not None and going_on is None:
            raise UsageError(
                f"--trainer.logger.sub_dir {inner}: the files of a run lie in one folder. Leave it "
                "out; --trainer.logger.name and --trainer.logger.version name that folder."
            )
        if name is not None and going_on is None:
            if (version := logger.init_args.get("version")) not in (None, name):
                raise UsageError(
                    f"--run_name {name}: --trainer.logger.version {version} names another folder. "
                    "Leave one of the two out."
                )
            logger.init_args.version = name
    if going_on is not None:
        first, (folder, version) = local[0].init_args, os.path.split(going_on)
        for logger in local[1:]:
            mine = logger.init_args
            if (mine.save_dir, mine.name) == (first.save_dir, first.name):
                mine.save_dir, mine.name = folder, ""
            if mine.get("version") is None:
                mine.version = version
        # wherever the run lies now: it need not be two folders below a save_dir
        first.save_dir, first.name, first.version = folder, "", version
        for logger in local:
            if after_step is not None and issubclass(_class(logger.class_path), TensorBoardLogger):
                logger.dict_kwargs = {"purge_step": after_step + 1}
            if "sub_dir" in logger.init_args:  # of an earlier version's run, whose folder it is
                logger.init_args.sub_dir = None
    first = local[0].init_args
    beside = Path(going_on).parent if going_on else Path(first.save_dir, first.get("name") or "")
    _place_trackers(elsewhere, beside, going_on)
    trainer.logger = [*local, *elsewhere]


def _place_trackers(loggers: list[Any], beside: Path, going_on: str | None) -> None:
    known = Run(Path(going_on)).known("facts").get("trackers") or [] if going_on else []
    for logger in loggers:
        name = logger.class_path.rpartition(".")[2]
        if name not in TRACKERS:
            continue
        beside.mkdir(parents=True, exist_ok=True)  # W&B would write elsewhere, SQLite not at all
        more, settings = dict(logger.get("dict_kwargs") or {}), logger.init_args
        if settings.get("name") == str(LOGS):  # jsonargparse carries it over from our default
            settings.name = None
        if name == "WandbLogger" and settings.save_dir in (None, ".") and settings.dir is None:
            settings.save_dir = str(beside)  # it makes a folder wandb/ there
        elif name == "MLFlowLogger" and not settings.tracking_uri:
            if settings.save_dir in (None, ".", "./mlruns"):  # MLflow keeps no new runs in files
                settings.tracking_uri = f"sqlite:///{beside / 'mlflow.db'}"
                artifacts = (beside / "mlflow").absolute()
                settings.artifact_location = settings.artifact_location or artifacts.as_uri()
        elif name == "CometLogger":
            settings.prefix = settings.prefix or None  # carried over, too: it would name _val/loss
            place = beside / "comet"
            if settings.online is False:  # Lightning turns the logger off then
                settings.online, os.environ[COMET_ONLINE] = None, "0"
                # one for each command: Comet draws its archives' names by the seed, and writes over
                # what an earlier command of the run has left
                place /= f"{datetime.now():%Y%m%d-%H%M%S-%f}"
                place.mkdir(parents=True)
            more.setdefault("offline_directory", str(place))
            # Comet would log what TensorBoard's writer beside it is given, each point a second time
            more.setdefault("auto_metric_logging", False)
        same = next((it for it in known if it[0] == name), None)
        if same is not None and all(settings.get(it) is None for it in (TRACKERS[name], "version")):
            known.remove(same)
            settings[TRACKERS[name]] = same[1]
            if name == "CometLogger":
                settings.mode = "get"
        if more:
            logger.dict_kwargs = more


def tracked(loggers: list[Logger]) -> list[list[str]]:
    """Return class and run of each logger that keeps its runs elsewhere, for `place_loggers`."""
    found = [it for it in loggers if not isinstance(it, LOCAL) and it.version is not None]
    return [[type(it).__name__, str(it.version)] for it in found]


def named_folder(trainer: Any, name: str | None) -> Path | None:
    """Return the run folder that a run's name, or its logger's version, leads to.

    Args:
        trainer: The trainer's settings, changed as `place_loggers` does.
        name: What ``--run_name`` says.

    Returns:
        The folder; None where nothing names it, so that it would be numbered.
    """
    place_loggers(trainer, name=name)
    if trainer.logger is False:
        return None if name is None else Path(trainer.default_root_dir or ".", LOGS, name)
    first = trainer.logger[0].init_args
    version = first.get("version")
    if version is None:
        return None
    folder = version if isinstance(version, str) else f"version_{version}"
    return Path(first.save_dir, first.get("name") or "", folder)


def _class(path: str) -> type:
    module, _, name = path.rpartition(".")
    return cast(type, getattr(import_module(module), name))


def _namespace(values: dict[str, Any]) -> Namespace:
    return Namespace(**values)  # type: ignore[no-untyped-call] # jsonargparse says no types


def ready_loggers(
    loggers: list[Logger],
    going_on: str | None,
    *,
    begins_again: bool = False,
    after_step: int | None = None,
) -> None:
    """Number the loggers alike, and keep what they would delete or write over.

    Args:
        loggers: Those of the trainer, before any of them has begun to write.
        going_on: Run folder of the checkpoint that the run goes on from.
        begins_again: Whether what lies in the run's folder is of its own earlier start.
        after_step: Step after which training goes on.

    Raises:
        UsageError: If a version was given that is another run's.
    """
    _tracking.extend(it for it in loggers if type(it).__name__ in TRACKERS)
    local = [logger for logger in loggers if isinstance(logger, LOCAL)]
    if going_on is not None:
        for logger in local:
            if isinstance(logger, CSVLogger):
                keep_history(logger, after_step)
        return
    # No public setter: both classes take the version when they are made, and find it on request.
    free = [logger for logger in local if logger._version is None]
    if len(local) > 1 and free:
        # the highest: CSVLogger deletes what it finds in the folder of an earlier run
        first = local[0]
        version = max(int(it.version) for it in free) if first in free else first.version
        for logger in free:
            logger._version = version
    for logger in local:
        if logger not in free and _holds_a_run(Run(Path(logger.log_dir))) and not begins_again:
            raise _occupied(logger.log_dir)


class RunFolder(Callback):
    """Settles the run's folder before training, and puts ``config.yaml`` there.

    Args:
        settings: What ``config.yaml`` is to say.
        root: ``--trainer.default_root_dir``.
        going_on: Run folder of the checkpoint that the run goes on from.
        checkpoint: That checkpoint.
        name: Name of a run that begins (``--run_name``).
        begins_again: Whether what lies in the folder is of the run's own earlier start.
        names_code: Whether the settings name classes of the user's own, so that only settings that
            are remembered may name them when the run goes on.

    Attributes:
        run: The run; None before `setup`, and with ``fast_dev_run``, which leaves nothing.
    """

    def __init__(
        self,
        settings: str,
        root: str,
        going_on: str | None = None,
        *,
        checkpoint: Path | None = None,
        name: str | None = None,
        begins_again: bool = False,
        names_code: bool = False,
    ) -> None:
        self.settings = settings
        self.root = root
        self.going_on = going_on
        self.checkpoint = checkpoint
        self.name = name
        self.begins_again = begins_again
        self.names_code = names_code
        self.run: Run | None = None
        # Lightning opens the events of this start before `setup`
        self.earlier_events = set(Path(going_on).glob(EVENTS)) if going_on else set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder, and write the settings of a run that begins.

        Raises:
            UsageError: If the folder is another run's.
        """
        if typed(trainer).fast_dev_run:
            return
        if stage == "fit" and trainer.world_size > 1:
            self._agree_on_checkpoint(trainer)
        folder = trainer.strategy.broadcast(self._settle(trainer))
        for callback in typed(trainer).callbacks:
            if isinstance(callback, ModelCheckpoint) and not trainer.loggers:
                callback.dirpath = callback.dirpath or f"{folder}/checkpoints"
        profiler = typed(trainer).profiler
        if not trainer.loggers and profiler.dirpath is None:  # it would write here
            profiler.dirpath = folder
        if self.going_on is None:
            occupied = trainer.is_global_zero and not self._write(Run(Path(folder)))
            if trainer.strategy.broadcast(occupied):
                raise _occupied(folder)
            if stage == "fit":
                hold(Path(folder), f"--trainer.logger: {folder}")
        self.run = Run(Path(folder))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let ``--ckpt_path last`` find a run that is not in ``lightning_logs``."""
        own = run_checkpoint(trainer)
        if self.run is not None and trainer.is_global_zero and own is not None:
            remember_run(own.folder)

    def _agree_on_checkpoint(self, trainer: Trainer) -> None:
        mine = "none"
        if self.checkpoint is not None:
            mine = f"{self.checkpoint.name} of step {step_of(self.checkpoint)}"
        found = [""] * trainer.world_size
        dist.all_gather_object(found, mine)
        other = next((rank for rank, it in enumerate(found) if it != found[0]), None)
        if other is not None:
            raise UsageError(
                f"--ckpt_path: rank 0 found the checkpoint {found[0]}, rank {other} found "
                f"{found[other]}. All machines must see the same run folder: put it on a disk that "
                "they share (--trainer.default_root_dir)."
            )

    def _settle(self, trainer: Trainer) -> str:
        if self.going_on is not None:
            return self.going_on
        for logger in trainer.loggers:
            if isinstance(logger, LOCAL):
                return logger.log_dir
        if self.name is not None:
            return f"{self.root}/{LOGS}/{self.name}"
        numbers = [_number(run) for run in Path(self.root, LOGS).glob("version_*")]
        return f"{self.root}/{LOGS}/version_{max(numbers, default=-1) + 1}"

    def _write(self, run: Run) -> bool:
        """Write the settings; tell whether the folder was free."""
        if _holds_a_run(run) and not self.begins_again:
            return False
        run.folder.mkdir(parents=True, exist_ok=True)
        try:
            with run.config.open("x", encoding="utf-8") as stream:
                stream.write(self.settings)
        except FileExistsError:  # a run that began at the same moment
            return False
        if self.names_code:
            remember_settings(self.settings)
        return True


@rank_zero_only
def clear_start(run: Run) -> None:
    """Remove what an earlier start of a run left that never wrote a checkpoint."""
    written = (run.config, run.facts_file, run.samples_file, run.surprisal, run.metrics)
    for left in (*written, *run.folder.glob("events.out.tfevents.*")):
        left.unlink(missing_ok=True)
    for folder in (run.folder, run.checkpoints):
        sweep(folder)


LOCK = ".lock"  # in a run folder, while a process trains there

_held: list[FileLock] = []


@rank_zero_only
def hold(run: Path, named: str) -> None:
    """Keep other processes from training in a run folder, until `release` or the process' end.

    Args:
        run: The folder.
        named: How it was asked for, for messages.

    Raises:
        UsageError: If another process trains there.
    """
    lock = FileLock(run / LOCK)
    if any(held.lock_file == lock.lock_file for held in _held):
        return
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise UsageError(
            f"{named}: another process is training in this run folder, and both would write its "
            "last.ckpt. Wait for its end, or begin a run of its own, without --ckpt_path."
        ) from error
    except (OSError, NotImplementedError):  # a file system without locks, or not to be written
        return
    _held.append(lock)


def check_loggers(loggers: Any) -> None:
    """Refuse loggers' settings that hold a secret: config.yaml and the report would keep it.

    Args:
        loggers: As the settings name them.

    Raises:
        UsageError: If one does.
    """
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        settings = (logger.get("init_args") if isinstance(logger, Namespace) else None) or {}
        if settings.get("api_key") is not None:
            raise UsageError(
                "--trainer.logger: api_key would stand in config.yaml and in the report. Leave it "
                "out, and set the variable COMET_API_KEY."
            )
        if urlsplit(str(settings.get("tracking_uri") or "")).password is not None:
            raise UsageError(
                "--trainer.logger: the password in tracking_uri (or MLFLOW_TRACKING_URI) would "
                "stand in config.yaml and in the report. Leave it out, and set the variables "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
            )


_tracking: list[Logger] = []


def release() -> None:
    """Let others train in the run folder that this process held, and end its runs in trackers.

    They would else take the next run of this process for the same.
    """
    os.environ.pop(COMET_ONLINE, None)
    while _tracking:
        logger = _tracking.pop()
        end = {"WandbLogger": "finish", "CometLogger": "end"}.get(type(logger).__name__)
        begun = getattr(logger, "_experiment", None)  # `experiment` would begin a run
        if end is not None and begun is not None:
            with suppress(Exception):  # a tracker that fails here keeps no other from its end
                getattr(begun, end)()
    while _held:
        lock = _held.pop()
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


def _holds_a_run(run: Run) -> bool:
    return run.config.exists() or run.checkpoints.exists()


def _occupied(folder: str) -> UsageError:
    return UsageError(
        f"{folder}: another run is kept there. --ckpt_path {folder} goes on with it; without a "
        "version of its logger's, a new run has a folder of its own."
    )


def _number(run: Path) -> int:
    number = run.name.removeprefix("version_")
    return int(number) if number.isdigit() else -1


def current_run(trainer: Trainer) -> Run | None:
    """Return the run that is under way, or None where nothing is kept of it.

    One process may ask alone; Trainer.log_dir waits for all of them, and knows not every logger.
    """
    for callback in typed(trainer).callbacks:
        if isinstance(callback, RunFolder):
            return callback.run
    return None


def note_schedule(trainer: Trainer, changes: list[list[int]]) -> None:
    """Let a run's ``config.yaml`` say how its schedule was changed, instead of its time limit.

    So a repeat takes the same steps, on whatever machine, and a run that goes on ends with the
    same.
    """
    own = next((it for it in typed(trainer).callbacks if isinstance(it, RunFolder)), None)
    if own is None or own.run is None or not own.run.config.is_file():
        return
    settings = yaml.safe_load(own.run.config.read_text(encoding="utf-8"))
    settings["model"]["schedule_changes"] = [list(change) for change in changes]
    settings["trainer"]["max_time"] = None
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    write_text(own.run.config, text)
    if own.names_code:
        remember_settings(text)


# what stands in a run folder before the first step
WRITTEN_BEFORE_TRAINING = (
    *("config.yaml", "hparams.yaml", "metrics.csv", EVENTS),
    LOCK,
)


class RemoveFailedStart(Callback):
    """Takes back what a user's mistake ended before its first step: a new run, or new events.

    Whether model, data and checkpoint suit each other is known only when all are there, and by
    then the settings have been written and TensorBoard's writer is open.

    Args:
        root: Folder that holds ``lightning_logs``.
    """

    def __init__(self, root: str) -> None:
        self._trained = False
        self._absent = [it for it in (Path(root) / LOGS, Path(root)) if not it.exists()]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take note that there is something to keep."""
        self._trained = True

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Remove what was written, unless the folder holds more than that."""
        theirs = isinstance(exception, UsageError | MisconfigurationException)
        if not theirs or not trainer.is_global_zero or self._trained:
            return
        for callback in typed(trainer).callbacks:
            if isinstance(callback, RunFolder) and callback.going_on is not None:
                folder = Path(callback.going_on)
                _remove(trainer, folder, set(folder.glob(EVENTS)) - callback.earlier_events)
                return
        run = current_run(trainer)  # None where config.yaml may be another run's
        names = [name for name in WRITTEN_BEFORE_TRAINING if run or name != "config.yaml"]
        local = [logger for logger in trainer.loggers if isinstance(logger, LOCAL)]
        for folder in {*([run.folder] if run else []), *(Path(logger.log_dir) for logger in local)}:
            found = {file for name in names for file in folder.glob(name)}
            if folder.is_dir() and found == set(folder.iterdir()):
                _remove(trainer, folder, found)
                folder.rmdir()
        for folder in self._absent:
            with suppress(OSError):  # it has become another run's, or was never made
                folder.rmdir()


def _remove(trainer: Trainer, folder: Path, files: set[Path]) -> None:
    """Remove files of a run folder, which TensorBoard's writers must not write to any more."""
    for logger in trainer.loggers:
        if files and isinstance(logger, TensorBoardLogger) and Path(logger.log_dir) == folder:
            logger.experiment.close()
    for file in files:
        file.unlink()


@rank_zero_only
def keep_history(logger: CSVLogger, after_step: int | None = None) -> None:
    """Let a CSV logger add to the ``metrics.csv`` that it would delete.

    Args:
        logger: The logger, before it has begun to write.
        after_step: Step after which training goes on; rows of later ones, which a killed process
            has left, are dropped, as those steps are taken again.
    """
    file = Run(Path(logger.log_dir)).metrics
    aside = file.with_suffix(".csv.earlier")
    if aside.exists() and not file.exists():  # killed between the two moves below
        aside.replace(file)
    if not file.exists():
        return
    whole, _, _ = file.read_text(encoding="utf-8").rpartition("\n")  # a last line may be cut short
    header = next(csv.reader(whole.splitlines()[:1]), [])
    if not header:
        return
    rows = list(csv.reader(whole.splitlines()[1:]))
    if after_step is not None and "step" in header:
        at = header.index("step")
        rows = [row for row in rows if len(row) <= at or float(row[at] or 0) <= after_step]
    with aside.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    file.unlink()
    writer = logger.experiment  # here it would be deleted
    aside.replace(file)
    writer.metrics_keys = header
