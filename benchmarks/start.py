"""Seconds that whole commands take, from their start to what one waits for.

    python -m benchmarks.start

Each command runs in a fresh process, all of them in turn, on the quickstart's text and model. A run
of 20 steps comes first; it leaves the tokens in a cache, as any second run finds them.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jsonargparse import auto_cli

from benchmarks.report import medians, versions

ROOT = Path(__file__).parents[1]
VERBS = (
    *("fetch", "inspect", "plan", "fit", "validate", "test", "predict"),
    *("evaluate", "export", "generate", "report", "serve"),
)
RUN = "lightning_logs/version_0"
FIT = ("fit", f"--config={ROOT / 'configs/quickstart.yaml'}", "--trainer.max_steps=20")
QUIET = ("--trainer.enable_progress_bar=false", "--data.cache_dir=cache")
TWO_BATCHES = "--trainer.limit_val_batches=2"


def seen(words: list[str], folder: Path, end: str | None = None) -> list[tuple[float, str]]:
    """Run a command.

    Args:
        words: Those after ``python -m gpt2_lightning``.
        folder: Where.
        end: What a line begins with, after which nobody waits any longer; null waits for the end.

    Returns:
        The lines of its output, each with the seconds since the start; the last is empty and stands
        for the end.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt2_lightning", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append((time.perf_counter() - start, line))
        if end is not None and line.startswith(end):
            process.terminate()
            break
    process.communicate()
    lines.append((time.perf_counter() - start, ""))
    return lines


def whole(words: list[str], folder: Path) -> float:
    """Return the seconds of a command, from its start to its end."""
    return seen(words, folder)[-1][0]


def parts_of_fit(words: list[str], folder: Path) -> tuple[float, float]:
    """Return the seconds until the first step begins, and those after the last validation."""
    lines = seen(words, folder)
    steps = [at for at, line in lines if line.startswith("Step ")]  # a line for each validation
    return steps[0], lines[-1][0] - steps[-1]


def once(folder: Path, number: int) -> dict[str, float]:
    """Run every command once.

    Args:
        folder: Where the run lies.
        number: Of this time.
    """
    found = {f"{verb} --help": whole([verb, "--help"], folder) for verb in VERBS}
    found["a mistyped flag of fit"] = whole(["fit", "--trainer.max_epoch", "3"], folder)
    first, end = parts_of_fit([*FIT, *QUIET, TWO_BATCHES], folder)
    found["fit: until the first step, 2 batches validated before"] = first
    found["fit: after the last validation"] = end
    first, end = parts_of_fit([*FIT, *QUIET], folder)
    found["fit: until the first step, the whole split validated before"] = first
    words = ["generate", f"--model={RUN}", "--prompt=The object", "--max_new_tokens=1"]
    found["generate: one token"] = whole(words, folder)
    found["export"] = whole(["export", f"--model={RUN}", f"--to=exported_{number}"], folder)
    found["report"] = whole(["report", RUN], folder)
    words = ["serve", f"--model={RUN}", "--port=0"]
    found["serve: until it answers"] = seen(words, folder, "Serving at")[-2][0]
    return found


def main(repeats: int = 3) -> None:
    """Print the median seconds of every command.

    Args:
        repeats: How often each runs.
    """
    print(versions())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seen([*FIT, *QUIET], folder)
        measured = [once(folder, number) for number in range(repeats)]
    for what, seconds in medians(measured).items():
        print(f"{what:62}{seconds:7.2f} s")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
