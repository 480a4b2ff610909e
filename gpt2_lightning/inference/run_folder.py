"""Run folders: which checkpoint ``last``, a folder or a file means."""

from pathlib import Path

from gpt2_lightning.errors import UsageError
from gpt2_lightning.inference.checkpoint import best_checkpoint, check_run, newest_run
from gpt2_lightning.inference.sharded import is_sharded

LOGS = Path("lightning_logs")


def find_checkpoint(name: str) -> Path:
    """Find the checkpoint that ``--ckpt_path`` means.

    Args:
        name: ``last`` (the newest run's last checkpoint), ``best`` (its best), a run folder (its
            last checkpoint), or a checkpoint: a file, or a folder where its state is sharded.

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
        last = run / "checkpoints" / "last.ckpt"
        if name == "last":
            return last
        if (best := best_checkpoint(run)) is None or best == last:
            raise UsageError(
                f"--ckpt_path best: {run}, the newest run, was not validated after training began, "
                "and has no best. --ckpt_path last would work."
            )
        return best
    if path.is_dir() and not is_sharded(path):
        last = path / "checkpoints" / "last.ckpt"
        if not last.exists():
            raise UsageError(f"--ckpt_path {name}: the folder has no checkpoints/last.ckpt.")
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
