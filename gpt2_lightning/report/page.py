"""``report.html``: what came of a run, or of several side by side, on one page."""

import math
import re
import shlex
from pathlib import Path
from typing import Any

from gpt2_lightning.report import tables
from gpt2_lightning.report.charts import Chart, Line, draw
from gpt2_lightning.report.heat_map import HeatMap, heat_map, legend
from gpt2_lightning.report.run import Run, names_of

MANY_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n){4,}")  # a poor model's pages of nothing
# what of the samples is drawn over the steps, and what it means
QUALITY = {
    "samples/distinct_2": "Different pairs of tokens, of all pairs of all samples: 1 where none "
    "comes twice.",
    "samples/repeated_4": "Share of a sample's four tokens in a row that it has said before: high "
    "where it goes round in circles.",
    "samples/ended": "Share of the samples that came to an end by themselves.",
    "samples/longest_copy": "Tokens of the longest run that a sample shares with the training "
    "text: high where the model recites.",
}


def write_page(runs: list[Run], target: Path) -> None:
    """Write the page; it is there whole or not at all.

    Args:
        runs: One run, or several to be compared.
        target: The file to write.
    """
    beside = target.with_name(f".{target.name}.partial")
    try:
        beside.write_text(render(runs), encoding="utf-8")
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def render(runs: list[Run]) -> str:
    """Return the page: HTML that asks for nothing outside itself and runs no script."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # samples are whatever a model writes
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = names_of(runs)
    return environment.get_template("page.html").render(
        runs=[_view(run, name) for run, name in zip(runs, names, strict=True)],
        measures=list(tables.MEASURES.values()),
        charts=_curves(runs, names),
        quality=_quality(runs, names),
        legend=legend(),
        differing=tables.differing_settings(runs),
        warnings=_warnings(runs),
    )


def _view(run: Run, name: str) -> dict[str, Any]:
    """Return what the template says of one run."""
    return {
        "name": name,
        "outcome": outcome(run),
        "changes": _changes(run),
        "likelier": _likelier(run),
        "about": _about(run),
        "figures": tables.figures(run),
        "remarks": tables.remarks(run),
        "validations": tables.validations(run),
        "splits": list(run.facts.get("data", {})),
        "cut": _cut(run),
        "data": tables.data_rows(run),
        "samples": _samples(run),
        "passages": _passages(run),
        "machine": tables.machine_rows(run),
        "commands": [shlex.join(words) for words in run.facts.get("commands", [])],
        "repeat": _repeat(run),
        "settings": run.settings_text,
    }


# --- the head -------------------------------------------------------------------------------------


def outcome(run: Run) -> str:
    """Say in a sentence what came of a run."""
    best = tables.measured(run, run.best)
    if "perplexity" not in best:
        return "The validation split was not measured after training began."
    after = tables.figure(best["perplexity"])
    before = tables.measured(run, run.before)
    if not before:
        return f"Perplexity {after} on the validation split, at best."
    name = "bits_per_byte" if "bits_per_byte" in before and "bits_per_byte" in best else "loss"
    less = before[name] - best[name]
    unit = "bits per byte" if name == "bits_per_byte" else "nats per token"
    return (
        f"Perplexity {tables.figure(before['perplexity'])} → {after} on the validation split: "
        f"{abs(less):.2f} {unit} {'less' if less >= 0 else 'more'}."
    )


def _changes(run: Run) -> list[tuple[str, str, str]]:
    before, best = tables.measured(run, run.before), tables.measured(run, run.best)
    return [
        (title, tables.figure(before[name]), tables.figure(best[name]))
        for name, title in tables.MEASURES.items()
        if name in before and name in best
    ]


def _likelier(run: Run) -> str:
    """Say what the fall of the loss means, and from where it fell."""
    before, best = tables.measured(run, run.before), tables.measured(run, run.best)
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


def _about(run: Run) -> list[str]:
    """Return date, model, text and how the run ended, each in a few words."""
    said = []
    if run.started:
        said.append(f"{run.started:%Y-%m-%d %H:%M}")
    if run.settings:
        pretrained = run.setting("model.pretrained")
        model = f"{pretrained}, fine-tuned" if pretrained else "GPT-2 from scratch"
        if size := run.facts.get("model"):
            model += f", {size['parameters'] / 1e6:,.1f} million parameters"
        said.append(model)
        text = [run.setting("data.source"), run.setting("data.subset")]
        said.append("text: " + " ".join(str(part) for part in text if part))
    if run.scalars:
        said.append(f"{max(run.scalars):,} steps")
    if "seconds" in run.facts:
        said.append(tables.duration(run.facts["seconds"]))
    match run.facts.get("ended", "finished"):
        case "stopped":
            said.append("stopped before its end")
        case "failed":
            said.append("ended by an error")
        case None:
            said.append("running, or killed")
    return said


def _cut(run: Run) -> str:
    """Say how the text was cleaned and cut."""
    names = ("cleaning", "blocks", "block_size")
    return ", ".join(f"--data.{name} {run.setting(f'data.{name}')}" for name in names)


def _repeat(run: Run) -> str:
    if not run.settings_text:
        return ""
    folder = run.folder.resolve()
    return f"python -m gpt2_lightning fit --config {folder.parent.name}/{folder.name}/config.yaml"


def _warnings(runs: list[Run]) -> list[str]:
    """Say where the figures of several runs are of different things."""
    said = []
    if any(_differ(runs, f"data.{name}") for name in ("source", "subset", "cleaning")):
        said.append("The runs were validated on different text: their figures are not comparable.")
    elif any(_differ(runs, f"data.{name}") for name in ("tokenizer", "vocab_size", "blocks")):
        said.append("The runs cut the text into different tokens: compare bits per byte alone.")
    elif _differ(runs, "data.block_size"):
        said.append("The runs see contexts of different length (--data.block_size).")
    return said


def _differ(runs: list[Run], flag: str) -> bool:
    return any(run.setting(flag) != runs[0].setting(flag) for run in runs)


# --- pictures -------------------------------------------------------------------------------------


def _curves(runs: list[Run], names: list[str]) -> list[Chart]:
    alone = len(runs) == 1
    losses = [
        line
        for number, (run, name) in enumerate(zip(runs, names, strict=True))
        for line in (
            Line(
                "training" if alone else f"{name}, training",
                run.curve("train/loss"),
                colour=1 if alone else number,
                faint=True,
            ),
            Line(
                "validation" if alone else f"{name}, validation",
                run.curve("val/loss"),
                colour=number,
                dots=True,
            ),
        )
    ]
    charts = [
        draw("loss", "Loss, nats per token", losses),
        *(
            draw(name, title, _lines(runs, names, f"train/{name}"), from_zero=True)
            for name, title in (
                ("learning_rate", "Learning rate"),
                ("tokens_per_second", "Predicted tokens/s"),
                ("grad_norm", "Gradient norm, before clipping"),
            )
        ),
    ]
    return [chart for chart in charts if chart]


def _quality(runs: list[Run], names: list[str]) -> list[tuple[Chart, str]]:
    charts = []
    for name, meaning in QUALITY.items():
        lines = _lines(runs, names, name, dots=True)
        if chart := draw(name.replace("/", "-"), name, lines, from_zero=True):
            charts.append((chart, meaning))
    return charts


def _lines(runs: list[Run], names: list[str], scalar: str, *, dots: bool = False) -> list[Line]:
    return [
        Line(name, run.curve(scalar), colour=number, dots=dots)
        for number, (run, name) in enumerate(zip(runs, names, strict=True))
    ]


def _passages(run: Run) -> list[HeatMap]:
    """Return the passage before training and at best, or as far as it was measured."""
    steps = _first_and_best(sorted(run.passages), run)
    return [heat_map(label, run.passages[step]) for step, label in steps.items()]


def _first_and_best(steps: list[int], run: Run) -> dict[int, str]:
    """Label the first of some steps and the best, else the last."""
    if not steps:
        return {}
    first, last = steps[0], run.best if run.best in steps else steps[-1]
    labels = {first: "before training" if first == 0 else f"step {first:,}"}
    if last != first:
        labels[last] = f"step {last:,}" + (", the best" if last == run.best else "")
    return labels


# --- samples --------------------------------------------------------------------------------------


def _samples(run: Run) -> list[dict[str, Any]]:
    """Return, for each prompt and seed, what was written first and at best."""
    steps = _first_and_best(sorted({row["step"] for row in run.samples}), run)
    pairs: dict[tuple[str, int], dict[int, dict[str, Any]]] = {}
    for row in run.samples:
        if row["step"] in steps:
            pairs.setdefault((row["prompt"], row["seed"]), {})[row["step"]] = row
    prompts: dict[str, list[Any]] = {}
    for (prompt, seed), by_step in pairs.items():
        texts = [_sample(steps[step], by_step[step]) for step in steps if step in by_step]
        prompts.setdefault(prompt, []).append({"seed": seed, "texts": texts})
    return [{"prompt": prompt, "seeds": seeds} for prompt, seeds in prompts.items()]


def _sample(label: str, row: dict[str, Any]) -> dict[str, Any]:
    about = [f"seed {row['seed']}"]
    if row.get("ended"):
        about.append("came to an end")
    if (copied := row.get("longest_copy")) is not None:
        about.append(f"longest copy {copied} {'token' if copied == 1 else 'tokens'}")
    return {"label": label, "about": about, "text": MANY_BLANK_LINES.sub(_counted, row["text"])}


def _counted(blank: re.Match[str]) -> str:
    return f"\n⟨{blank[0].count(chr(10)) - 1} blank lines⟩\n"
