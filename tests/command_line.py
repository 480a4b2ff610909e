"""The command line, called in process."""

import csv
from pathlib import Path

from gpt2_lightning.cli import main


def fit(*words: str) -> Path:
    """Fit on a CPU without a progress bar; return the run folder."""
    before = set(Path("lightning_logs").glob("*"))
    main(["fit", *words, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"])
    (run,) = set(Path("lightning_logs").glob("*")) - before
    return run


def curves(run: Path) -> dict[str, list[float]]:
    """Return the columns of a run's metrics.csv, empty cells left out."""
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}
