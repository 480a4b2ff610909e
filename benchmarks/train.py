"""Training speed of GPT-2 124M from scratch: this project against the transformers Trainer.

    python -m benchmarks.train

Both sides train on the same packed blocks, 2 x 1024 tokens a step, AdamW, clipping at 1.0. One
table has equal mathematics (attention's dropout off on both sides), the other each tool's own
default (off here; 0.1 in the Trainer's, which is the model's own). Every figure comes from a
fresh process; the first step, which warms up, does not count.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

from jsonargparse import auto_cli

from benchmarks.memory import high_water
from benchmarks.report import matrix_product_rate, medians, versions

Side = Literal["ours", "Trainer"]
Precision = Literal["fp32", "bf16"]
BLOCKS, BLOCK_SIZE = 2, 1024


def ours(precision: Precision, steps: int) -> dict[str, float]:
    """Train with this project's module and datamodule, in this process."""
    from lightning.pytorch import Callback, Trainer

    from gpt2_lightning.data.datamodule import WikiTextDataModule
    from gpt2_lightning.model.module import GPT2Module

    before = high_water()
    ends: list[float] = []

    class Clock(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            ends.append(time.perf_counter())

    data = WikiTextDataModule(vocab_size=50257, block_size=BLOCK_SIZE, batch_size=BLOCKS)
    Trainer(
        accelerator="cpu",
        max_steps=steps,
        precision="bf16-mixed" if precision == "bf16" else "32-true",
        gradient_clip_val=1.0,
        limit_val_batches=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        callbacks=[Clock()],
    ).fit(GPT2Module(vocab_size=50257, block_size=BLOCK_SIZE), data)
    targets = BLOCKS * BLOCK_SIZE * (steps - 1)
    return {"tokens/s": targets / (ends[-1] - ends[0]), "GB": high_water() - before}


def trainer(precision: Precision, equal: bool, steps: int) -> dict[str, float]:
    """Train with the transformers Trainer, packed as its language-modeling example packs."""
    from datasets import Dataset
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        default_data_collator,
    )

    from gpt2_lightning.data.datamodule import WikiTextDataModule

    before = high_water()
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    data = WikiTextDataModule(vocab_size=50257)
    data.prepare(["train"])
    data.setup("fit")
    ids = data.stores["train"].ids.tolist()
    blocks = [ids[at : at + BLOCK_SIZE] for at in range(0, len(ids) - BLOCK_SIZE, BLOCK_SIZE)]
    arguments = TrainingArguments(
        output_dir="trainer",
        per_device_train_batch_size=BLOCKS,
        max_steps=steps,
        bf16=precision == "bf16",
        max_grad_norm=1.0,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    Trainer(
        model=GPT2LMHeadModel(GPT2Config(attn_pdrop=0.0 if equal else 0.1)),
        args=arguments,
        train_dataset=Dataset.from_dict({"input_ids": blocks, "labels": blocks}),
        data_collator=default_data_collator,
        callbacks=[Clock()],
    ).train()
    targets = BLOCKS * (BLOCK_SIZE - 1) * (steps - 1)
    return {"tokens/s": targets / (ends[-1] - ends[0]), "GB": high_water() - before}


def measure(side: Side, precision: Precision, equal: bool, steps: int) -> dict[str, float]:
    """Measure one side in a fresh process, in an empty folder."""
    words = [f"--side={side}", f"--precision={precision}", f"--equal={equal}", f"--steps={steps}"]
    with tempfile.TemporaryDirectory() as folder:
        output = subprocess.check_output(
            [sys.executable, "-m", "benchmarks.train", *words],
            text=True,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )
    return dict(json.loads(output.splitlines()[-1]))


def main(
    side: Side | None = None,
    precision: Precision = "fp32",
    equal: bool = True,
    steps: int = 4,
    repeats: int = 1,
) -> None:
    """Print both tables, or measure one side in this process.

    Args:
        side: Measure this side alone and print it as JSON.
        precision: Of the one side.
        equal: Whether the one side has attention's dropout off whatever its default.
        steps: Optimizer steps, the first of which is not counted.
        repeats: Times each side is measured, in turn.
    """
    if side is not None:
        with contextlib.redirect_stdout(sys.stderr):
            found = ours(precision, steps) if side == "ours" else trainer(precision, equal, steps)
        print(json.dumps(found))
        return
    print(f"GPT-2 124M from scratch, {BLOCKS} x {BLOCK_SIZE} tokens a step, on a CPU")
    print(versions())
    rates = {name: matrix_product_rate(name) for name in ("float32", "bfloat16")}
    for name, rate in rates.items():
        print(f"matrix product in {name}: {rate:,.0f} GFLOP/s")
    precisions: list[Precision] = ["fp32"]
    if rates["bfloat16"] > rates["float32"] / 2:
        precisions.append("bf16")
    else:
        print("bf16 is left out: this processor has no instructions for it")
    for equal in (True, False):
        print()
        print("attention dropout off on both sides" if equal else "each tool's own default")
        print(f"{'':6}{'ours tok/s':>12}{'Trainer':>9}{'ratio':>7}{'ours GB':>9}{'Trainer':>9}")
        for precision in precisions:
            rows: dict[Side, list[dict[str, float]]] = {"ours": [], "Trainer": []}
            for _ in range(repeats):
                for name, measured in rows.items():
                    measured.append(measure(name, precision, equal, steps))
            one, other = medians(rows["ours"]), medians(rows["Trainer"])
            print(
                f"{precision:6}{one['tokens/s']:12.1f}{other['tokens/s']:9.1f}"
                f"{one['tokens/s'] / other['tokens/s']:7.2f}{one['GB']:9.2f}{other['GB']:9.2f}",
                flush=True,
            )


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
