"""Copies: the longest run of a sample's tokens that stands verbatim in a training split."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

CHUNK = 1 << 18  # training tokens looked at together; bounds the memory
BASE = 0x9E3779B97F4A7C15  # of the hash; 5 modulo 8, so that its powers repeat late
SPREAD = 0xD1B54A32D192ED03  # odd; carries short n-grams into the hash's upper bits

Integers = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


def longest_copies(
    samples: Sequence[Sequence[int]],
    ids: npt.NDArray[np.unsignedinteger[Any]],
    *,
    chunk: int = CHUNK,
) -> list[int]:
    """Find how much of each sample was copied.

    A sample whose longest copy so far has L tokens is looked for by its (L + 1)-grams alone:
    hashes find where one may stand, and the ids themselves, compared from there on, decide. So
    every training token is read once, and the work is at most a look at a chunk for each length
    in question, plus one for each time a sample's L grows, whatever the text repeats. Memory
    does not grow with the training split.

    A copy may go on from one article or row into the next; an end-of-text between them ends it,
    as samples hold none.

    Reference: Karp and Rabin, "Efficient randomized pattern-matching algorithms",
    https://doi.org/10.1147/rd.312.0249.

    Args:
        samples: New ids of each sample, without prompt and end-of-text.
        ids: The training split, shape ``(tokens,)``, usually mapped from the disk.
        chunk: Training tokens looked at together.

    Returns:
        For each sample, the tokens of its longest copy; 0 where not one of its tokens occurs.
    """
    search = _Search(samples, chunk)
    for start in range(0, len(ids), chunk):
        if search.complete:
            break
        search.look_at(ids[start : start + chunk + search.overlap])
    tokens: list[int] = search.best.tolist()
    return tokens


class _Search:
    """Samples, and the longest copy of each in the chunks looked at so far.

    Attributes:
        best: Tokens of each sample's longest copy, shape ``(samples,)``.
        overlap: Tokens beyond a chunk that a copy beginning in it may reach.
    """

    def __init__(self, samples: Sequence[Sequence[int]], chunk: int) -> None:
        self.lengths = np.array([len(sample) for sample in samples], np.int64)
        self.best = np.zeros_like(self.lengths)
        self.overlap = int(self.lengths.max(initial=1)) - 1
        # one long run, where a -1 ends each sample: it equals no training token
        self.ids = np.array([id_ for sample in samples for id_ in (*sample, -1)], np.int64)
        self.owners = np.repeat(np.arange(len(samples)), self.lengths + 1)
        ends = np.cumsum(self.lengths + 1)
        self.rooms = ends[self.owners] - 1 - np.arange(len(self.ids))
        self.powers = _Powers(max(chunk + self.overlap, len(self.ids)))
        self.sums = self.powers.sums(self.ids)

    @property
    def complete(self) -> bool:
        """Whether every sample is known to be a copy as a whole."""
        return bool((self.best == self.lengths).all())

    def look_at(self, chunk: npt.NDArray[np.unsignedinteger[Any]]) -> None:
        """Look for copies that begin in a chunk, which is given with its overlap."""
        window = np.append(chunk.astype(np.int64), -2)  # -2 equals no token of a sample
        sums = self.powers.sums(window[:-1])
        open_ = self.best < self.lengths
        while open_.any():
            size = int(self.best[open_].min()) + 1
            asked = open_ & (self.best == size - 1)
            starts = np.flatnonzero(asked[self.owners] & (self.rooms >= size))
            hashes = self.powers.hashes(sums, size)
            self._match(window, hashes, size, starts)
            # who has no copy of this size has no longer one; the others are asked again
            open_ &= (self.best < self.lengths) & (self.best != size - 1)

    def _match(self, window: Integers, hashes: Hashes, size: int, starts: Integers) -> None:
        """Match the samples' n-grams of a size, and what follows them, with the window's."""
        own, gram = np.unique(self.powers.hashes(self.sums, size)[starts], return_inverse=True)
        places = _places(hashes, own)
        grams = np.searchsorted(own, hashes[places])
        while True:
            # One place of each n-gram is enough: a longer copy is found when its own size is asked
            # for. The first, written last, has most of a repetition after it.
            place_of = np.full(len(own), -1)
            place_of[grams[::-1]] = places[::-1]
            stands = place_of[gram] >= 0
            starts, gram = starts[stands], gram[stands]
            if not len(starts):
                return
            found = _common(window, place_of[gram], self.ids, starts)
            np.maximum.at(self.best, self.owners[starts], found)
            # equal hashes of different ids: try the n-gram's other places
            wrong = found < size
            starts, gram = starts[wrong], gram[wrong]
            untried = np.isin(grams, gram) & (place_of[grams] != places)
            places, grams = places[untried], grams[untried]


class _Powers:
    """Hashes of a run's n-grams of any size, from one sum over the run, modulo 2^64.

    With ``sums[i] = ids[0] B^0 + ... + ids[i - 1] B^(i - 1)``, an n-gram's hash is
    ``S (sums[i + n] - sums[i]) / B^i``, the same wherever it stands.

    Args:
        tokens: Tokens of the longest run.
    """

    def __init__(self, tokens: int) -> None:
        self.powers = _geometric(1, BASE, tokens)
        self.inverses = _geometric(SPREAD, pow(BASE, -1, 1 << 64), tokens)

    def sums(self, ids: Integers) -> Hashes:
        """Return the sums of a run, shape ``(tokens + 1,)``."""
        sums = np.zeros(len(ids) + 1, np.uint64)
        np.cumsum(ids.view(np.uint64) * self.powers[: len(ids)], out=sums[1:])
        return sums

    def hashes(self, sums: Hashes, size: int) -> Hashes:
        """Return the hashes of a run's n-grams of a size, shape ``(tokens + 1 - size,)``."""
        hashes = sums[size:] - sums[:-size]
        hashes *= self.inverses[: len(hashes)]
        return hashes


def _geometric(first: int, ratio: int, count: int) -> Hashes:
    terms = np.full(count, ratio, np.uint64)
    terms[:1] = first
    return np.cumprod(terms, dtype=np.uint64)


def _places(hashes: Hashes, own: Hashes) -> Integers:
    """Return where hashes stand that are among some own ones, which are sorted."""
    # a table of the upper bits rules out nearly all, in a fraction of a search's time
    bits = min(24, 8 + len(own).bit_length())
    shift = np.uint64(64 - bits)
    table = np.zeros(1 << bits, bool)
    table[own >> shift] = True
    places = np.flatnonzero(table[(hashes >> shift).view(np.int64)])
    nearest = np.searchsorted(own, hashes[places]).clip(max=len(own) - 1)
    among: Integers = places[own[nearest] == hashes[places]]
    return among


def _common(a: Integers, at_a: Integers, b: Integers, at_b: Integers) -> Integers:
    """Return how many ids of ``a`` and ``b`` are equal, one after another, from pairs of places."""
    lengths = np.zeros_like(at_a)
    live = np.arange(len(at_a))
    while len(live):
        live = live[a[at_a[live] + lengths[live]] == b[at_b[live] + lengths[live]]]
        lengths[live] += 1
    return lengths
