"""The rows of the page's tables, as words."""

import math
import shlex
from dataclasses import dataclass
from typing import Any

from gpt2_lightning.data.cleaning import CLEANERS
from gpt2_lightning.inference.checkpoint import extreme_of
from gpt2_lightning.report.run import Run

MEASURES = {"perplexity": "perplexity", "loss": "nats per token", "bits_per_byte": "bits per byte"}
NONE = "–"


@dataclass(frozen=True)
class Row:
    """A row of a table: its head, and its cells."""

    head: str
    cells: list[str]


def figure(value: float | None) -> str:
    """Write a measured number with four digits: 10,580; 191.1; 0.05000."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return str(value)
    if abs(value) < 999.95:
        return f"{value:#.4g}".rstrip(".")
    return f"{round(value, 3 - math.floor(math.log10(abs(value)))):,.0f}"


def chosen_by(best: dict[str, Any]) -> str:
    """Say of a best checkpoint by which number it was chosen: step 8, the lowest val/loss, 4.24."""
    return f"step {best['step']:,}, the {extreme_of(best)}, {figure(best['value'])}"


def share(value: float | None) -> str:
    """Write a share in per cent."""
    if not value:
        return NONE if value is None else "0"
    return f"{value:.1%}".replace("%", " %") if value >= 0.0005 else "< 0.1 %"


def duration(seconds: float | None) -> str:
    """Write a duration in its two largest units."""
    if seconds is None:
        return NONE
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def measured(run: Run, step: int | None, split: str = "val") -> dict[str, float]:
    """Return the numbers of a validation, by `MEASURES`."""
    row = {} if step is None else run.scalars.get(step, {})
    return {name: row[f"{split}/{name}"] for name in MEASURES if f"{split}/{name}" in row}


def figures(run: Run) -> list[Row]:
    """Return what was measured before training, at best and at last, and on the test split."""
    rows = [
        Row(f"{label}, step {step:,}", [figure(numbers.get(name)) for name in MEASURES])
        for label, step in (
            ("before", run.before),
            ("best", run.best if run.chosen else None),
            ("last", run.last),
        )
        if step is not None and (numbers := measured(run, step))
    ]
    tested = [step for step, _ in run.curve("test/loss")]
    if tested:
        numbers = measured(run, tested[-1], "test")
        rows.append(Row("test split", [figure(numbers.get(name)) for name in MEASURES]))
    if (xz := run.facts.get("xz_bits_per_byte")) is not None:
        rows.append(Row("xz", [NONE, NONE, figure(xz)]))
    return rows


def remarks(run: Run) -> list[str]:
    """Return what has to be known to read the figures."""
    said = []
    if run.facts.get("xz_bits_per_byte") is not None:
        said.append("xz is a compressor that has seen the training text.")
    if run.before is None:
        said.append(
            "Before training nothing was measured (--trainer.num_sanity_val_steps -1 does)."
        )
    name = run.setting("data.cleaning")
    if name in CLEANERS and not CLEANERS[name].lossless:
        said.append(
            f"Of text that --data.cleaning {name} has cut: not comparable with published figures."
        )
    reason = run.facts.get("no_bits_per_byte")
    if reason and not run.curve("val/bits_per_byte"):
        said.append(f"Bits per byte are not given: {reason}.")
    if run.setting("trainer.limit_val_batches") not in (None, 1.0):
        said.append("--trainer.limit_val_batches: only a part of the split was validated.")
    if run.chosen:
        said.append(f"Best is {chosen_by(run.chosen)}, of all validations.")
    if run.chosen and not run.curve("test/loss"):
        said.append(
            "The choice was made by this text, so a little lucky; the test verb measures text "
            "that had no say in it."
        )
    return said


DATA = {
    "articles": "articles",
    "rows": "rows",
    "words": "words",
    "bytes": "bytes",
    "tokens": "tokens, ends of texts among them",
    "blocks": "blocks",
    "targets": "predicted tokens",
}
SHARES = {
    "padded": "positions that hold no token",
    "cut_off": "tokens cut off, never seen",
    "cleaned_away": "bytes taken out by cleaning",
}


def data_rows(run: Run) -> list[Row]:
    """Return the data as they were trained on, a column for each split of the facts."""
    splits = run.facts.get("data", {}).values()
    if not splits:
        return []
    return [
        *(Row(title, [f"{split[name]:,}" for split in splits]) for name, title in DATA.items()),
        *(Row(title, [share(split[name]) for split in splits]) for name, title in SHARES.items()),
    ]


def how_it_was_cut(run: Run) -> str:
    """Say how the text was cleaned and cut."""
    names = ("cleaning", "blocks", "block_size")
    return ", ".join(f"data.{name} {run.setting(f'data.{name}')}" for name in names)


def commands(run: Run) -> list[str]:
    """Return what was typed, a line for every time that the run was started or gone on with."""
    return [shlex.join(words) for words in run.facts.get("commands", [])]


def repeating_command(run: Run) -> str:
    """Return what repeats the run, typed where its logs lie."""
    if not run.settings_text:
        return ""
    folder = run.folder.resolve()
    return f"python -m gpt2_lightning fit --config {folder.parent.name}/{folder.name}/config.yaml"


def machine_rows(run: Run) -> list[Row]:
    """Return model, machine, versions and duration, as far as the facts go."""
    facts = run.facts
    rows: dict[str, str] = {}
    if model := facts.get("model"):
        rows["model"] = (
            f"{model['type']}, {model['parameters']:,} parameters: {model['layers']} layers, "
            f"{model['heads']} heads, width {model['width']}, {model['positions']:,} positions, "
            f"vocabulary {model['vocabulary']:,}"
        )
    if steps := facts.get("steps"):
        rows["schedule"] = (
            f"{steps['schedule']:,} steps of {steps['blocks']:,} blocks ({steps['tokens']:,} "
            f"tokens); an epoch takes {steps['epoch']:,}"
        )
    if seen := run.curve("train/tokens_seen"):
        rows["tokens predicted"] = f"{seen[-1][1]:,.0f}, up to step {seen[-1][0]:,}"
    if speed := run.curve("train/tokens_per_second"):
        rows["tokens/s"] = figure(sorted(value for _, value in speed)[len(speed) // 2]) + ", median"
    if memory := run.curve("train/peak_memory_gb"):
        rows["peak memory"] = f"{memory[-1][1]:.1f} GB"
    if "seconds" in facts:
        rows["duration"] = duration(facts["seconds"]) + _parts(facts)
    if machine := facts.get("machine"):
        gpus = f"; {', '.join(machine['gpus'])}" if machine["gpus"] else ""
        rows["machine"] = f"{machine['system']}, {machine['cores']} cores{gpus}"
    if trainer := facts.get("trainer"):
        rows["trainer"] = (
            f"{trainer['accelerator']}, {trainer['processes']} "
            f"{'process' if trainer['processes'] == 1 else 'processes'}, {trainer['strategy']}, "
            f"precision {trainer['precision']}"
        )
    if versions := facts.get("versions"):
        rows["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    return [Row(head, [cell]) for head, cell in rows.items()]


def _parts(facts: dict[str, Any]) -> str:
    parts = len(facts["commands"])
    return f", in {parts} parts" if parts > 1 else ""


def validations(run: Run) -> list[Row]:
    """Return every validation, a row for each."""
    return [
        Row(f"{step:,}", [figure(measured(run, step).get(name)) for name in MEASURES])
        for step, _ in run.curve("val/loss")
    ]


def differing_settings(runs: list[Run]) -> list[Row]:
    """Return the settings in which runs differ, a column for each run."""
    flat = [dict(_flatten(run.settings)) for run in runs]
    names = sorted(set().union(*flat))
    rows = [(name, [settings.get(name, NONE) for settings in flat]) for name in names]
    return [
        Row(name, [_word(value) for value in values])
        for name, values in rows
        if any(value != values[0] for value in values)
    ]


def _flatten(settings: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in settings.items():
        if isinstance(value, dict):
            pairs += _flatten(value, f"{above}{name}.")
        else:
            pairs.append((above + name, value))
    return pairs


def _word(value: Any) -> str:
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
