"""Draw a run's loss curves: ``python docs/draw_curves.py RUN docs/quickstart.svg``."""

import csv
import sys
from pathlib import Path

import matplotlib.pyplot as plt

TRAIN, VALIDATION, YARDSTICK = "#9aa5b1", "#d1495b", "#2e4057"


def column(run: Path, name: str) -> tuple[list[int], list[float]]:
    """Return the steps and values of a metric, from the run's ``metrics.csv``."""
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row[name]]
    return [int(row["step"]) for row in rows], [float(row[name]) for row in rows]


def draw(run: Path, target: Path) -> None:
    """Draw training and validation loss, the validation perplexities written beside theirs."""
    figure, axes = plt.subplots(figsize=(7.2, 3.4), layout="constrained")
    steps, losses = column(run, "val/loss")
    _, perplexities = column(run, "val/perplexity")
    axes.plot(*column(run, "train/loss"), color=TRAIN, label="training")
    axes.plot(steps, losses, color=VALIDATION, marker="o", markersize=4, label="validation")
    for index, side in ((0, "left"), (len(steps) // 2, "center"), (len(steps) - 1, "right")):
        axes.annotate(
            f"perplexity {perplexities[index]:,.0f}",
            (steps[index], losses[index]),
            xytext=(0, 8),
            textcoords="offset points",
            ha=side,
            color=YARDSTICK,
            fontsize=9,
        )
    axes.set(xlabel="optimizer steps", ylabel="nats per token")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.12)
    axes.legend(frameon=False)
    figure.savefig(target)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
