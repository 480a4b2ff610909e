"""The page's head: what came of the runs, in a sentence or two."""

import math

from gpt2_lightning.report.run import ENDS, Run
from gpt2_lightning.report.tables import MEASURES, Row, duration, figure, measured


def outcome(run: Run) -> str:
    """Say in a sentence what came of a run."""
    best = measured(run, run.best)
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
    before, best = measured(run, run.before), measured(run, run.best)
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
    before, best = measured(run, run.before), measured(run, run.best)
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
    return said


# --- several runs ---------------------------------------------------------------------------------

COMPARED = ["perplexity before", "perplexity at best", "bits per byte at best"]


def compared(runs: list[Run], names: list[str]) -> list[Row]:
    """Return a row of `COMPARED` for each run."""
    rows = []
    for run, name in zip(runs, names, strict=True):
        before, best = measured(run, run.before), measured(run, run.best)
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
        if (value := measured(run, run.best).get(measure)) is not None
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
