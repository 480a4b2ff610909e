"""A run folder, read into plain data."""

import math
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from gpt2_lightning.errors import UsageError
from gpt2_lightning.inference.checkpoint import read_facts
from gpt2_lightning.report.scalars import Scalars, read_metrics_csv, read_scalars
from gpt2_lightning.untrusted import parse_json, parse_yaml

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
