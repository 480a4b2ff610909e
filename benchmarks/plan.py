"""What `plan` predicts against what `fit` then takes: peak memory, and time for a step.

    python -m benchmarks.plan

Eight runs: a GPT-2 of 16 M parameters and GPT-2 124M, from scratch unless ``--small`` or
``--large`` names a folder or a Hub id; in fp32 and bf16, with and without gradient checkpointing.
Each is a whole `fit` of a few optimizer steps in a fresh process, with validations, samples,
checkpoints, hf/ and report, of which the high-water mark counts, less what it held after its
imports; and `plan --measure`, in another process, is given the same flags.
"""

import contextlib
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any, Literal

from jsonargparse import auto_cli

from benchmarks.memory import high_water
from benchmarks.report import versions

Size = Literal["small", "large"]
Precision = Literal["fp32", "bf16"]
SHAPES: dict[Size, str] = {
    "small": "{layers: 4, heads: 4, width: 256}",
    "large": "{layers: 12, heads: 12, width: 768}",
}
# blocks and tokens in each; bf16 takes a hundred times as long where a CPU has no instructions
BATCHES: dict[tuple[Size, Precision], tuple[int, int]] = {
    ("small", "fp32"): (4, 512),
    ("small", "bf16"): (1, 128),
    ("large", "fp32"): (2, 256),
    ("large", "bf16"): (1, 32),
}
STEPS, WARM_UP = 5, 2
SETTINGS = (
    "--trainer.accelerator=cpu",
    f"--trainer.max_steps={STEPS}",
    "--trainer.limit_val_batches=2",
    "--trainer.num_sanity_val_steps=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.gradient_clip_val=1.0",
    "--model.sampling.max_new_tokens=8",
)


def flags(size: Size, precision: Precision, checkpointing: bool, model: str | None) -> list[str]:
    """Return the flags of a run."""
    blocks, block_size = BATCHES[size, precision]
    which = (
        ["--data.vocab_size=50257", f"--model.architecture={SHAPES[size]}"]
        if model is None
        else [f"--model.pretrained={model}"]
    )
    return [
        *which,
        f"--data.batch_size={blocks}",
        f"--data.block_size={block_size}",
        f"--trainer.precision={'32-true' if precision == 'fp32' else 'bf16-mixed'}",
        f"--model.gradient_checkpointing={str(checkpointing).lower()}",
        *SETTINGS,
    ]


def fit(words: list[str]) -> dict[str, float]:
    """Train in this process, and measure; a step's time is that of its targets at its speed."""
    from gpt2_lightning.fit.train import run

    before = high_water()
    with contextlib.redirect_stdout(sys.stderr):
        run(["fit", *words])
    peak = high_water() - before
    (file,) = Path("lightning_logs").glob("*/metrics.csv")
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    speeds = [float(it) for row in rows if (it := row["train/tokens_per_second"])][WARM_UP:]
    seen = [float(it) for row in rows if (it := row["train/tokens_seen"])]
    return {"GB": peak, "seconds": seen[0] / statistics.median(speeds)}


def in_fresh_process(words: list[str]) -> dict[str, Any]:
    """Run a module in an empty folder; return what it prints as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        output = subprocess.check_output(
            [sys.executable, "-m", *words],
            text=True,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )
    return dict(json.loads(output[output.index("{") :]))


def main(
    small: str | None = None,
    large: str | None = None,
    only: int | None = None,
    run: list[str] | None = None,
) -> None:
    """Print predicted and measured figures, or train once in this process.

    Args:
        small: Folder or Hub id of the small model; null starts from scratch.
        large: Of the large one.
        only: Take this row of the table alone, counted from 1.
        run: Train with these flags, and print what was measured as JSON.
    """
    if run is not None:
        print(json.dumps(fit(run)))
        return
    sizes: tuple[Size, ...] = ("small", "large")
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    models: dict[Size, str | None] = {"small": small, "large": large}
    print(versions())
    print(f"{'':36}{'peak GB':^26}{'seconds a step':^26}")
    heads = f"{'planned':>9}{'measured':>9}{'ratio':>8}"
    print(f"{'':36}{heads}{heads}  at its peak")
    rows = list(product(sizes, precisions, (False, True)))
    for number, (size, precision, checkpointing) in enumerate(rows, start=1):
        if only not in (None, number):
            continue
        words = flags(size, precision, checkpointing, models[size])
        measured = in_fresh_process(["benchmarks.plan", f"--run={json.dumps(words)}"])
        planned = in_fresh_process(["gpt2_lightning", "plan", *words, "--measure", "--json"])
        peak, step = planned["memory"]["peak"] / 1e9, planned["time"]["step"][0]
        blocks, block_size = BATCHES[size, precision]
        parameters = f"{planned['model']['parameters'] / 1e6:.0f} M"
        how = "checkpointing" if checkpointing else ""
        print(
            f"{parameters:7}{precision:5}{f'{blocks} x {block_size}':9}{how:15}"
            f"{peak:9.2f}{measured['GB']:9.2f}{peak / measured['GB']:8.2f}"
            f"{step:9.2f}{measured['seconds']:9.2f}{step / measured['seconds']:8.2f}"
            f"  {planned['memory']['at']}",
            flush=True,
        )


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
