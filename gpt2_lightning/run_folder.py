"""A run folder: which checkpoint is the last, which the best, and all it holds as plain data."""

import csv
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from gpt2_lightning.checkpoint import (
    best_state,
    is_sharded,
    is_whole,
    log,
    read_facts,
    read_notes,
    step_of,
    written_at,
)
from gpt2_lightning.data.tokenizer import cache_folder
from gpt2_lightning.errors import UsageError
from gpt2_lightning.storage import append_text
from gpt2_lightning.untrusted import misfit, parse_json, parse_yaml, read_json

LOGS = Path("lightning_logs")

RECORD = "runs.jsonl"  # in the cache: runs that are not in lightning_logs, or name code of the user


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
        run = run_of(newest)
        if run is None:  # --checkpoint.dirpath
            if name == "last":
                return newest
            raise UsageError(
                f"--ckpt_path best: the newest run keeps its checkpoints in {newest.parent}. Give "
                "the file of the best one."
            )
        run = newest.parent.parent  # as it was spelled
        if name == "last":
            last = last_checkpoint(run)
            assert last is not None  # a whole one was found
            return last
        if (best := best_checkpoint(run)) is None or best.name == "last.ckpt":
            raise UsageError(
                f"--ckpt_path best: {run}, the newest run, was not validated after training began, "
                "and has no best. --ckpt_path last would work."
            )
        return best
    if path.is_dir() and not is_sharded(path):
        if (last := last_checkpoint(path)) is None:
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


def model_of(name: str) -> str:
    """Return the ``hf/`` of a run folder that is named as a model; of other names, the name.

    Raises:
        UsageError: If the name is a run's, and there is no such run, or its ``hf/`` is older than
            its best checkpoint.
    """
    check_run(name, "--model.pretrained")
    if (found := hf_of(name)) != name and (newer := newer_than_hf(Path(found).parent)):
        said = older_hf(Path(found).parent, newer)
        raise UsageError(
            f"--model.pretrained {name}: {said}. Write that one out first: python -m "
            f"gpt2_lightning export --model {name} --to FOLDER, then --model.pretrained FOLDER; or "
            f"let the run end: fit --ckpt_path {name}."
        )
    return found


def hf_of(name: str) -> str:
    """Return the path of the ``hf/`` of a run folder; of other names, the name."""
    run = Path(name).expanduser()
    best = run / "hf"
    return str(best) if best.is_dir() and not (run / "config.json").exists() else name


def run_of(checkpoint: Path) -> Path | None:
    """Return the run folder that a checkpoint lies in, if it does."""
    folder = checkpoint.absolute().parent
    return folder.parent if folder.name == "checkpoints" else None


Scalars = dict[int, dict[str, float]]  # by step, then by name


def read_scalars(run: Path) -> Scalars:
    """Return a run's scalars by step and name; of a step written twice, the later value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    table: Scalars = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            table.setdefault(event.step, {})[name] = event.value
    return table


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


EVENTS = "events.out.tfevents.*"

# how a run ends, by what facts.json calls it
ENDS = {
    None: "not at its end",
    "finished": "finished",
    "stopped": "stopped before its end",
    "failed": "ended by an error",
    "not finite": "ended where its loss or gradients were not finite",
}

SIGNS_OF_A_RUN = (EVENTS, "metrics.csv", "config.yaml", "facts.json")


@dataclass(frozen=True)
class Run:
    """What a run folder holds; what is not there is empty.

    Attributes:
        folder: Where it lies.
        scalars: What was logged, by step and name.
        facts: ``facts.json``: what only the run itself knew.
        settings_text: ``config.yaml`` as it stands there.
        samples: The rows of ``samples.jsonl``.
        passages: Tokens of a held-out passage and the nats of each, by step.
    """

    folder: Path
    scalars: Scalars
    facts: dict[str, Any]
    settings_text: str
    samples: list[dict[str, Any]]
    passages: dict[int, dict[str, Any]]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings by group and name."""
        found = parse_yaml(self.settings_text) or {}
        if not isinstance(found, dict):
            raise ValueError("it holds no settings")
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

    @cached_property
    def best(self) -> int | None:
        """The step of ``hf/``: that of the best checkpoint, else of the last validation."""
        return self.chosen["step"] if self.chosen else self.last

    @cached_property
    def last(self) -> int | None:
        """The step of the last validation."""
        return max((step for step, _ in self.curve("val/loss") if step), default=None)

    def first_and_best(self, steps: Iterable[int]) -> dict[int, str]:
        """Label, of some steps, the first and the best one, or the last where that is missing."""
        found = sorted(steps)
        if not found:
            return {}
        first, last = found[0], self.best if self.best in found else found[-1]
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


def read_run(name: str) -> Run:
    """Read a run folder.

    Args:
        name: Its path.

    Raises:
        UsageError: If it is none, or holds a file that cannot be read.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        what = "it is a file" if folder.exists() else "there is no such folder"
        raise UsageError(f"report {name}: {what}. Give a run folder such as {_meant(folder)}.")
    if not any(next(folder.glob(sign), None) for sign in SIGNS_OF_A_RUN):
        found = ", ".join(sorted(file.name for file in folder.iterdir())[:6]) or "nothing"
        raise UsageError(
            f"report {name}: no run folder: it holds {found}, but neither events nor config.yaml. "
            f"Give a run folder such as {_meant(folder)}."
        )
    scalars = read_scalars(folder)
    if not scalars and (folder / "metrics.csv").is_file():
        scalars = _read(folder / "metrics.csv", read_metrics_csv)
    config = folder / "config.yaml"
    passages = _read(folder / "surprisal.jsonl", _json_lines, [])
    run = Run(
        folder,
        scalars,
        facts=_read(folder / "facts.json", _facts, {}),
        settings_text=_read(config, _text, ""),
        samples=_read(folder / "samples.jsonl", _json_lines, []),
        passages={row["step"]: row for row in passages if isinstance(row.get("step"), int)},
    )
    try:
        _ = run.settings
    except ValueError as error:
        raise _damaged(config, error) from error
    return run


def _meant(folder: Path) -> str:
    """Name a run that was perhaps meant: around a file, or the newest below a folder."""
    around = [parent for parent in folder.parents[:2] if (parent / "config.yaml").is_file()]
    below = sorted(folder.glob("*/config.yaml"), key=lambda file: file.stat().st_mtime)
    if around or below:
        return str(around[0] if around else below[-1].parent)
    return "lightning_logs/version_0"


def _read(file: Path, how: Any, otherwise: Any = None) -> Any:
    if not file.is_file():
        return otherwise
    try:
        return how(file)
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> UsageError:
    words = " ".join(str(error).split())[:200]
    return UsageError(f"{file}: it cannot be read ({words}). Without it the report can be made.")


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _facts(file: Path) -> dict[str, Any]:
    facts = read_facts(file)
    datetime.fromisoformat(facts.get("started", "2000-01-01"))
    if facts.get("ended") not in ENDS:
        raise ValueError(f"no run ends as {facts['ended']!r}")
    return facts


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


def names_of(runs: list[Run]) -> list[str]:
    """Return what to call the runs: the folder's name, with its parent's where they are alike."""
    folders = [run.folder.resolve() for run in runs]
    for parts in range(1, 5):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


HF_RECORD = "checkpoint.json"  # in hf/: the checkpoint that it was made from, and its step

_told: set[tuple[Path, float]] = set()  # torn checkpoints that were spoken of, with their times


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


def last_checkpoint(run: Path) -> Path | None:
    """Return a run folder's ``last.ckpt``; where it is torn or missing, the newest whole one."""
    last = run / "checkpoints" / "last.ckpt"
    if last.exists() and _is_usable(last):
        return last
    found = _usable(run)
    if found:
        log.warning("%s is taken in place of last.ckpt.", found[-1])
    return found[-1] if found else None


def _usable(run: Path) -> list[Path]:
    """Return a run folder's whole checkpoints, the newest last."""
    there = sorted((run / "checkpoints").glob("*.ckpt"), key=written_at)
    return [file for file in there if _is_usable(file)]


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


def best_checkpoint(run: Path) -> Path | None:
    """Return a run folder's best checkpoint, else its last one, if it has any.

    Which one is the best, the run's own ModelCheckpoint has said in the newest checkpoint; where
    that one is torn or gone, the best of the others that it kept.
    """
    usable = _usable(run)
    # --checkpoint.filename may have named them
    found = [file for file in usable if not file.stem.startswith("last")]
    if not found:
        return last_checkpoint(run)
    state = best_state(read_notes(usable[-1]))
    if state is None:  # weights alone: the facts may know
        known = facts_of(run).get("best") or {}
        return next((file for file in found if file.name == known.get("file")), found[-1])
    ranked = sorted(
        (state.get("best_k_models") or {}).items(),
        key=lambda it: float(it[1]) if state.get("mode", "min") == "min" else -float(it[1]),
    )
    for name in (state.get("best_model_path") or "", *(name for name, _ in ranked)):
        if (file := run / "checkpoints" / Path(name).name) in found:
            return file
    return last_checkpoint(run)


def hf_record(folder: Path) -> dict[str, Any] | None:
    """Return which checkpoint an ``hf/`` was made from; None where that was not noted.

    Returns:
        ``file``, its name, null where none was kept; and ``step``, its optimizer step.
    """
    found: Any = None
    with suppress(OSError, ValueError):
        found = read_json(folder / HF_RECORD)
    fits = misfit(found, {"file": str, "step": int}) is None
    return found if fits and found and {"file", "step"} <= found.keys() else None


def newer_than_hf(run: Path) -> Path | None:
    """Return the best checkpoint of a run whose ``hf/`` was made from an earlier one.

    ``hf/`` is written at a run's end. One that went on and was killed has its earlier ``hf/``.

    Returns:
        The checkpoint; None where ``hf/`` is of it, or nothing tells.
    """
    record, usable = hf_record(run / "hf"), _usable(run)
    if record is None or not usable or (best := best_checkpoint(run)) is None:
        return None
    noted = (best_state(read_notes(usable[-1])) or {}).get("best_model_path") or str(best)
    file = run / "checkpoints" / Path(noted).name
    same = file.name == record["file"]
    # where that file has been removed since, hf/ is what is left of it
    if same and (file not in usable or step_of(file) == record["step"]):
        return None
    return best


def older_hf(run: Path, newer: Path) -> str:
    """Say that a run's ``hf/`` is older than its best checkpoint, without a stop at the end."""
    record = hf_record(run / "hf") or {}
    return (
        f"hf/ is of step {record.get('step', 0):,}, from before the run went on; its best is now "
        f"{newer.name} of step {step_of(newer):,}"
    )


def facts_of(run: Path | None) -> dict[str, Any]:
    """Return the ``facts.json`` of a run folder; nothing where there is none, or it is damaged."""
    file = None if run is None else run / "facts.json"
    if file is None or not file.is_file():
        return {}
    try:
        return read_facts(file)
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read (%s) and is left out.", file, error)
        return {}
