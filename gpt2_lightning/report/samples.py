"""What the models wrote: the same prompts and seeds, side by side."""

import re
from dataclasses import dataclass
from typing import Any

from gpt2_lightning.report.run import Run

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


def before_and_after(run: Run) -> Prompts:
    """Return what was written at the first validation and at the best, else at the last."""
    steps = run.first_and_best({row["step"] for row in run.samples})
    by_step = [(label, _written(run, step)) for step, label in steps.items()]
    return _gathered(by_step)


def of_each(runs: list[Run], names: list[str]) -> Prompts:
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
