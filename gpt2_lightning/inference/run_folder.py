"""Run folders: which checkpoint ``last``, a folder or a file means."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from gpt2_lightning.data.cache import cache_folder
from gpt2_lightning.errors import UsageError
from gpt2_lightning.inference.checkpoint import (
    best_checkpoint,
    check_run,
    last_checkpoint,
    newer_than_hf,
    newest_checkpoint,
    older_hf,
)
from gpt2_lightning.inference.sharded import is_sharded
from gpt2_lightning.storage import append_text

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
