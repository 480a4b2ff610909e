"""How much of a held-out split stands in the training split: n-grams of tokens."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from gpt2_lightning.data.token_store import TokenStore
from gpt2_lightning.data.token_text import CUT_CHARACTER, decoder
from gpt2_lightning.inspection.pieces import PIECE, closing, ids_between, starts_between

HELD = 1 << 21  # n-grams of the held-out split looked for together; bounds the memory
BASE = np.uint64(0x9E3779B97F4A7C15)  # of the hash
SPREAD = np.uint64(0xD1B54A32D192ED03)  # odd; carries short n-grams into the hash's upper bits
LONGEST_SHOWN = 60  # tokens of a passage

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
    for start in range(0, held_out.manifest.tokens, held):
        stop = min(start + held, held_out.manifest.tokens)
        stands = _Standing(held_out, start, stop, n, piece)
        if stands.own.size:
            stands.look_in(training)
        for place, hashes, unit, valid in _grams(held_out, start, stop, n, piece):
            known = stands.among(hashes) & valid
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
    shown = ids_between(held_out, run.start, run.start + min(run.longest, LONGEST_SHOWN))
    passage = decoder(tokenizer)(shown.tolist()).strip(CUT_CHARACTER)
    return Overlap(n, ngrams, found, units, units_touched, run.longest, passage)


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


class _Standing:
    """Some n-grams of the held-out split, and whether each stands in the training split."""

    def __init__(self, store: TokenStore, start: int, stop: int, n: int, piece: int) -> None:
        self.n, self.piece = n, piece
        grams = [h[valid] for _, h, _, valid in _grams(store, start, stop, n, piece)]
        self.own = np.unique(np.concatenate(grams)) if grams else np.empty(0, np.uint64)
        self.stands = np.zeros(len(self.own), np.bool_)
        # a table of the upper bits rules out nearly all, in a fraction of a search's time
        bits = min(24, 8 + len(self.own).bit_length())
        self.shift = np.uint64(64 - bits)
        self.table = np.zeros(1 << bits, np.bool_)
        self.table[self.own >> self.shift] = True

    def look_in(self, training: TokenStore) -> None:
        """Read the training split once."""
        for _, hashes, _, valid in _grams(
            training, 0, training.manifest.tokens, self.n, self.piece
        ):
            likely = hashes[self.table[hashes >> self.shift] & valid]
            nearest = np.searchsorted(self.own, likely).clip(max=len(self.own) - 1)
            self.stands[nearest[self.own[nearest] == likely]] = True

    def among(self, hashes: Hashes) -> Booleans:
        """Tell of n-grams that are among these whether they stand in the training split."""
        known = np.zeros(len(hashes), np.bool_)
        if self.stands.any():
            nearest = np.searchsorted(self.own, hashes).clip(max=len(self.own) - 1)
            known = self.stands[nearest] & (self.own[nearest] == hashes)
        return known


def _grams(
    store: TokenStore, start: int, stop: int, n: int, piece: int
) -> Iterator[tuple[int, Hashes, npt.NDArray[np.int64], Booleans]]:
    """Yield the n-grams that begin at a place from ``start`` to before ``stop``, by pieces.

    Yields:
        The first one's place; hashes, units, and whether it lies in one unit, each of shape
        ``(places,)``.
    """
    stop = min(stop, store.manifest.tokens - n + 1)
    for place in range(start, stop, piece):
        end = min(place + piece, stop)
        ids = ids_between(store, place, end + n - 1).astype(np.uint64)
        hashes = np.zeros(end - place, np.uint64)
        for shift in range(n):
            hashes *= BASE
            hashes += ids[shift : shift + end - place]
        hashes *= SPREAD
        unit, room = _units(store, place, end)
        yield place, hashes, unit, room >= n


def _units(
    store: TokenStore, start: int, stop: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the unit of each place, and the tokens from there to the unit's end."""
    places = np.arange(start, stop)
    first = max(int(np.searchsorted(store.starts, start, "right")) - 1, 0)
    last = int(np.searchsorted(store.starts, stop - 1, "right"))
    starts = starts_between(store, first, min(last + 1, store.manifest.units + 1))
    following = np.searchsorted(starts, places, "right")
    ends = starts[following.clip(max=len(starts) - 1)] - closing(store)
    room = np.where(following > 0, ends - places, 0)  # an end-of-text leads, before all units
    return following + first - 1, room
