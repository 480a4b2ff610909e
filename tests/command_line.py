"""The command line, called in process."""

import csv
from collections.abc import Callable
from pathlib import Path

from gpt2_lightning.cli import main

Mistake = Callable[..., str]  # the words of a command line -> the message

CALM = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")
# small blocks and short samples, for texts and models of a test's size
SMALL = (
    "--data.block_size=16",
    "--data.batch_size=2",
    "--trainer.log_every_n_steps=1",
    "--model.sampling.max_new_tokens=4",
)


def fit(*words: str) -> Path:
    """Fit on a CPU without a progress bar; return the run folder."""
    before = set(Path("lightning_logs").glob("*"))
    main(["fit", *words, *CALM])
    (run,) = set(Path("lightning_logs").glob("*")) - before
    return run


def fine_tuning(text: Path, model: Path) -> tuple[str, ...]:
    """Return the flags that fine-tune a small model on a small text."""
    return (f"--model.pretrained={model}", f"--data.source={text}", *SMALL)


def curves(run: Path) -> dict[str, list[float]]:
    """Return the columns of a run's metrics.csv, empty cells left out."""
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}
