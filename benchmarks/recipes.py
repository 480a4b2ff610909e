"""A grid of recipes: `fit` with every combination of some flags, over seeds.

    python -m benchmarks.recipes --recipe quickstart --seeds 3 --at_once 2 \
        --vary '[["", "--model.learning_rate 3e-3"], ["", "--model.averaging ema"]]'

Each run is a whole command in a fresh process and an empty folder: as long as its recipe says, or
--minutes. What counts is what the run's hf/ reaches on the validation split: bits per byte of the
raw text where they are defined, else nats per token.
"""

import itertools
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from jsonargparse import auto_cli

from benchmarks.report import matrix_product_rate, versions
from gpt2_lightning.run_folder import Run

COMMAND = (sys.executable, "-m", "gpt2_lightning", "fit")


class Result(NamedTuple):
    """What a run reached.

    Attributes:
        quality: Bits per byte, or nats per token, of the chosen weights; smaller is better.
        step: The optimizer step that they are of.
        seconds: Of the whole command.
    """

    quality: float
    step: int
    seconds: float


def train(words: list[str], cores: list[int]) -> Result:
    """Run `fit` on some cores.

    Raises:
        RuntimeError: If it fails; with the end of what it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        done = subprocess.run(
            [*COMMAND, *words, f"--trainer.default_root_dir={folder}"],
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(len(cores))},
            preexec_fn=lambda: os.sched_setaffinity(0, set(cores)),
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"fit {shlex.join(words)}:\n{done.stderr[-2000:]}")
        (run,) = (Run(it) for it in Path(folder).glob("lightning_logs/*"))
        figures, step = run.best_figures, run.best_step
        assert step is not None
        quality = figures.get("val/bits_per_byte", figures["val/loss"])
        return Result(quality, step, time.monotonic() - began)


def main(
    recipe: str,
    vary: list[list[str]],
    flags: str = "",
    minutes: float | None = None,
    seeds: int = 3,
    at_once: int = 1,
) -> None:
    """Run a grid and print it, the best first.

    Args:
        recipe: Name or file that all begin with.
        vary: Lists of alternatives, each a string of flags; every combination is run.
        flags: Flags of all runs.
        minutes: Of each run; null leaves its end to the recipe.
        seeds: Runs of each combination.
        at_once: Runs at a time; each has its share of the cores.
    """
    cores = sorted(os.sched_getaffinity(0))
    free = [cores[index::at_once] for index in range(at_once)]
    cases = list(itertools.product(itertools.product(*vary), range(1, seeds + 1)))

    def measure(case: tuple[tuple[str, ...], int]) -> Result:
        mine = free.pop()
        try:
            words = [f"--config={recipe}", *shlex.split(" ".join((flags, *case[0])))]
            if minutes is not None:
                words.append(f"--minutes={minutes}")
            found = train([*words, f"--seed_everything={case[1]}"], mine)
        finally:
            free.append(mine)
        print(f"{' '.join(case[0])}, seed {case[1]}: {found.quality:.4f}", flush=True)
        return found

    print(versions())
    print(f"matrix product in float32: {matrix_product_rate('float32'):,.0f} GFLOP/s")
    print(f"{len(free[0])} core(s) each")
    with ThreadPoolExecutor(at_once) as pool:
        found = dict(zip(cases, pool.map(measure, cases), strict=True))
    rows = []
    for flags_of in itertools.product(*vary):
        mine = [found[flags_of, seed] for seed in range(1, seeds + 1)]
        best = [it.quality for it in mine]
        step = statistics.median(it.step for it in mine)
        seconds = statistics.median(it.seconds for it in mine)
        rows.append((statistics.median(best), min(best), max(best), step, seconds, flags_of))
    print(f"{'median':>8}{'least':>8}{'most':>8}{'step':>7}{'seconds':>9}")
    for median, least, most, step, seconds, flags_of in sorted(rows):
        named = " ".join(it for it in flags_of if it) or "the recipe as it is"
        print(f"{median:8.4f}{least:8.4f}{most:8.4f}{step:7.0f}{seconds:9.0f}  {named}")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
