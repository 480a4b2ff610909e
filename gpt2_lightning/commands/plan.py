"""``plan``: what a run takes, before anything is spent."""

import sys
from contextlib import redirect_stdout
from json import dumps

from rich.console import Console

from gpt2_lightning.commands.plan_tables import print_plan
from gpt2_lightning.fit_settings import FitSettings
from gpt2_lightning.planning.gpus import gpu_named
from gpt2_lightning.planning.plan import as_document, plan_of


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
