"""Runs of tokens that stand in the training text: copies in samples, overlap of held-out text.

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

PIECE = 1 << 18  # training tokens looked at together; bounds the memory

HELD = 1 << 21  # n-grams of the held-out split looked for together; bounds the memory

BASE = 0x9E3779B97F4A7C15  # of the hash; 5 modulo 8, so that its powers repeat late

SPREAD = 0xD1B54A32D192ED03  # odd; carries short n-grams into the hash's upper bits

LONGEST_SHOWN = 60  # tokens of a passage

Integers = npt.NDArray[np.int64]

Hashes = npt.NDArray[np.uint64]

Booleans = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Overlap:
    """N-grams of a held-out split that stand in the training split.

    Attributes:
        n: Tokens of an n-gram.
        ngrams: N-grams of the held-out split, as often as they stand there.
        found: How many of them stand in the training split.
        units: Articles or rows of the held-out split that have an n-gram.
        units_touched: How many of them have one that stands in the training split.
        longest: Tokens of the longest passage all of whose n-grams do.
        passage: Its text, or as much as can be shown.
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
        """Share of the n-grams that stand in the training split."""
        return self.found / self.ngrams if self.ngrams else None


def longest_copies(
    samples: Sequence[Sequence[int]],
    ids: npt.NDArray[np.unsignedinteger[Any]],
    *,
    piece: int = PIECE,
) -> list[int]:
    """Find how much of each sample was copied.

    A sample whose longest copy so far has L tokens is looked for by its (L + 1)-grams alone:
    hashes find where one may stand, and the ids themselves, compared from there on, decide. So
    every training token is read once, and the work is at most a look at a piece for each length
    in question, plus one for each time a sample's L grows, whatever the text repeats. Memory
    does not grow with the training split.

    A copy may go on from one article or row into the next; an end-of-text between them ends it,
    as samples hold none.

    Args:
        samples: New ids of each sample, without prompt and end-of-text.
        ids: The training split, shape ``(tokens,)``, usually mapped from the disk.
        piece: Training tokens looked at together.

    Returns:
        For each sample, the tokens of its longest copy; 0 where not one of its tokens occurs.
    """
    search = _Search(samples, piece)
    for start in range(0, len(ids), piece):
        if search.complete:
            break
        search.look_at(ids[start : start + piece + search.overlap])
    tokens: list[int] = search.best.tolist()
    return tokens


def measure_overlap(
    held_out: TokenStore,
    training: TokenStore,
    tokenizer: PreTrainedTokenizerBase,
    *,
    n: int,
    held: int = HELD,
    piece: int = PIECE,
) -> Overlap:
    """Find which n-grams of a held-out split stand in the training split.

    N-grams do not reach from one article or row into the next. They are compared by hashes of 64
    bits: of a billion training n-grams and a million others, one pair is taken for equal with a
    chance of one in 18,000. Memory grows with neither split; the training split is read once for
    each two million n-grams of the other.

    N-grams of up to 13 words tell what of a test stood in training since Brown et al., "Language
    Models are Few-Shot Learners", https://arxiv.org/abs/2005.14165, appendix C; here they are of
    the model's own tokens, as in Touvron et al., "Llama 2", https://arxiv.org/abs/2307.09288,
    appendix A.6.

    Args:
        held_out: The held-out split's tokens.
        training: The training split's.
        tokenizer: Which made them.
        n: Tokens of an n-gram.
        held: N-grams of the held-out split looked for together.
        piece: Ids read together.
    """
    ngrams = found = units = units_touched = 0
    last_unit = last_touched = -1
    run = _Run(n)
    ngrams_of = _NGrams(n, piece)
    for start in range(0, held_out.manifest.tokens, held):
        stop = min(start + held, held_out.manifest.tokens)
        own = [hashes[valid] for _, hashes, _, valid in ngrams_of(held_out, start, stop)]
        table = _Table(np.unique(np.concatenate(own)) if own else np.empty(0, np.uint64))
        stands = np.zeros(len(table.own), np.bool_)
        if len(stands):
            for _, hashes, _, valid in ngrams_of(training, 0, training.manifest.tokens):
                places, which = table.find(hashes)
                stands[which[valid[places]]] = True
        for place, hashes, unit, valid in ngrams_of(held_out, start, stop):
            known = np.zeros(len(hashes), np.bool_)
            places, which = table.find(hashes)
            known[places] = stands[which] & valid[places]
            ngrams += int(valid.sum())
            found += int(known.sum())
            seen, touched = np.unique(unit[valid]), np.unique(unit[known])
            # a unit may go on from the piece before
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
    """Samples, and the longest copy of each in the pieces looked at so far.

    Attributes:
        best: Tokens of each sample's longest copy, shape ``(samples,)``.
        overlap: Tokens beyond a piece that a copy beginning in it may reach.
    """

    def __init__(self, samples: Sequence[Sequence[int]], piece: int) -> None:
        self.lengths = np.array([len(sample) for sample in samples], np.int64)
        self.best = np.zeros_like(self.lengths)
        self.overlap = int(self.lengths.max(initial=1)) - 1
        # one long run, where a -1 ends each sample: it equals no training token
        self.ids = np.array([id_ for sample in samples for id_ in (*sample, -1)], np.int64)
        self.owners = np.repeat(np.arange(len(samples)), self.lengths + 1)
        ends = np.cumsum(self.lengths + 1)
        self.rooms = ends[self.owners] - 1 - np.arange(len(self.ids))
        self.powers = _Powers(max(piece + self.overlap, len(self.ids)))
        self.sums = self.powers.sums(self.ids)

    @property
    def complete(self) -> bool:
        """Whether every sample is known to be a copy as a whole."""
        return bool((self.best == self.lengths).all())

    def look_at(self, piece: npt.NDArray[np.unsignedinteger[Any]]) -> None:
        """Look for copies that begin in a piece, which is given with its overlap."""
        window = np.append(piece.astype(np.int64), -2)  # -2 equals no token of a sample
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
        places, grams = _Table(own).find(hashes)
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


def _common(a: Integers, at_a: Integers, b: Integers, at_b: Integers) -> Integers:
    """Return how many ids of ``a`` and ``b`` are equal, one after another, from pairs of places."""
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
        """Go on with what is known of the n-grams that begin from a place on."""
        edges = np.flatnonzero(np.diff(known.astype(np.int8), prepend=0, append=0)) + place
        for begin, end in edges.reshape(-1, 2).tolist():
            if self._begun is None or begin != self._end:
                self.end()
                self._begun = begin
            self._end = end

    def end(self) -> None:
        """Take the run that was going on for the longest, if it is."""
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
            unit, room = _units(store, place, end)
            yield place, hashes, unit, room >= self.n


def _units(store: TokenStore, start: int, stop: int) -> tuple[Integers, Integers]:
    """Return the unit of each place, and the tokens from there to the unit's end."""
    places = np.arange(start, stop)
    first = max(int(np.searchsorted(store.starts, start, "right")) - 1, 0)
    last = int(np.searchsorted(store.starts, stop - 1, "right"))
    starts = store.starts_between(first, min(last + 1, store.manifest.units + 1))
    following = np.searchsorted(starts, places, "right")
    ends = starts[following.clip(max=len(starts) - 1)] - store.closing
    room = np.where(following > 0, ends - places, 0)  # an end-of-text leads, before all units
    return following + first - 1, room


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


class _Table:
    """Hashes to be found among others.

    Args:
        own: The hashes, sorted and all different.
    """

    def __init__(self, own: Hashes) -> None:
        self.own = own
        # a table of the upper bits rules out nearly all, in a fraction of a search's time
        bits = min(24, 8 + len(own).bit_length())
        self.shift = np.uint64(64 - bits)
        self.likely = np.zeros(1 << bits, np.bool_)
        self.likely[own >> self.shift] = True

    def find(self, hashes: Hashes) -> tuple[Integers, Integers]:
        """Return the places in ``hashes`` of what is among the own ones, and which one each is."""
        if not len(self.own):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        places = np.flatnonzero(self.likely[(hashes >> self.shift).view(np.int64)])
        nearest = np.searchsorted(self.own, hashes[places]).clip(max=len(self.own) - 1)
        found = self.own[nearest] == hashes[places]
        return places[found], nearest[found]
