"""What every comparison prints: medians, versions, and how fast the machine itself is."""

import os
import platform
import statistics
import time
from collections.abc import Sequence
from importlib.metadata import version


def medians(measured: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure."""
    return {name: statistics.median(row[name] for row in measured) for name in measured[0]}


def versions() -> str:
    """Return a line with the libraries' versions and the machine."""
    names = ("torch", "transformers", "lightning")
    libraries = ", ".join(f"{name} {version(name)}" for name in names)
    return f"{libraries}, Python {platform.python_version()}, {os.cpu_count()} cores"


def matrix_product_rate(dtype_name: str, size: int = 1024, repeats: int = 5) -> float:
    """Return the machine's own rate of a square matrix product, in 10^9 operations a second.

    Args:
        dtype_name: ``float32`` or ``bfloat16``.
        size: Rows and columns.
        repeats: Products, of which the median counts.
    """
    import torch

    a = torch.randn(size, size).to(getattr(torch, dtype_name))
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds[1:]) / 1e9
