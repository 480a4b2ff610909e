"""report.html from its template, with the same prompts and seeds side by side."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2_lightning.model.metrics import group
from gpt2_lightning.report import charts, tables
from gpt2_lightning.report.charts import Chart, Line, before_and_after, draw, legend, of_each
from gpt2_lightning.run_folder import Run
from gpt2_lightning.storage import write_text

MANY_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n){4,}")  # a poor model's pages of nothing


@dataclass(frozen=True)
class Sample:
    """A sample, ready for the page.

    Attributes:
        label: Which model wrote it.
        about: Its seed and what is known of it.
        text: What follows the prompt.
    """

    label: str
    about: str
    text: str


# for each prompt, for each seed, what the models wrote
Prompts = dict[str, list[list[Sample]]]


def samples_before_and_after(run: Run) -> Prompts:
    """Return what was written at the first validation and at the best, else at the last."""
    steps = run.first_and_best({row["step"] for row in run.samples})
    by_step = [(label, _written(run, step)) for step, label in steps.items()]
    return _gathered(by_step)


def samples_of_each(runs: list[Run], names: list[str]) -> Prompts:
    """Return what each run wrote at best, of the prompts and seeds that they share."""
    columns = []
    for run, name in zip(runs, names, strict=True):
        steps = list(run.first_and_best({row["step"] for row in run.samples}).items())
        if not steps:
            return {}
        step, label = steps[-1]
        columns.append((f"{name}, {label}", _written(run, step)))
    shared = set.intersection(*(set(written) for _, written in columns))
    return _gathered(
        [
            (label, {key: row for key, row in written.items() if key in shared})
            for label, written in columns
        ]
    )


def _written(run: Run, step: int) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the rows of a step by prompt and seed; of one written twice, the later."""
    return {(row["prompt"], row["seed"]): row for row in run.samples if row["step"] == step}


def _gathered(columns: list[tuple[str, dict[tuple[str, int], dict[str, Any]]]]) -> Prompts:
    prompts: Prompts = {}
    for prompt, seed in dict.fromkeys(key for _, written in columns for key in written):
        row = [_sample(label, written[prompt, seed]) for label, written in columns]
        prompts.setdefault(prompt, []).append(row)
    return prompts


def _sample(label: str, row: dict[str, Any]) -> Sample:
    about = [f"seed {row['seed']}"]
    if row.get("ended"):
        about.append("came to an end")
    if (copied := row.get("longest_copy")) is not None:
        about.append(f"longest copy {copied} {'token' if copied == 1 else 'tokens'}")
    return Sample(label, " · ".join(about), MANY_BLANK_LINES.sub(_counted, row["text"]))


def _counted(blank: re.Match[str]) -> str:
    return f"\n⟨{blank[0].count(chr(10)) - 1} blank lines⟩\n"


def write_page(runs: list[Run], target: Path) -> None:
    """Write the page; it is there whole or not at all.

    Args:
        runs: One run, or several to be compared.
        target: The file to write.
    """
    write_text(target, render(runs))


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
        verdict=tables.verdict(runs, names),
        comparison=(tables.COMPARED, tables.compared(runs, names)),
        area=charts,
        charts=_curves(runs, names),
        quality=_quality(runs, names),
        shared_samples=samples_of_each(runs, names) if len(runs) > 1 else {},
        shared_passage=of_each(runs, names) if len(runs) > 1 else [],
        legend=legend(),
        differing=tables.differing_settings(runs),
    )


def names_of(runs: list[Run]) -> list[str]:
    """Return what to call the runs: the folder's name, with its parent's where they are alike."""
    folders = [run.folder.resolve() for run in runs]
    for parts in range(1, 5):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


def _view(run: Run, name: str) -> dict[str, Any]:
    """Return what the template says of one run."""
    return {
        "name": name,
        "outcome": tables.outcome(run),
        "changes": tables.changes(run),
        "likelier": tables.likelier(run),
        "about": tables.about(run),
        "figures": tables.figures(run),
        "remarks": tables.remarks(run),
        "validations": tables.validations(run),
        "splits": list(run.facts.get("data", {})),
        "data": tables.data_rows(run),
        "cut": tables.how_it_was_cut(run),
        "samples": samples_before_and_after(run),
        "passages": before_and_after(run),
        "machine": tables.machine_rows(run),
        "commands": tables.commands(run),
        "repeat": tables.repeating_command(run),
        "settings": run.config_text,
    }


def _curves(runs: list[Run], names: list[str]) -> list[Chart]:
    losses = []
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        alone = len(runs) == 1
        train, val = run.curve("train/loss"), run.curve("val/loss")
        label, shown_as = ("training", 1) if alone else (f"{name}, training", number)
        losses.append(Line(label, train, shown_as, faint=True))
        label = "validation" if alone else f"{name}, validation"
        losses.append(Line(label, val, number, dots=True))
    charts = [
        draw("Loss, nats per token", losses),
        *(
            _chart(runs, names, metric.name, metric.chart)
            for metric in group("train")
            if metric.chart
        ),
    ]
    return [chart for chart in charts if chart]


def _quality(runs: list[Run], names: list[str]) -> list[tuple[Chart, str]]:
    return [
        (chart, metric.description)
        for metric in group("samples")
        if metric.chart and (chart := _chart(runs, names, metric.name, metric.chart, dots=True))
    ]


def _chart(
    runs: list[Run], names: list[str], scalar: str, title: str, *, dots: bool = False
) -> Chart | None:
    lines = [
        Line(name, run.curve(scalar), number, dots=dots)
        for number, (run, name) in enumerate(zip(runs, names, strict=True))
    ]
    return draw(title, lines, from_zero=True)
