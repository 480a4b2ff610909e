"""How long a split's units are, in tokens."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Bin:
    """Units of ``low`` to ``high`` tokens, both included."""

    low: int
    high: int
    units: int


@dataclass(frozen=True)
class Lengths:
    """The distribution of lengths, in tokens.

    Attributes:
        units: Articles or rows.
        shortest: Tokens.
        median: Tokens; the lower one of the two in the middle.
        mean: Tokens.
        percentile_95: Tokens that 95 % of the units do not exceed.
        longest: Tokens.
        bins: The histogram; the longest of a bin are powers of two, and half-way between them, so
            that what a block of so many tokens holds stands below what it cuts.
    """

    units: int
    shortest: int
    median: int
    mean: float
    percentile_95: int
    longest: int
    bins: list[Bin]


def measure_lengths(pieces: Iterable[npt.NDArray[np.int64]]) -> tuple[Lengths, Counter[int]]:
    """Count how often each length occurs; memory grows with the different lengths alone.

    Args:
        pieces: The lengths of all units, a piece at a time.

    Returns:
        The distribution, and the units of each length.
    """
    counts: Counter[int] = Counter()
    for piece in pieces:
        tokens, units = np.unique(piece, return_counts=True)
        counts.update(dict(zip(tokens.tolist(), units.tolist(), strict=True)))
    ordered = np.array(sorted(counts), np.int64)
    units_of = np.array([counts[length] for length in ordered.tolist()], np.int64)
    total = int(units_of.sum())
    below = np.cumsum(units_of)

    def at(share: float) -> int:
        return int(ordered[np.searchsorted(below, share * total)])

    bins = [
        Bin(below_it + 1, high, int(units_of[(ordered > below_it) & (ordered <= high)].sum()))
        for below_it, high in pairwise(_edges(int(ordered[0]), int(ordered[-1])))
    ]
    lengths = Lengths(
        units=total,
        shortest=int(ordered[0]),
        median=at(0.5),
        mean=float((ordered * units_of).sum() / total),
        percentile_95=at(0.95),
        longest=int(ordered[-1]),
        bins=bins,
    )
    return lengths, counts


def edges() -> Iterator[int]:
    """Yield -1, 0, 1, 2, 3, 4, 6, 8, 12, 16, 24 and so on."""
    yield from (-1, 0, 1, 2, 3)
    power = 4
    while True:
        yield power
        yield power + power // 2
        power *= 2


def _edges(shortest: int, longest: int) -> list[int]:
    """Return the longest of each bin that some lengths need, after the longest below them."""
    found: list[int] = []
    for edge in edges():
        if edge < shortest:
            found = [edge]
        else:
            found.append(edge)
        if edge >= longest:
            return found
    raise AssertionError("edges never end")
