"""The rows of the report's tables, and what came of the runs in a sentence or two."""

import math
import shlex
from dataclasses import dataclass
from typing import Any

from gpt2_lightning.checkpoint import extreme_of
from gpt2_lightning.data.cleaning import CLEANERS
from gpt2_lightning.model.metrics import better_weights, group
from gpt2_lightning.run_folder import ENDS, Run

# by its name without the split's -> its heading
MEASURES = {it.name.partition("/")[2]: it.column for it in group("val") if it.column}

NONE = "–"

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

# --- several runs ---------------------------------------------------------------------------------

COMPARED = ["perplexity before", "perplexity at best", "bits per byte at best"]


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
    weights = better_weights(best.get("figures") or {})
    of = "" if weights is None else f", of the {weights} weights"
    return f"step {best['step']:,}, the {extreme_of(best)}, {figure(best['value'])}{of}"


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
            ("best", run.best_step if run.chosen else None),
            ("last", run.last_step),
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
    if not run.config_text:
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


def outcome(run: Run) -> str:
    """Say in a sentence what came of a run."""
    best = measured(run, run.best_step)
    if "perplexity" not in best:
        return "The validation split was not measured after training began."
    after, before = figure(best["perplexity"]), measured(run, run.before)
    if not before:
        when = "at best" if run.chosen else "at the end"
        return f"Perplexity {after} on the validation split, {when}."
    name = "bits_per_byte" if "bits_per_byte" in before and "bits_per_byte" in best else "loss"
    less = before[name] - best[name]
    return (
        f"Perplexity {figure(before['perplexity'])} → {after} on the validation split: "
        f"{abs(less):.2f} {MEASURES[name]} {'less' if less >= 0 else 'more'}."
    )


def likelier(run: Run) -> str:
    """Say what the fall of the loss means, and from where it fell."""
    before, best = measured(run, run.before), measured(run, run.best_step)
    if "loss" not in before or "loss" not in best:
        return ""
    pretrained = run.setting("model.pretrained")
    start = "random weights" if pretrained is None else f"{pretrained} as it was"
    factor = math.exp(min(abs(before["loss"] - best["loss"]), 700))
    times = f"{factor:.2f}" if factor < 2 else f"{factor:,.1f}"
    word = "more" if best["loss"] <= before["loss"] else "less"
    return (
        f"Text that the training never saw, measured before the first step ({start}) and after: "
        f"a token of it became {times} times {word} likely, on (geometric) average."
    )


def changes(run: Run) -> list[tuple[str, str, str]]:
    """Return each measure before training and at best."""
    before, best = measured(run, run.before), measured(run, run.best_step)
    return [
        (title, figure(before[name]), figure(best[name]))
        for name, title in MEASURES.items()
        if name in before and name in best
    ]


def about(run: Run) -> list[str]:
    """Return date, model, text and how the run ended, each in a few words."""
    said = []
    if run.started:
        said.append(f"{run.started:%Y-%m-%d %H:%M}")
    if run.settings:
        pretrained = run.setting("model.pretrained")
        model = f"{pretrained}, fine-tuned" if pretrained else "GPT-2 from scratch"
        if rank := run.setting("model.lora.rank"):
            model += f" by LoRA of rank {rank}"
            if kind := run.setting("model.lora.quantize"):
                model += f" beside matrices in {kind}"
        if size := run.facts.get("model"):
            model += f", {size['parameters'] / 1e6:,.1f} million parameters"
        said.append(model)
        text = [run.setting("data.source"), run.setting("data.subset")]
        said.append("text: " + " ".join(str(part) for part in text if part))
    if run.scalars:
        trained = run.facts.get("steps", {}).get("trained") or max(run.scalars)
        schedule = run.facts.get("steps", {}).get("schedule", trained)
        short = trained < schedule
        said.append(
            f"{trained:,} of {schedule:,} scheduled steps" if short else f"{trained:,} steps"
        )
    if skipped := run.facts.get("steps", {}).get("skipped"):
        said.append(f"{skipped:,} steps left out, whose loss or gradients were not finite")
    if "seconds" in run.facts:
        said.append(duration(run.facts["seconds"]))
    if run.facts.get("ended", "finished") != "finished":
        said.append(ENDS[run.facts["ended"]])
    if cut_by := run.facts.get("ended_by"):
        said.append(f"ended by {cut_by}")
    return said


def compared(runs: list[Run], names: list[str]) -> list[Row]:
    """Return a row of `COMPARED` for each run."""
    rows = []
    for run, name in zip(runs, names, strict=True):
        before, best = measured(run, run.before), measured(run, run.best_step)
        cells = [before.get("perplexity"), best.get("perplexity"), best.get("bits_per_byte")]
        rows.append(Row(name, [figure(cell) for cell in cells]))
    return rows


def verdict(runs: list[Run], names: list[str]) -> str:
    """Say which run is best, as far as their figures may be compared."""
    if _differ(runs, "source", "subset", "cleaning"):
        return "These runs were validated on different text: their figures cannot be compared."
    measure, remark = "perplexity", ""
    if _tokenizers_differ(runs) or _differ(runs, "blocks"):
        measure, remark = "bits_per_byte", " They cut the text differently: compare nothing else."
    elif _differ(runs, "block_size"):
        remark = " Their contexts differ in length (--data.block_size)."
    found = [
        (value, name)
        for run, name in zip(runs, names, strict=True)
        if (value := measured(run, run.best_step).get(measure)) is not None
    ]
    if not found:
        return f"None of them has logged its {MEASURES[measure]}.{remark}"
    value, name = min(found)
    return f"{name} has the lowest {MEASURES[measure]}: {figure(value)}.{remark}"


def _tokenizers_differ(runs: list[Run]) -> bool:
    """Tell whether ids differ, by their tokenizers' content where it is known, else by name."""
    digests = {run.facts.get("tokenizer") for run in runs}
    return len(digests) > 1 if None not in digests else _differ(runs, "tokenizer", "vocab_size")


def _differ(runs: list[Run], *names: str) -> bool:
    return any(
        run.setting(f"data.{name}") != runs[0].setting(f"data.{name}")
        for run in runs
        for name in names
    )
