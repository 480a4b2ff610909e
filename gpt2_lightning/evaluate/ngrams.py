"""Runs of tokens that occur in the training text: copies in samples, overlap of held-out text.

Both hash n-grams by one sum over a run of ids, and look the hashes up in a table (Karp and Rabin,
"Efficient randomized pattern-matching algorithms", https://doi.org/10.1147/rd.312.0249).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from gpt2_lightning.data.token_store import TokenStore
from gpt2_lightning.data.token_text import CUT_CHARACTER, decoder

PIECE = 1 << 18  # training tokens searched at a time; bounds the memory

NGRAMS_AT_ONCE = 1 << 21  # of the held-out split, searched at a time; bounds the memory

BASE = 0x9E3779B97F4A7C15  # of the hash; 5 modulo 8, so that its powers repeat late

SPREAD = 0xD1B54A32D192ED03  # odd; carries short n-grams into the hash's upper bits

LONGEST_SHOWN = 60  # tokens of a passage

Integers = npt.NDArray[np.int64]

Hashes = npt.NDArray[np.uint64]

Booleans = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Overlap:
    """N-grams of a held-out split that occur in the training split.

    Attributes:
        n: Tokens of an n-gram.
        ngrams: N-grams of the held-out split, repeated ones included.
        found: Number of those that occur in the training split.
        units: Articles or rows of the held-out split that have an n-gram.
        units_touched: Number of those with an n-gram that occurs in the training split.
        longest: Tokens of the longest passage all of whose n-grams do.
        passage: Its text, or the beginning of it.
    """

    n: int
    ngrams: int
    found: int
    units: int
    units_touched: int
    longest: int
    passage: str

    @property
    def share(self) -> float | None:
        """Share of the n-grams that occur in the training split."""
        return self.found / self.ngrams if self.ngrams else None


def longest_copies(
    samples: Sequence[Sequence[int]],
    ids: npt.NDArray[np.unsignedinteger[Any]],
    *,
    piece: int = PIECE,
) -> list[int]:
    """Return the length of the longest run of each sample that occurs in the training split.

    For a sample whose longest copy so far has L tokens, only its (L + 1)-grams are searched: hashes
    find the candidates, and the ids themselves are compared from there on. So every training token
    is read once, and a piece is searched at most once for each distinct L, plus once each time a
    sample's L grows, however repetitive the text is. Memory does not grow with the training split.

    A copy may extend from one article or row into the next; an end-of-text between them ends it,
    as samples contain none.

    Args:
        samples: New ids of each sample, without prompt and end-of-text.
        ids: The training split, shape ``(tokens,)``, usually mapped from the disk.
        piece: Training tokens searched at a time.

    Returns:
        For each sample, the tokens of its longest copy; 0 if none of its tokens occurs.
    """
    search = _Search(samples, piece)
    for start in range(0, len(ids), piece):
        if search.complete:
            break
        search.search(ids[start : start + piece + search.overlap])
    tokens: list[int] = search.best.tolist()
    return tokens


def measure_overlap(
    held_out: TokenStore,
    training: TokenStore,
    tokenizer: PreTrainedTokenizerBase,
    *,
    n: int,
    at_once: int = NGRAMS_AT_ONCE,
    piece: int = PIECE,
) -> Overlap:
    """Find the n-grams of a held-out split that occur in the training split.

    N-grams do not extend from one article or row into the next. They are compared by 64-bit hashes:
    with a billion training n-grams and a million others, two different ones collide with a
    probability of one in 18,000. Memory grows with neither split; the training split is read once
    for each two million n-grams of the other.

    N-grams of up to 13 words measure contamination since Brown et al., "Language Models are
    Few-Shot Learners", https://arxiv.org/abs/2005.14165, appendix C; here they are of the model's
    own tokens, as in Touvron et al., "Llama 2", https://arxiv.org/abs/2307.09288, appendix A.6.

    Args:
        held_out: The held-out split's tokens.
        training: The training split's.
        tokenizer: The tokenizer of both.
        n: Tokens of an n-gram.
        at_once: N-grams of the held-out split searched at a time.
        piece: Ids read at a time.
    """
    ngrams = found = units = units_touched = 0
    last_unit = last_touched = -1
    run = _Run(n)
    ngrams_of = _NGrams(n, piece)
    for start in range(0, held_out.manifest.tokens, at_once):
        stop = min(start + at_once, held_out.manifest.tokens)
        own = [hashes[valid] for _, hashes, _, valid in ngrams_of(held_out, start, stop)]
        table = _Table(np.unique(np.concatenate(own)) if own else np.empty(0, np.uint64))
        in_training = np.zeros(len(table.own), np.bool_)
        if len(in_training):
            for _, hashes, _, valid in ngrams_of(training, 0, training.manifest.tokens):
                places, which = table.find(hashes)
                in_training[which[valid[places]]] = True
        for place, hashes, unit, valid in ngrams_of(held_out, start, stop):
            known = np.zeros(len(hashes), np.bool_)
            places, which = table.find(hashes)
            known[places] = in_training[which] & valid[places]
            ngrams += int(valid.sum())
            found += int(known.sum())
            seen, touched = np.unique(unit[valid]), np.unique(unit[known])
            # the first unit may have begun in the piece before
            units += len(seen) - int(seen.size > 0 and seen[0] == last_unit)
            units_touched += len(touched) - int(touched.size > 0 and touched[0] == last_touched)
            last_unit = int(seen[-1]) if seen.size else last_unit
            last_touched = int(touched[-1]) if touched.size else last_touched
            run.extend(place, known)
    run.end()
    shown = held_out.ids_between(run.start, run.start + min(run.longest, LONGEST_SHOWN))
    passage = decoder(tokenizer)(shown.tolist()).strip(CUT_CHARACTER)
    return Overlap(n, ngrams, found, units, units_touched, run.longest, passage)


class _Search:
    """Samples, and the longest copy of each in the pieces searched so far.

    Attributes:
        best: Tokens of each sample's longest copy, shape ``(samples,)``.
        overlap: Tokens beyond a piece that a copy beginning in it may reach.
    """

    def __init__(self, samples: Sequence[Sequence[int]], piece: int) -> None:
        self.lengths = np.array([len(sample) for sample in samples], np.int64)
        self.best = np.zeros_like(self.lengths)
        self.overlap = int(self.lengths.max(initial=1)) - 1
        # one long run, with a -1 after each sample, which equals no training token
        self.ids = np.array([id_ for sample in samples for id_ in (*sample, -1)], np.int64)
        self.owners = np.repeat(np.arange(len(samples)), self.lengths + 1)
        ends = np.cumsum(self.lengths + 1)
        self.remaining = ends[self.owners] - 1 - np.arange(len(self.ids))  # tokens of its sample
        self.powers = _Powers(max(piece + self.overlap, len(self.ids)))
        self.sums = self.powers.sums(self.ids)

    @property
    def complete(self) -> bool:
        """Whether every sample is a copy as a whole."""
        return bool((self.best == self.lengths).all())

    def search(self, piece: npt.NDArray[np.unsignedinteger[Any]]) -> None:
        """Search a piece, given with its overlap, for copies that begin in it."""
        window = np.append(piece.astype(np.int64), -2)  # -2 equals no token of a sample
        sums = self.powers.sums(window[:-1])
        open_ = self.best < self.lengths
        while open_.any():
            size = int(self.best[open_].min()) + 1
            searched = open_ & (self.best == size - 1)
            starts = np.flatnonzero(searched[self.owners] & (self.remaining >= size))
            hashes = self.powers.hashes(sums, size)
            self._match(window, hashes, size, starts)
            # a sample without a copy of this size has no longer one; the others are searched again
            open_ &= (self.best < self.lengths) & (self.best != size - 1)

    def _match(self, window: Integers, hashes: Hashes, size: int, starts: Integers) -> None:
        """Match the samples' n-grams of a size, and what follows them, with the window's."""
        own, gram = np.unique(self.powers.hashes(self.sums, size)[starts], return_inverse=True)
        places, grams = _Table(own).find(hashes)
        while True:
            # One place of each n-gram is enough: a longer copy is found when its own size is
            # searched. The first place, written last, has most of a repetition after it.
            place_of = np.full(len(own), -1)
            place_of[grams[::-1]] = places[::-1]
            occurs = place_of[gram] >= 0
            starts, gram = starts[occurs], gram[occurs]
            if not len(starts):
                return
            found = _common(window, place_of[gram], self.ids, starts)
            np.maximum.at(self.best, self.owners[starts], found)
            # equal hashes of different ids: try the n-gram's other places
            wrong = found < size
            starts, gram = starts[wrong], gram[wrong]
            untried = np.isin(grams, gram) & (place_of[grams] != places)
            places, grams = places[untried], grams[untried]


def _common(a: Integers, at_a: Integers, b: Integers, at_b: Integers) -> Integers:
    """Return the lengths of the equal runs of ids that begin at pairs of places."""
    lengths = np.zeros_like(at_a)
    live = np.arange(len(at_a))
    while len(live):
        live = live[a[at_a[live] + lengths[live]] == b[at_b[live] + lengths[live]]]
        lengths[live] += 1
    return lengths


class _Run:
    """The longest run of known n-grams, from pieces of the split in order."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.start = self.longest = 0  # first token, and tokens
        self._begun: int | None = None
        self._end = 0

    def extend(self, place: int, known: Booleans) -> None:
        """Add the n-grams that begin at a place and after it, and whether each is known."""
        edges = np.flatnonzero(np.diff(known.astype(np.int8), prepend=0, append=0)) + place
        for begin, end in edges.reshape(-1, 2).tolist():
            if self._begun is None or begin != self._end:
                self.end()
                self._begun = begin
            self._end = end

    def end(self) -> None:
        """End the present run, and keep it if it is the longest."""
        if self._begun is not None:
            tokens = self._end - self._begun + self.n - 1
            if tokens > self.longest:
                self.start, self.longest = self._begun, tokens
        self._begun = None


class _NGrams:
    """The n-grams of a token store, a piece at a time."""

    def __init__(self, n: int, piece: int) -> None:
        self.n, self.piece = n, piece
        self.powers = _Powers(piece + n)

    def __call__(
        self, store: TokenStore, start: int, stop: int
    ) -> Iterator[tuple[int, Hashes, Integers, Booleans]]:
        """Yield the n-grams that begin at a place from ``start`` to before ``stop``.

        Yields:
            The first one's place; hashes, units, and whether it lies in one unit, each of shape
            ``(places,)``.
        """
        stop = min(stop, store.manifest.tokens - self.n + 1)
        for place in range(start, stop, self.piece):
            end = min(place + self.piece, stop)
            ids = store.ids_between(place, end + self.n - 1).astype(np.int64)
            hashes = self.powers.hashes(self.powers.sums(ids), self.n)
            unit, remaining = _units(store, place, end)
            yield place, hashes, unit, remaining >= self.n


def _units(store: TokenStore, start: int, stop: int) -> tuple[Integers, Integers]:
    """Return the unit of each place, and the number of tokens up to the unit's end."""
    places = np.arange(start, stop)
    first = max(int(np.searchsorted(store.starts, start, "right")) - 1, 0)
    last = int(np.searchsorted(store.starts, stop - 1, "right"))
    starts = store.starts_between(first, min(last + 1, store.manifest.units + 1))
    following = np.searchsorted(starts, places, "right")
    ends = starts[following.clip(max=len(starts) - 1)] - store.closing
    remaining = np.where(following > 0, ends - places, 0)  # 0 at the leading end-of-text
    return following + first - 1, remaining


class _Powers:
    """Hashes of a run's n-grams of any size, from one sum over the run, modulo 2^64.

    With ``sums[i] = ids[0] B^0 + ... + ids[i - 1] B^(i - 1)``, an n-gram's hash is
    ``S (sums[i + n] - sums[i]) / B^i``, whatever its position.

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


class _Table:
    """A set of hashes, to be searched for others.

    Args:
        own: The hashes, sorted and distinct.
    """

    def __init__(self, own: Hashes) -> None:
        self.own = own
        # a table of the upper bits excludes nearly all others, far faster than a binary search
        bits = min(24, 8 + len(own).bit_length())
        self.shift = np.uint64(64 - bits)
        self.likely = np.zeros(1 << bits, np.bool_)
        self.likely[own >> self.shift] = True

    def find(self, hashes: Hashes) -> tuple[Integers, Integers]:
        """Return the indices in ``hashes`` of members of the set, and their indices in ``own``."""
        if not len(self.own):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        places = np.flatnonzero(self.likely[(hashes >> self.shift).view(np.int64)])
        nearest = np.searchsorted(self.own, hashes[places]).clip(max=len(self.own) - 1)
        found = self.own[nearest] == hashes[places]
        return places[found], nearest[found]
