"""Preparing a text: cleaned, tokenized and on disk; on one core and two, short and long.

    python -m benchmarks.prepare --source Salesforce/wikitext --subset wikitext-2-v1 \
        --tokenizer openai-community/gpt2

Ours is compared with the tutorial's chain (``datasets.map`` that cleans, a filter, ``map`` that
tokenizes and pads to 128) and with ``datasets.map`` in two processes in the manner of
transformers' run_clm (tokenize, then group into blocks of 1024). Every figure is of a fresh process
with an empty cache, without its imports; the peak is that of the process, above its imports, and of
its children.
"""

import itertools
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from benchmarks.report import medians, versions
from gpt2_lightning.data.sources import open_source

OTHER = re.compile(r"[^\w\s\u4e00-\u9fff]+")


def write_text(file: Path, source: str, subset: str | None, copies: int) -> int:
    """Write a training split so many times as JSON lines, the copies with other digits.

    Returns:
        Bytes of text.
    """
    size = 0
    texts = [row.text for row in open_source(source, subset=subset)["train"]]
    with file.open("w", encoding="utf-8") as stream:
        for copy in range(copies):
            shift = random.Random(copy).randrange(1, 10)
            digits = str.maketrans("0123456789", "".join(str((d + shift) % 10) for d in range(10)))
            for text in texts:
                changed = text.translate(digits) if copy else text
                stream.write(json.dumps({"text": changed}) + "\n")
                size += len(changed.encode())
    return size


def ours(folder: Path, tokenizer: str) -> None:
    """Prepare with this project: no cleaning, articles marked, nothing cut off."""
    from gpt2_lightning.data.datamodule import WikiTextDataModule

    module = WikiTextDataModule(
        str(folder / "train.jsonl"),
        tokenizer=tokenizer,
        validation_source="none",
        test_source="none",
        cache_dir=str(folder / "cache"),
    )
    module.prepare(["train"])


def tutorial(folder: Path, tokenizer: str) -> None:
    """Prepare as the tutorial does: clean, drop empty rows, cut off and pad to 128 tokens."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    loaded.pad_token = loaded.eos_token
    data = _loaded(folder)
    data = data.map(lambda row: {"text": OTHER.sub(" ", row["text"]).strip()})
    data = data.filter(lambda row: len(row["text"]) > 0)
    data.map(
        lambda rows: loaded(rows["text"], truncation=True, padding="max_length", max_length=128),
        batched=True,
        remove_columns=["text"],
    )


def run_clm(folder: Path, tokenizer: str) -> None:
    """Prepare as run_clm does: tokenize, join, cut into blocks of 1024; in two processes."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)

    def group(rows: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {name: list(itertools.chain(*lists)) for name, lists in rows.items()}
        whole = len(joined["input_ids"]) // 1024 * 1024
        found = {
            name: [ids[at : at + 1024] for at in range(0, whole, 1024)]
            for name, ids in joined.items()
        }
        return found | {"labels": found["input_ids"].copy()}

    data = _loaded(folder).map(
        lambda rows: loaded(rows["text"]), batched=True, num_proc=2, remove_columns=["text"]
    )
    data.map(group, batched=True, num_proc=2)


def _loaded(folder: Path) -> Any:
    import datasets

    return datasets.load_dataset(
        "json", data_files=str(folder / "train.jsonl"), cache_dir=str(folder), split="train"
    )


SIDES: dict[str, Callable[[Path, str], None]] = {
    "ours": ours,
    "tutorial": tutorial,
    "run_clm": run_clm,
}


def measure(side: str, folder: Path, tokenizer: str) -> dict[str, float]:
    """Prepare in this process.

    Returns:
        Seconds, and the peak in MB above the imports.
    """
    import datasets
    import transformers

    import gpt2_lightning.data.datamodule  # noqa: F401 - not a part of the seconds

    datasets.disable_progress_bars()
    transformers.AutoTokenizer.from_pretrained(tokenizer)

    def peak() -> int:
        of_all = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
        return sum(resource.getrusage(of).ru_maxrss for of in of_all)

    before, start = peak(), time.perf_counter()
    SIDES[side](folder, tokenizer)
    return {"seconds": time.perf_counter() - start, "peak MB": (peak() - before) / 1024}


def main(
    source: str,
    tokenizer: str,
    subset: str | None = None,
    copies: int = 50,
    repeats: int = 3,
    side: str | None = None,
    folder: Path = Path(),
) -> None:
    """Measure the sides in turn, or one of them in this process.

    Args:
        source: Path or Hub id of a text with a training split.
        tokenizer: Folder or Hub id.
        subset: Folder below the source, or configuration on the Hub.
        copies: Copies of the training split in the long text, which ours alone prepares, once.
        repeats: Times each side is measured on the short text.
        side: Measure this side alone and print it as JSON.
        folder: Where its text lies.
    """
    if side is not None:
        print(json.dumps(measure(side, folder, tokenizer)))
        return

    def run(name: str, folder: Path, cores: int) -> dict[str, float]:
        words = [f"--side={name}", f"--folder={folder}", f"--source={source}"]
        some = set(sorted(os.sched_getaffinity(0))[:cores])
        output = subprocess.check_output(
            [sys.executable, "-m", "benchmarks.prepare", *words, f"--tokenizer={tokenizer}"],
            text=True,
            env=os.environ | {"RAYON_NUM_THREADS": str(cores), "TOKENIZERS_PARALLELISM": "true"},
            preexec_fn=lambda: os.sched_setaffinity(0, some),
        )
        found: dict[str, float] = json.loads(output.splitlines()[-1])
        return found

    def row(name: str, size: int, found: dict[str, float]) -> None:
        print(
            f"{name:<24}{size / 1e6:>8.1f}{found['seconds']:>9.1f}"
            f"{found['seconds'] / size * 1e6:>9.3f}{found['peak MB']:>9.0f}",
            flush=True,
        )

    print(f"{'':<24}{'MB':>8}{'seconds':>9}{'s a MB':>9}{'peak MB':>9}")
    cases = [("ours", 2), ("ours", 1), ("tutorial", 2), ("run_clm", 2)]
    measured: dict[tuple[str, int], list[dict[str, float]]] = {case: [] for case in cases}
    for _ in range(repeats):
        for case in cases:
            with tempfile.TemporaryDirectory() as made:
                size = write_text(Path(made) / "train.jsonl", source, subset, 1)
                measured[case].append(run(case[0], Path(made), case[1]))
    found = {case: medians(rows) for case, rows in measured.items()}
    for (name, cores), figures in found.items():
        row(f"{name}, {cores} core(s)", size, figures)
    with tempfile.TemporaryDirectory() as made:
        long = write_text(Path(made) / "train.jsonl", source, subset, copies)
        figures = run("ours", Path(made), 2)
    row("ours, 2 core(s)", long, figures)
    short = found["ours", 2]
    print(
        f"one core / two: {found['ours', 1]['seconds'] / short['seconds']:.2f}; "
        f"tutorial / ours: {found['tutorial', 2]['seconds'] / short['seconds']:.2f}; "
        f"run_clm / ours: {found['run_clm', 2]['seconds'] / short['seconds']:.2f}; "
        f"long / short, seconds a MB: {figures['seconds'] / long * size / short['seconds']:.2f}, "
        f"peak: {figures['peak MB'] / short['peak MB']:.2f}"
    )
    print(versions())


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
