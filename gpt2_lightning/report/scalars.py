"""A run's scalars: from its events, or from the table that was made of them."""

import csv
from pathlib import Path

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
