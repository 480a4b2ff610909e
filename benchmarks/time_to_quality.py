"""What a few minutes make of a model: this project against three other ways, from equal weights.

    python -m benchmarks.time_to_quality --model MODEL --source Salesforce/wikitext \
        --subset wikitext-2-raw-v1 --minutes 5 --plot docs/time_to_quality.svg

- ours: ``fit --config configs/minutes.yaml --minutes 5``, the whole command within the time.
- tutorial: the classic tutorial's script: punctuation removed, rows padded or cut to 128, batches
  of 2, rate 1e-4; cut off when the time is over, as it knows no time.
- Trainer: the transformers Trainer on blocks packed as run_clm packs them: 8 x 1024, rate 5e-5,
  linear, with as many steps as its measured speed allows.
- bare loop: whole logits, AdamW, clipping and a cosine in the manner of nanoGPT: random blocks of
  8 x 1024 tokens, with the same peak rate as ours and as many steps as its measured speed allows.

The others have the whole time for their training alone: imports, tokenizing and saving do not
count. Every model is scored by one plain loop over the raw text of the held-out split, in windows
of 1024 tokens: bits per byte of the text as it is.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, cast

import torch
from jsonargparse import auto_cli
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.prepare import OTHER
from benchmarks.report import matrix_product_rate, versions
from gpt2_lightning.data.sources import open_source

BLOCK_SIZE, BLOCKS = 1024, 8
MEASURED = 2  # steps whose speed says how many fit; the one before them does not count
POINTS = 5  # of a curve, the last at the end


class Snapshots(Callback):
    """Saves the weights as training goes on, at equal shares of the time.

    Args:
        folder: Where.
        seconds: The time.
        began: When it began, by `time.monotonic`.
    """

    def __init__(self, folder: str, seconds: float, began: float = 0.0) -> None:
        self.folder, self.seconds, self.began = Path(folder), seconds, began
        self.taken = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save them, if it is time."""
        self.save(cast(Any, pl_module).model)

    def save(self, model: torch.nn.Module) -> None:
        """Save a model's weights, if another share of the time is over."""
        now = time.monotonic() - self.began
        if now >= (self.taken + 1) * self.seconds / POINTS and self.taken + 1 < POINTS:
            self.taken += 1
            torch.save(model.state_dict(), self.folder / f"{now:.1f}.pt")


def ours(model: str, data: "Texts", seconds: float, seed: int, rate: float, folder: Path) -> None:
    """Run the command line in this process."""
    from gpt2_lightning.cli import main

    root = Path(__file__).parents[1]
    main(
        [
            "fit",
            f"--config={root / 'configs' / 'minutes.yaml'}",
            f"--model.learning_rate={rate}",
            f"--model.pretrained={model}",
            f"--data.source={data.source}",
            f"--data.subset={data.subset}",
            f"--seed_everything={seed}",
            f"--minutes={seconds / 60}",
            "--trainer.accelerator=cpu",
            "--trainer.limit_val_batches=8",
            "--trainer.num_sanity_val_steps=8",
            "--trainer.enable_progress_bar=false",
            "--samples.enabled=false",
            f"--trainer.default_root_dir={folder}",
            "--trainer.callbacks+=benchmarks.time_to_quality.Snapshots",
            f"--trainer.callbacks.folder={folder}",
            f"--trainer.callbacks.seconds={seconds}",
            f"--trainer.callbacks.began={time.monotonic()}",
        ]
    )
    (run,) = (folder / "lightning_logs").glob("*")
    (run / "hf").rename(folder / "model")


def tutorial(
    model: str, data: "Texts", seconds: float, seed: int, rate: float, folder: Path
) -> None:
    """Train as the tutorial does, until the time is over."""
    from datasets import Dataset
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.eos_token
    cleaned = [OTHER.sub(" ", text).strip() for text in data.train]
    rows = tokenizer(
        [text for text in cleaned if text], truncation=True, padding="max_length", max_length=128
    )
    _trainer(
        model,
        Dataset.from_dict(dict(rows)),
        DataCollatorForLanguageModeling(tokenizer, mlm=False),
        {"per_device_train_batch_size": 2, "learning_rate": 1e-4, "num_train_epochs": 1},
        seconds,
        seed,
        folder,
    )


def packed(model: str, data: "Texts", seconds: float, seed: int, rate: float, folder: Path) -> None:
    """Train with the Trainer on packed blocks."""
    from datasets import Dataset
    from transformers import default_data_collator

    ids = data.ids(model)
    blocks = [ids[at : at + BLOCK_SIZE] for at in range(0, len(ids) - BLOCK_SIZE, BLOCK_SIZE)]
    rows = Dataset.from_dict({"input_ids": blocks, "labels": blocks})
    flags: dict[str, Any] = {"per_device_train_batch_size": BLOCKS, "learning_rate": 5e-5}
    fitting = _trainer(model, rows, default_data_collator, flags, None, seed, folder)
    steps = int(seconds / fitting)
    _trainer(
        model, rows, default_data_collator, flags | {"max_steps": steps}, seconds, seed, folder
    )


def _trainer(
    model: str,
    rows: Any,
    collator: Any,
    flags: dict[str, Any],
    seconds: float | None,
    seed: int,
    folder: Path,
) -> float:
    """Train and save; without a time, take a few steps and return the seconds of one."""
    import transformers

    ends: list[float] = []
    snapshots = Snapshots(str(folder), seconds or math.inf)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model)

    class Clock(transformers.TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.monotonic())

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            ends.append(time.monotonic())
            if seconds is None:
                control.should_training_stop = len(ends) > 1 + MEASURED
            else:
                snapshots.began = ends[0]
                snapshots.save(loaded)
                control.should_training_stop |= ends[-1] - ends[0] >= seconds

    transformers.Trainer(
        model=loaded,
        args=transformers.TrainingArguments(
            output_dir=str(folder / "trainer"),
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=seed,
            **flags,
        ),
        train_dataset=rows,
        data_collator=collator,
        callbacks=[Clock()],
    ).train()
    if seconds is not None:
        loaded.save_pretrained(folder / "model")
    return (ends[-1] - ends[1]) / max(len(ends) - 2, 1)


def bare_loop(
    model: str, data: "Texts", seconds: float, seed: int, rate: float, folder: Path
) -> None:
    """Train with a loop of a few lines."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    ids = torch.tensor(data.ids(model))
    loaded = AutoModelForCausalLM.from_pretrained(model, attn_implementation="sdpa").train()
    parameters = [it for it in loaded.parameters() if it.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [it for it in parameters if it.dim() >= 2], "weight_decay": 0.1},
        {"params": [it for it in parameters if it.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)

    def take_step(now: float) -> None:
        begins = torch.randint(len(ids) - BLOCK_SIZE - 1, (BLOCKS,))
        batch = torch.stack([ids[at : at + BLOCK_SIZE + 1] for at in begins])
        logits = loaded(batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = now
        optimizer.step()

    take_step(0.0)
    start = time.monotonic()
    for _ in range(MEASURED):
        take_step(0.0)
    steps = int(seconds / (time.monotonic() - start) * MEASURED)
    optimizer.state.clear()
    began, warm_up = time.monotonic(), steps // 20
    snapshots = Snapshots(str(folder), seconds, began)
    for step in range(steps):
        progress = max(0, step - warm_up) / max(steps - warm_up, 1)
        cosine = 0.55 + 0.45 * math.cos(math.pi * progress)  # to a tenth
        take_step(rate * (step / warm_up if step < warm_up else cosine))
        snapshots.save(loaded)
        if time.monotonic() - began >= seconds:
            break
    loaded.save_pretrained(folder / "model")


Way = Callable[[str, "Texts", float, int, float, Path], None]
WAYS: dict[str, Way] = {
    "ours": ours,
    "tutorial": tutorial,
    "Trainer": packed,
    "bare loop": bare_loop,
}


class Texts:
    """The rows to train on, and the raw text to score.

    Args:
        source: What ``--data.source`` takes.
        subset: What ``--data.subset`` takes.
        scored: Subset whose text is scored; it is the raw one.
        size: Characters that are scored.
    """

    def __init__(self, source: str, subset: str | None, scored: str | None, size: int) -> None:
        self.source, self.subset = source, subset
        self.train = [row.text for row in open_source(source, subset=subset)["train"]]
        held_out = open_source(source, subset=scored)["validation"]
        self.held_out = "".join(row.text or "\n" for row in held_out)[:size]

    def ids(self, model: str) -> list[int]:
        """Return the training text's tokens, joined as run_clm joins them."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model)
        rows = tokenizer(self.train)["input_ids"]
        return [token for row in rows for token in row]


@torch.inference_mode()
def bits_per_byte(model: torch.nn.Module, ids: list[int], size: int) -> float:
    """Score tokens in windows of `BLOCK_SIZE`, each but the first of a window predicted once."""
    nats = 0.0
    for at in range(0, len(ids) - 1, BLOCK_SIZE):
        window = torch.tensor([ids[at : at + BLOCK_SIZE + 1]])
        logits = model(window[:, :-1]).logits[0]
        nats += float(torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum"))
    return nats / math.log(2) / size


def train_and_score(
    way: str, model: str, texts: Texts, seconds: float, seed: int, rate: float, whole: bool
) -> list[tuple[float, float]]:
    """Train one way in this process.

    Returns:
        Seconds of training and bits per byte: before, on the way if the whole curve is wanted,
        and at the end.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        began = time.monotonic()
        WAYS[way](model, texts, seconds, seed, rate, folder)
        took = time.monotonic() - began if way == "ours" else seconds
        ids = AutoTokenizer.from_pretrained(model)(texts.held_out)["input_ids"]
        size = len(texts.held_out.encode())
        loaded = AutoModelForCausalLM.from_pretrained(model).eval()
        curve = [(0.0, bits_per_byte(loaded, ids, size))]
        files = folder.glob("*.pt") if whole else []
        for file in sorted(files, key=lambda file: float(file.stem)):
            loaded.load_state_dict(torch.load(file, weights_only=True))
            curve.append((float(file.stem), bits_per_byte(loaded, ids, size)))
        last = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
        return [*curve, (took, bits_per_byte(last, ids, size))]


def main(
    model: str,
    source: str,
    subset: str | None = None,
    scored_subset: str | None = None,
    minutes: float = 5.0,
    rate: float = 5e-5,
    seeds: int = 3,
    ways: list[str] | None = None,
    at_once: int = 1,
    scored_characters: int = 100_000,
    plot: Path | None = None,
    way: str | None = None,
    seed: int = 1,
) -> None:
    """Measure all ways, or one of them in this process.

    Args:
        model: Folder or Hub id of the model that all begin with.
        source: Path or Hub id of a text with a training and a validation split.
        subset: Folder below the source, or configuration on the Hub.
        scored_subset: That of the raw text that is scored; null is the same.
        minutes: Of each way.
        rate: Peak learning rate of ours and of the bare loop.
        seeds: Runs of each way.
        ways: Which ones; null is all.
        at_once: Runs at a time; each has its share of the cores.
        scored_characters: Length of the scored text.
        plot: Score the weights on the way, too, and write the first seed's curves there, as SVG.
        way: Measure this one alone and print its curve as JSON.
        seed: Of that one.
    """
    if way is not None:
        texts = Texts(source, subset, scored_subset or subset, scored_characters)
        curve = train_and_score(
            way, str(Path(model).absolute()), texts, minutes * 60, seed, rate, plot is not None
        )
        print(json.dumps(curve))
        return
    ways = ways or list(WAYS)
    cores = sorted(os.sched_getaffinity(0))
    free = [cores[index::at_once] for index in range(at_once)]

    def measure(case: tuple[int, str]) -> list[tuple[float, float]]:
        mine = free.pop()
        words = [*sys.argv[1:], f"--way={case[1]}", f"--seed={case[0]}"]
        output = subprocess.check_output(
            [sys.executable, "-m", "benchmarks.time_to_quality", *words],
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(len(mine))},
            preexec_fn=lambda: os.sched_setaffinity(0, set(mine)),
            stderr=subprocess.DEVNULL,
        )
        free.append(mine)
        curve = [tuple(point) for point in json.loads(output.splitlines()[-1])]
        print(f"{case[1]}, seed {case[0]}: {curve[0][1]:.3f} -> {curve[-1][1]:.3f}", flush=True)
        return curve

    cases = list(product(range(1, seeds + 1), ways))
    print(versions())
    print(f"matrix product in float32: {matrix_product_rate('float32'):,.0f} GFLOP/s")
    with ThreadPoolExecutor(at_once) as pool:
        curves = dict(zip(cases, pool.map(measure, cases), strict=True))
    print(f"{minutes:g} minutes each, {len(free[0])} core(s), bits per byte of raw text")
    print(f"{'':12}{'before':>8}{'median':>8}{'least':>8}{'most':>8}{'seconds':>9}")
    for name in ways:
        ends = [curves[number, name][-1] for number in range(1, seeds + 1)]
        found = [bits for _, bits in ends]
        print(
            f"{name:12}{curves[1, name][0][1]:8.3f}{statistics.median(found):8.3f}"
            f"{min(found):8.3f}{max(found):8.3f}{max(seconds for seconds, _ in ends):9.0f}"
        )
    if plot is not None:
        plot.write_text(drawn({name: curves[1, name] for name in ways}), encoding="utf-8")


COLORS = ("#1f5fa8", "#c2571a", "#3d8a4e", "#7a4ea3")


def drawn(curves: dict[str, list[tuple[float, float]]]) -> str:
    """Return curves of bits per byte against seconds, as SVG."""
    width, height, margin = 640, 360, 50
    points = [point for curve in curves.values() for point in curve]
    longest = max(seconds for seconds, _ in points)
    least, most = min(bits for _, bits in points) - 0.02, max(bits for _, bits in points) + 0.02

    def place(seconds: float, bits: float) -> tuple[float, float]:
        across = margin + seconds / longest * (width - 3 * margin)
        return across, margin / 2 + (most - bits) / (most - least) * (height - 1.5 * margin)

    def parts() -> Iterator[str]:
        for number in range(5):
            bits = least + (most - least) * number / 4
            (left, y), (right, _) = place(0, bits), place(longest, bits)
            yield f'<path d="M{left:.0f} {y:.0f}H{right:.0f}" stroke="#ddd"/>'
            yield f'<text x="8" y="{y + 4:.0f}">{bits:.2f}</text>'
            x, y = place(longest * number / 4, least)
            yield f'<text x="{x - 8:.0f}" y="{y + 18:.0f}">{longest * number / 4:.0f} s</text>'
        for color, (name, curve) in zip(COLORS, curves.items(), strict=False):
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in curve))
            yield f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>'
            x, y = place(*curve[-1])
            yield f'<text x="{x + 6:.0f}" y="{y + 4:.0f}" fill="{color}">{name}</text>'

    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>'
        f"{''.join(parts())}</svg>\n"
    )


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
