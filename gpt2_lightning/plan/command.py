"""`plan`: what a run takes, on the screen."""

import sys
from contextlib import redirect_stdout
from json import dumps

from rich import box
from rich.console import Console
from rich.table import Table

from gpt2_lightning.fit.settings import FitSettings
from gpt2_lightning.plan.hardware import gpu_named
from gpt2_lightning.plan.plan import Plan, as_document, plan_of
from gpt2_lightning.plan.time import Duration
from gpt2_lightning.report.tables import duration as in_words
from gpt2_lightning.report.tables import figure


def print_plan(console: Console, plan: Plan) -> None:
    """Print a plan.

    Args:
        console: Where.
        plan: What to print.
    """
    for label, value in (*_run(plan), *_time(plan.duration), *_disk(plan)):
        console.print(f"{label:11}{value}", soft_wrap=True)
    console.print(_moments(plan))
    console.print(_peak(plan))
    console.print(_verdict(plan), soft_wrap=True)
    if plan.advice:
        console.print(_advice(plan))
    for warning in plan.warnings:
        console.print(f"warning: {warning}", soft_wrap=True, style="yellow")


def _run(plan: Plan) -> list[tuple[str, str]]:
    setting, steps = plan.setting, plan.steps
    shape, hardware = setting.shape, setting.hardware
    parts = f" x {setting.accumulate} micro-batches" if setting.accumulate > 1 else ""
    processes = f" x {hardware.processes} processes" if hardware.processes > 1 else ""
    shared = f", {hardware.strategy}" if hardware.strategy != "single" else ""
    return [
        (
            "model",
            f"{plan.model or 'from scratch'}, {shape.parameters:,} parameters: "
            f"{shape.layers} layers of {shape.width}, {shape.vocabulary:,} tokens, "
            f"{shape.positions:,} positions",
        ),
        ("text", plan.text),
        (
            "devices",
            f"{hardware.processes} x {hardware.accelerator}{shared}, {setting.precision.name}"
            + (", gradient checkpointing" if setting.checkpointing else ""),
        ),
        (
            "a step",
            f"{setting.batch_size} blocks{parts}{processes} = {steps.blocks_per_step:,} blocks of "
            f"{setting.block_size:,} = {steps.tokens_per_step:,} tokens",
        ),
        (
            "an epoch",
            f"{steps.steps_per_epoch:,} step{'s' * (steps.steps_per_epoch > 1)}, "
            f"{steps.tokens_per_epoch:,} tokens to predict",
        ),
        (
            "the run",
            f"{steps.steps:,} steps, {steps.tokens:,} tokens, {figure(steps.epochs)} epochs; "
            f"the schedule ends at {steps.schedule:,}" + _limit(plan),
        ),
        (
            "",
            f"{steps.validations:,} validations of {steps.validation_tokens:,} tokens"
            + (", and one before the first step" if steps.baseline_micro_batches else ""),
        ),
    ]


def _limit(plan: Plan) -> str:
    if plan.max_time is None:
        return ""
    limit = f"--trainer.max_time {plan.max_time}"
    if plan.fitted is None:
        return f". One epoch: --measure or --device tells how many steps fit {limit}"
    return f", fitted to {limit}" if plan.fitted else f"; {limit} may end it earlier"


def _time(found: Duration | None) -> list[tuple[str, str]]:
    if found is None:
        return [("time", "--measure takes a few steps here; --device or --device_flops estimates")]

    def spread(seconds: tuple[float, float, float]) -> str:
        likely, least, most = (_seconds(it) for it in seconds)
        return f"{likely} ({least} to {most})"

    return [
        ("time", f"{spread(found.whole)} with validations, without samples and files"),
        (
            "",
            f"a step {spread(found.step)}; an epoch {spread(found.epoch)}; validations "
            f"{spread(found.validation)}",
        ),
        ("", f"from {found.source}"),
    ]


def _seconds(seconds: float) -> str:
    return in_words(seconds) if seconds >= 60 else f"{figure(seconds)} s"


def _disk(plan: Plan) -> list[tuple[str, str]]:
    disk = plan.disk
    return [
        (
            "disk",
            f"{_gb(disk.kept)}: {disk.checkpoints} checkpoints of {_gb(disk.checkpoint)} and hf/ "
            f"of {_gb(disk.hf)}; {_gb(disk.peak)} while one is replaced; {_gb(disk.free)} free",
        )
    ]


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _moments(plan: Plan) -> Table:
    table = Table(title="Memory of each device", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("phase")
    table.add_column("GB", justify="right")
    for phase in plan.memory.phases:
        table.add_row(
            phase.name,
            f"{phase.size / 1e9:.2f}",
            style="bold" if phase is plan.memory.peak else "",
        )
    return table


def _peak(plan: Plan) -> Table:
    table = Table(
        title=f"At its peak: {plan.memory.peak.name}", title_justify="left", box=box.SIMPLE_HEAD
    )
    table.add_column("held")
    table.add_column("GB", justify="right")
    for item in plan.memory.peak.items:
        table.add_row(item.name, f"{item.size / 1e9:.2f}")
    table.add_section()
    table.add_row("together", f"{plan.memory.peak.size / 1e9:.2f}")
    if plan.memory.imports:
        table.add_row("Python and libraries, before", f"{plan.memory.imports / 1e9:.2f}")
    return table


def _verdict(plan: Plan) -> str:
    hardware = plan.setting.hardware
    needed = f"memory: {_gb(plan.memory.needed)}"
    if hardware.memory is None:
        return f"{needed}; this machine does not say what it has (--device_memory)"
    has = f"{_gb(hardware.memory)} ({hardware.memory_from})"
    if plan.fits:
        return f"{needed} of {has}: it fits"
    if plan.memory.needed <= hardware.memory:
        return f"{needed} of {has}: it may just fit, with less than a tenth to spare"
    return f"{needed} of {has}: it does not fit"


def _advice(plan: Plan) -> Table:
    table = Table(title="With these flags", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    table.add_column("GB", justify="right")
    table.add_column("")
    for change in plan.advice:
        table.add_row(
            change.flags, f"{change.needed / 1e9:.2f}", "fits" if change.fits else "does not fit"
        )
    if not any(change.fits for change in plan.advice):
        table.caption = "Nothing of this is enough: take shorter blocks or a smaller model."
    return table


def plan(
    settings: FitSettings,
    *,
    measure: bool = False,
    device: str | None = None,
    device_memory: float | None = None,
    device_flops: float | None = None,
    json: bool = False,
) -> None:
    """Say what a run takes before it starts: steps, memory, time and disk, and what looks wrong.

    Args:
        settings: What `fit` would be told.
        measure: Take a few steps on this machine and say how long the run takes.
        device: Plan for this GPU: t4, v100, rtx3090, rtx4090, a10, l4, l40s, a100, a100-80gb, h100.
        device_memory: Plan for devices of so much memory, in GB (10^9 bytes).
        device_flops: Plan for devices of this peak rate in the run's precision, in operations/s.
        json: Print all figures as JSON on standard output, and nothing else there.

    Raises:
        UsageError: If a flag says what cannot be.
    """
    gpu = None if device is None else gpu_named(device)
    # what others print goes where messages go
    with redirect_stdout(sys.stderr):
        found = plan_of(
            settings.values,
            measure=measure,
            device=gpu,
            device_memory=device_memory,
            device_flops=device_flops,
            working=Console(stderr=True).status,
        )
    if json:
        print(dumps(as_document(found), indent=2, allow_nan=False))
    else:
        print_plan(Console(highlight=False, markup=False, emoji=False), found)


def main(words: list[str]) -> None:
    """Parse the words and run the verb."""
    settings = FitSettings("plan", words, plan)
    plan(settings, **settings.own)
