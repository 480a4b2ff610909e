"""Memory and time of `inspect` on a training split, and on one that is ten times as long.

    python -m benchmarks.inspect --source Salesforce/wikitext --subset wikitext-2-v1 \
        --tokenizer openai-community/gpt2

The long one is made of copies with other digits, as a parquet file in one row group, which a
reader could take for a reason to hold it all. Each side is a fresh process with an empty cache, so
that tokenizing counts.
"""

import contextlib
import io
import json
import multiprocessing
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
from jsonargparse import auto_cli

from benchmarks.memory import high_water
from benchmarks.report import medians, versions
from gpt2_lightning.data.articles import SplitName
from gpt2_lightning.data.sources import open_source

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
DIGIT = re.compile(r"\d")


def write_source(folder: Path, source: str, subset: str | None, copies: int) -> None:
    """Write a source with its training split so many times, every copy with digits of its own."""
    folder.mkdir()
    for split, rows in open_source(source, subset=subset).items():
        texts = [row.text for row in rows]
        for copy in range(1, copies if split == "train" else 1):
            chance = random.Random(copy)

            def another(_: re.Match[str], chance: random.Random = chance) -> str:
                return str(chance.randrange(10))

            texts += [DIGIT.sub(another, row.text) for row in rows]
        pyarrow.parquet.write_table(
            pyarrow.table({"text": texts}),
            folder / f"{split}-00000-of-00001.parquet",
            row_group_size=len(texts),
        )


def measure(folder: str, tokenizer: str) -> dict[str, float]:
    """Inspect a source in this process.

    Returns:
        Seconds without imports; the process' peak in MB, and what of it is above the imports;
        tokens of the training split.
    """
    from gpt2_lightning.inspect.command import main as inspect

    before, start = high_water(), time.perf_counter()
    screen = io.StringIO()
    words = [f"--data.source={folder}", f"--data.cache_dir={folder}/cache", "--json"]
    with contextlib.redirect_stdout(screen):
        inspect([*words, f"--data.tokenizer={tokenizer}"])
    seconds, peak = time.perf_counter() - start, high_water()
    found = json.loads(screen.getvalue())
    return {
        "seconds": seconds,
        "peak": 1e3 * peak,
        "above imports": 1e3 * (peak - before),
        "tokens": found["splits"]["train"]["vocabulary"]["tokens"],
    }


def main(
    source: str,
    tokenizer: str,
    subset: str | None = None,
    copies: int = 10,
    repeats: int = 1,
    side: str | None = None,
) -> None:
    """Measure both sides in turn, or one of them in this process.

    Args:
        source: Path or Hub id of a text with a training split.
        tokenizer: Folder or Hub id.
        subset: Folder below the source, or configuration on the Hub.
        copies: Copies of the training split on the longer side.
        repeats: Times each side is measured.
        side: Measure the source in this folder alone and print it as JSON.
    """
    if side is not None:
        print(json.dumps(measure(side, tokenizer)))
        return
    found: dict[int, list[dict[str, float]]] = {1: [], copies: []}
    for _ in range(repeats):
        for times in found:
            with tempfile.TemporaryDirectory() as folder:
                made = Path(folder) / "source"
                # in a process of its own: what this one holds would count as its children's peak
                writer = multiprocessing.get_context("spawn").Process(
                    target=write_source, args=(made, source, subset, times)
                )
                writer.start()
                writer.join()
                words = [f"--side={made}", f"--source={source}", f"--tokenizer={tokenizer}"]
                output = subprocess.check_output(
                    [sys.executable, "-m", "benchmarks.inspect", *words], text=True
                )
            found[times].append(json.loads(output.splitlines()[-1]))
    rows = {times: medians(measured) for times, measured in found.items()}
    print("inspect, nothing cached; medians")
    print(f"{'split':>8}{'tokens':>13}{'seconds':>9}{'peak MB':>9}{'above imports':>15}")
    for times, row in rows.items():
        print(
            f"{f'{times} x':>8}{row['tokens']:13,.0f}{row['seconds']:9.1f}{row['peak']:9.0f}"
            f"{row['above imports']:15.0f}"
        )
    ratios = [rows[copies][name] / rows[1][name] for name in ("seconds", "peak", "above imports")]
    print(f"{'ratio':>8}{'':13}{ratios[0]:9.2f}{ratios[1]:9.2f}{ratios[2]:15.2f}")
    print(versions())


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
