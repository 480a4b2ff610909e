"""Run folders: which checkpoint ``last``, a folder or a file means."""

from pathlib import Path

from gpt2_lightning.errors import UsageError
from gpt2_lightning.inference.checkpoint import (
    best_checkpoint,
    check_run,
    last_checkpoint,
    newest_run,
)
from gpt2_lightning.inference.sharded import is_sharded

LOGS = Path("lightning_logs")


def find_checkpoint(name: str) -> Path:
    """Find the checkpoint that ``--ckpt_path`` means.

    Args:
        name: ``last`` (the newest run's last checkpoint, or its newest whole one where that is
            torn), ``best`` (its best), a run folder (its last checkpoint), or a checkpoint: a
            file, or a folder where its state is sharded.

    Raises:
        UsageError: If there is none: a fresh start is not what was asked for.
    """
    path = Path(name).expanduser()
    if name in ("last", "best"):
        run = newest_run(LOGS)
        if run is None:
            raise UsageError(
                f"--ckpt_path {name}: no run in {LOGS}/ has a checkpoint. Leave the flag out to "
                "start a run."
            )
        if name == "last":
            last = last_checkpoint(run)
            assert last is not None  # newest_run has found a whole one
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
        UsageError: If the name is a run's, and there is no such run.
    """
    check_run(name, "--model.pretrained")
    run = Path(name).expanduser()
    best = run / "hf"
    return str(best) if best.is_dir() and not (run / "config.json").exists() else name


def run_of(checkpoint: Path) -> Path | None:
    """Return the run folder that a checkpoint lies in, if it does."""
    folder = checkpoint.absolute().parent
    return folder.parent if folder.name == "checkpoints" else None
