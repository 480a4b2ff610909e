"""A run folder: where its files are, which checkpoint is its last and its best, what it holds."""

import csv
import hashlib
import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from gpt2_lightning.checkpoint import (
    BEST_KEY,
    FACTS,
    SETTINGS,
    is_sharded,
    is_whole,
    read_notes,
    state_of,
    step_of,
    written_at,
)
from gpt2_lightning.data.tokenizer import cache_folder
from gpt2_lightning.errors import UsageError
from gpt2_lightning.storage import append_text, write_text
from gpt2_lightning.untrusted import misfit, parse_json, parse_yaml, read_json

log = logging.getLogger(__name__)

LOGS = Path("lightning_logs")

EVENTS = "events.out.tfevents.*"

HF_RECORD = "checkpoint.json"  # in hf/: the checkpoint that it was made from, and its step

# how a run ends, by what facts.json calls it
ENDS = {
    None: "not at its end",
    "finished": "finished",
    "stopped": "stopped before its end",
    "failed": "ended by an error",
    "not finite": "ended where its loss or gradients were not finite",
}

Scalars = dict[int, dict[str, float]]  # by step, then by name

T = TypeVar("T")


class Run:
    """A run folder. A file is read when it is asked for; what is not there is empty.

    Attributes:
        folder: Where it lies.
        config: ``config.yaml``: the settings.
        facts_file: ``facts.json``: what only the run itself knew.
        metrics: ``metrics.csv``: the scalars, a row a step.
        samples_file: ``samples.jsonl``: the samples of each validation.
        surprisal: ``surprisal.jsonl``: a held-out passage, and the nats of its tokens.
        predictions: ``predictions.jsonl``: what the verb predict has written.
        report: ``report.html``.
        hf: ``hf/``: the best model, in Hugging Face format.
        checkpoints: ``checkpoints/``: the best and the last.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.yaml"
        self.facts_file = folder / "facts.json"
        self.metrics = folder / "metrics.csv"
        self.samples_file = folder / "samples.jsonl"
        self.surprisal = folder / "surprisal.jsonl"
        self.predictions = folder / "predictions.jsonl"
        self.report = folder / "report.html"
        self.hf = folder / "hf"
        self.checkpoints = folder / "checkpoints"

    # --- its checkpoints ----------------------------------------------------------------------

    def _usable(self) -> list[Path]:
        """Return the whole checkpoints, the newest last."""
        there = sorted(self.checkpoints.glob("*.ckpt"), key=written_at)
        return [file for file in there if _is_usable(file)]

    def last_checkpoint(self) -> Path | None:
        """Return ``last.ckpt``; where it is torn or missing, the newest whole checkpoint."""
        last = self.checkpoints / "last.ckpt"
        if last.exists() and _is_usable(last):
            return last
        found = self._usable()
        if found:
            log.warning("%s is taken in place of last.ckpt.", found[-1])
        return found[-1] if found else None

    def best_checkpoint(self) -> Path | None:
        """Return the best checkpoint, else the last one, if there is any.

        Which one is the best, the run's own ModelCheckpoint has said in the newest checkpoint;
        where that one is torn or gone, the best of the others that it kept.
        """
        usable = self._usable()
        return self._best_of(usable, self._newest_state(usable))

    @staticmethod
    def _newest_state(usable: list[Path]) -> dict[str, Any]:
        """Return what the newest of the whole checkpoints says of the best."""
        return state_of(read_notes(usable[-1]), BEST_KEY) if usable else {}

    def _best_of(self, usable: list[Path], state: dict[str, Any]) -> Path | None:
        # --checkpoint.filename may have named them
        found = [file for file in usable if not file.stem.startswith("last")]
        if not found:
            return self.last_checkpoint()
        if not state:  # weights alone: the facts may know
            known = self.known("facts").get("best") or {}
            return next((file for file in found if file.name == known.get("file")), found[-1])
        ranked = sorted(
            (state.get("best_k_models") or {}).items(),
            key=lambda it: float(it[1]) if state.get("mode", "min") == "min" else -float(it[1]),
        )
        for name in (state.get("best_model_path") or "", *(name for name, _ in ranked)):
            if (file := self.checkpoints / Path(name).name) in found:
                return file
        return self.last_checkpoint()

    def hf_record(self) -> dict[str, Any] | None:
        """Return which checkpoint ``hf/`` was made from; None where that was not noted.

        Returns:
            ``file``, its name, null where none was kept; and ``step``, its optimizer step.
        """
        found: Any = None
        with suppress(OSError, ValueError):
            found = read_json(self.hf / HF_RECORD)
        fits = misfit(found, {"file": str, "step": int}) is None
        return found if fits and found and {"file", "step"} <= found.keys() else None

    def newer_than_hf(self) -> Path | None:
        """Return the best checkpoint where ``hf/`` was made from an earlier one.

        ``hf/`` is written at a run's end. One that went on and was killed has its earlier ``hf/``.

        Returns:
            The checkpoint; None where ``hf/`` is of it, or nothing tells.
        """
        if (record := self.hf_record()) is None:
            return None
        usable = self._usable()
        state = self._newest_state(usable)
        if (best := self._best_of(usable, state)) is None:
            return None
        noted = state.get("best_model_path") or str(best)
        file = self.checkpoints / Path(noted).name
        same = file.name == record["file"]
        # where that file has been removed since, hf/ is what is left of it
        if same and (file not in usable or step_of(file) == record["step"]):
            return None
        return best

    def older_hf(self, newer: Path) -> str:
        """Say that ``hf/`` is older than the best checkpoint, without a stop at the end."""
        record = self.hf_record() or {}
        return (
            f"hf/ is of step {record.get('step', 0):,}, from before the run went on; its best is "
            f"now {newer.name} of step {step_of(newer):,}"
        )

    # --- what its files hold ------------------------------------------------------------------

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What only the run itself knew: data, machine, versions, duration.

        Raises:
            UsageError: If the file cannot be read; so do the others.
        """
        return _read(self.facts_file, _facts, {})

    @cached_property
    def config_text(self) -> str:
        """The settings as they stand in the file."""
        return _read(self.config, _text, "")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings by group and name."""
        return _read(self.config, read_settings, {})

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """The samples of each validation."""
        return _read(self.samples_file, _json_lines, [])

    @cached_property
    def passages(self) -> dict[int, dict[str, Any]]:
        """Tokens of a held-out passage and the nats of each, by step."""
        rows: list[dict[str, Any]] = _read(self.surprisal, _json_lines, [])
        return {row["step"]: row for row in rows if isinstance(row.get("step"), int)}

    @cached_property
    def scalars(self) -> Scalars:
        """What was logged, by step and name."""
        return read_scalars(self.folder) or _read(self.metrics, read_metrics_csv, {})

    def known(self, name: Literal["facts", "settings"]) -> dict[str, Any]:
        """Return the facts or the settings; nothing where their file is damaged, which is said."""
        try:
            found: dict[str, Any] = getattr(self, name)
        except UsageError as error:
            file = self.facts_file if name == "facts" else self.config
            log.warning("%s cannot be read (%s) and is left out.", file, error.__cause__)
            return {}
        return found

    def setting(self, path: str) -> Any:
        """Return a setting by its flag, such as ``data.cleaning``; None where it is not known."""
        value: Any = self.settings
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def curve(self, name: str) -> list[tuple[int, float]]:
        """Return the steps and values of a scalar; what is no finite number is left out."""
        rows = sorted(self.scalars.items())
        return [(step, row[name]) for step, row in rows if math.isfinite(row.get(name, math.nan))]

    @cached_property
    def before(self) -> int | None:
        """The step before training, where it was validated."""
        return 0 if any(step == 0 for step, _ in self.curve("val/loss")) else None

    @cached_property
    def chosen(self) -> dict[str, Any] | None:
        """What is known of the best checkpoint (``RunCheckpoint.best``); None where none was kept.

        A run of an earlier version has not noted it; its settings and its curves tell.
        """
        if "best" in self.facts:
            noted: dict[str, Any] | None = self.facts["best"]
            return noted
        monitor = self.setting("checkpoint.monitor") or "val/loss"
        mode = self.setting("checkpoint.mode") or "min"
        values = {}
        for step, _ in self.curve("val/loss"):
            logged = [value for at, value in self.curve(monitor) if at <= step]
            if step and logged:
                values[step] = logged[-1]
        if not values:
            return None
        step = (max if mode == "max" else min)(values, key=values.__getitem__)
        return {"step": step, "monitor": monitor, "mode": mode, "value": values[step]}

    @property
    def best_figures(self) -> dict[str, float]:
        """The validation of the best checkpoint; the last one where none was chosen."""
        facts = self.known("facts")
        best, outcome = facts.get("best") or {}, facts.get("outcome") or {}
        # a run of an earlier version has noted the best among the outcome
        return best.get("figures") or outcome.get("best") or outcome.get("last") or {}

    @cached_property
    def best_step(self) -> int | None:
        """The step of ``hf/``: that of the best checkpoint, else of the last validation."""
        return self.chosen["step"] if self.chosen else self.last_step

    @cached_property
    def last_step(self) -> int | None:
        """The step of the last validation."""
        return max((step for step, _ in self.curve("val/loss") if step), default=None)

    def first_and_best(self, steps: Iterable[int]) -> dict[int, str]:
        """Label, of some steps, the first and the best one, or the last where that is missing."""
        found = sorted(steps)
        if not found:
            return {}
        first, last = found[0], self.best_step if self.best_step in found else found[-1]
        labels = {first: "before training" if first == 0 else f"step {first:,}"}
        if last != first:
            best = self.chosen and self.chosen["step"]
            labels[last] = f"step {last:,}" + (", the best" if last == best else "")
        return labels

    @cached_property
    def started(self) -> datetime | None:
        """When training began, to the second."""
        if "started" in self.facts:
            return datetime.fromisoformat(self.facts["started"])
        found = [re.search(r"tfevents\.(\d+)", file.name) for file in self.folder.glob(EVENTS)]
        seconds = [int(match[1]) for match in found if match]
        return datetime.fromtimestamp(min(seconds)) if seconds else None


def find_checkpoint(name: str, root: str | None = None) -> Path:
    """Find the checkpoint that ``--ckpt_path`` means.

    Args:
        name: ``last`` (the newest run's last checkpoint, or its newest whole one where that is
            torn), ``best`` (its best), a run folder (its last checkpoint), or a checkpoint: a
            file, or a folder where its state is sharded.
        root: The folder below which runs were told to go, if one was given.

    Raises:
        UsageError: If there is none: a fresh start is not what was asked for.
    """
    path = Path(name).expanduser()
    if name in ("last", "best"):
        newest = newest_checkpoint(_places(None if root is None else Path(root).expanduser()))
        if newest is None:
            raise UsageError(
                f"--ckpt_path {name}: no run in {root or LOGS}/ has a checkpoint. Leave the flag "
                "out to start a run, or give the run's folder."
            )
        if run_of(newest) is None:  # --checkpoint.dirpath
            if name == "last":
                return newest
            raise UsageError(
                f"--ckpt_path best: the newest run keeps its checkpoints in {newest.parent}. Give "
                "the file of the best one."
            )
        run = Run(newest.parent.parent)  # as it was spelled
        if name == "last":
            last = run.last_checkpoint()
            assert last is not None  # a whole one was found
            return last
        if (best := run.best_checkpoint()) is None or best.name == "last.ckpt":
            raise UsageError(
                f"--ckpt_path best: {run.folder}, the newest run, was not validated after "
                "training began, and has no best. --ckpt_path last would work."
            )
        return best
    if path.is_dir() and not is_sharded(path):
        if (last := Run(path).last_checkpoint()) is None:
            raise UsageError(
                f"--ckpt_path {name}: the folder has no checkpoints/last.ckpt, nor another "
                "checkpoint that is whole."
            )
        return last
    if not path.exists():
        raise UsageError(
            f"--ckpt_path {name}: there is no such file. Give a .ckpt, a run folder such as "
            "lightning_logs/version_0, last or best."
        )
    return path


def _places(root: Path | None) -> list[Path]:
    """Return the folders of checkpoints among which the newest run is looked for.

    Args:
        root: A folder that runs were told to go below (``--trainer.default_root_dir``, or a
            logger's ``save_dir``); null takes ``lightning_logs``, and runs that were begun in the
            present folder, wherever they are.
    """
    if root is None:
        return [*LOGS.glob("*/checkpoints"), *_remembered()]
    return [*root.glob("*/checkpoints"), *root.glob("*/*/checkpoints")]


def newest_run(logs: Path) -> Path | None:
    """Return the run of a folder of runs that wrote a whole checkpoint last, if one did."""
    newest = newest_checkpoint(logs.glob("*/checkpoints"))
    return None if newest is None else newest.parent.parent


def newest_checkpoint(folders: Iterable[Path]) -> Path | None:
    """Return the whole checkpoint of some folders that was written last, if there is one."""
    written = [file for folder in folders for file in folder.glob("*.ckpt")]
    # of those written at once, as best and last are, the last one
    written.sort(key=lambda file: (written_at(file), file.name), reverse=True)
    return next((file for file in written if _is_usable(file)), None)


_told: set[tuple[Path, float]] = set()  # torn checkpoints that were spoken of, with their times


def _is_usable(file: Path) -> bool:
    """Tell whether a checkpoint is whole; of one that is not, say once that it is passed over."""
    if is_whole(file):
        return True
    if not os.path.lexists(file):  # removed meanwhile, by the run that wrote it
        return False
    if (known := (file, written_at(file))) not in _told:
        _told.add(known)
        size = f" ({file.stat().st_size:,} bytes are there)" if file.is_file() else ""
        log.warning("%s was cut short%s and is passed over.", file, size)
    return False


def check_run(name: str, flag: str) -> None:
    """See that a name that looks like a run's is that of one, before a hub is asked for it.

    Raises:
        UsageError: If there is no such run.
    """
    path = Path(name).expanduser()
    if path.name.startswith("version_") and not path.exists():
        newest = newest_run(path.parent)
        there = "there are none there." if newest is None else f"the newest one is {newest}."
        raise UsageError(f"{flag} {name}: there is no such run; {there}")


def model_of(name: str) -> str:
    """Return the ``hf/`` of a run folder that is named as a model; of other names, the name.

    Raises:
        UsageError: If the name is a run's, and there is no such run, or its ``hf/`` is older than
            its best checkpoint.
    """
    check_run(name, "--model.pretrained")
    run = Run(Path(name).expanduser())
    if (found := hf_of(name)) != name and (newer := run.newer_than_hf()):
        raise UsageError(
            f"--model.pretrained {name}: {run.older_hf(newer)}. Write that one out first: python "
            f"-m gpt2_lightning export --model {name} --to FOLDER, then --model.pretrained FOLDER; "
            f"or let the run end: fit --ckpt_path {name}."
        )
    return found


def hf_of(name: str) -> str:
    """Return the path of the ``hf/`` of a run folder; of other names, the name."""
    run = Run(Path(name).expanduser())
    return str(run.hf) if run.hf.is_dir() and not (run.folder / "config.json").exists() else name


def run_of(path: Path) -> Run | None:
    """Return the run folder that a checkpoint lies in, if it does."""
    folder = path.absolute().parent
    return Run(folder.parent) if folder.name == "checkpoints" else None


def _read(file: Path, how: Callable[[Path], T], otherwise: T) -> T:
    if not file.is_file():
        return otherwise
    try:
        return how(file)
    except (OSError, ValueError, KeyError, TypeError) as error:
        words = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{file}: it cannot be read ({words}). Without it the report can be made."
        ) from error


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _facts(file: Path) -> dict[str, Any]:
    facts = read_json(file)
    if (wrong := misfit(facts, FACTS)) is not None or not isinstance(facts, dict):
        raise ValueError(f"it holds no facts of a run: {wrong or 'nothing'}")
    datetime.fromisoformat(facts.get("started", "2000-01-01"))
    if facts.get("ended") not in ENDS:
        raise ValueError(f"no run ends as {facts['ended']!r}")
    return facts


def read_settings(file: Path) -> dict[str, Any]:
    """Read a run's ``config.yaml`` as data, by group and name.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it holds what is no setting.
    """
    settings = parse_yaml(_text(file)) or {}
    if (wrong := misfit(settings, SETTINGS)) is not None or not isinstance(settings, dict):
        raise ValueError(f"it holds no settings of a run: {wrong or 'nothing'}")
    return settings


def _json_lines(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    lost = 0
    for line in file.read_bytes().split(b"\n"):  # not splitlines: text may hold U+2028
        try:
            row = parse_json(line.decode("utf-8")) if line else None
            rows += [row] if isinstance(row, dict) else []
            lost += row is not None and not isinstance(row, dict)
        except ValueError:  # cut short when the run was killed, perhaps within a character
            lost += 1
    if lost:
        cut = f"{file}: {lost} line(s) left out, cut short when the run was killed, or damaged."
        with suppress(OSError):  # a screen that has gone ends no run
            print(cut, file=sys.stderr)
    return rows


def read_scalars(run: Path) -> Scalars:
    """Return a run's scalars by step and name; of a step written twice, the later value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").addFilter(_is_no_purge)
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    table: Scalars = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            table.setdefault(event.step, {})[name] = event.value
    return table


def _is_no_purge(record: logging.LogRecord) -> bool:
    """Leave out that points of steps that were taken again after a kill are passed over."""
    return not record.getMessage().startswith("Detected out of order event.step")


def read_metrics_csv(file: Path) -> Scalars:
    """Return the same from a ``metrics.csv``: one row a step, or several that lie over each other.

    Raises:
        ValueError: If the table has no steps, or a cell is no number.
    """
    table: Scalars = {}
    with file.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        if "step" not in (reader.fieldnames or ()):
            raise ValueError("it has no column named step")
        for row in reader:
            cells = {name: float(cell) for name, cell in row.items() if name != "step" and cell}
            table.setdefault(int(row["step"]), {}).update(cells)
    return table


RECORD = "runs.jsonl"  # in the cache: runs that are not in lightning_logs, or name code of the user

NOTES_KEPT = 1_000  # the latest ones, once there are twice as many


def remember_run(checkpoints: Path) -> None:
    """Note where a run keeps its checkpoints, if ``last`` would not look there.

    Args:
        checkpoints: The folder of its checkpoints.
    """
    checkpoints = checkpoints.absolute()
    if checkpoints.parent.parent == LOGS.absolute():
        return
    _note({"from": str(Path.cwd()), "checkpoints": str(checkpoints)})


def remember_settings(text: str) -> None:
    """Note that the user began a run whose ``config.yaml`` names code of the user's own.

    Args:
        text: The file's content.
    """
    _note({"settings": _digest(text)})


def are_own_settings(text: str) -> bool:
    """Tell whether the user began a run with this ``config.yaml``."""
    return any(row.get("settings") == _digest(text) for row in _notes())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _note(row: dict[str, str]) -> None:
    with suppress(OSError):  # a home that cannot be written ends no run
        append_text(cache_folder(None) / RECORD, json.dumps(row) + "\n")
        if len(notes := _notes()) > 2 * NOTES_KEPT:
            latest = "".join(json.dumps(note) + "\n" for note in notes[-NOTES_KEPT:])
            write_text(cache_folder(None) / RECORD, latest)


def _notes() -> list[dict[str, str]]:
    try:
        lines = (cache_folder(None) / RECORD).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with suppress(ValueError):  # a line that was cut short
            found.append(json.loads(line))
    return [row for row in found if isinstance(row, dict)]


def _remembered() -> list[Path]:
    """Return the folders of checkpoints of runs that were begun in the present folder."""
    here = str(Path.cwd())
    return [
        Path(row["checkpoints"])
        for row in _notes()
        if row.get("from") == here and "checkpoints" in row
    ]
