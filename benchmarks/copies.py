"""The search for copies: samples against a training split of 100 M tokens on the disk.

    python -m benchmarks.copies

The tokens are drawn at random, as unevenly as words are; of each of nine samples of 100 tokens
another length stands in them.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
from jsonargparse import auto_cli

from benchmarks.memory import high_water
from benchmarks.report import versions
from gpt2_lightning.evaluate.ngrams import longest_copies

VOCABULARY = 50257
SAMPLE_TOKENS = 100
PLANTED = range(10, 100, 10)  # tokens, one length a sample


def main(tokens: int = 100_000_000) -> None:
    """Print seconds, memory, and how much was found.

    Args:
        tokens: Tokens of the training split.
    """
    before = high_water()
    chance = np.random.default_rng(0)
    # the k-th id's share is proportional to 1 / k
    share = np.cumsum(1 / np.arange(1, VOCABULARY + 1))
    pool = np.searchsorted(share / share[-1], chance.random(1 << 20)).astype(np.uint16)
    samples = [chance.choice(pool, SAMPLE_TOKENS) for _ in PLANTED]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ids.bin"
        with file.open("wb") as stream:
            for start in range(0, tokens, 1 << 16):
                stream.write(chance.choice(pool, min(1 << 16, tokens - start)).tobytes())
            for sample, length in zip(samples, PLANTED, strict=True):
                stream.seek(pool.itemsize * int(chance.integers(tokens - length)))
                stream.write(sample[:length].tobytes())
        ids = np.memmap(file, dtype=pool.dtype, mode="r")
        start_time = time.perf_counter()
        found = longest_copies([sample.tolist() for sample in samples], ids)
        seconds = time.perf_counter() - start_time
        held = high_water() - before
        print(f"{tokens:,} tokens ({ids.nbytes / 1e9:.2f} GB), {len(samples)} samples")
        print(f"seconds: {seconds:.1f}")
        print(f"peak GB: {held:.2f}, of which the mapped file at most {ids.nbytes / 1e9:.2f}")
        print(f"tokens planted: {list(PLANTED)}")
        print(f"tokens found:   {found}")
    print(versions())


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
