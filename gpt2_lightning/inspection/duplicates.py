"""Articles that stand more than once, in a split or in the training split as well."""

from array import array
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from gpt2_lightning.data.rows import Rows
from gpt2_lightning.inspection.original_text import NO_WORDS

TOLD = 3  # duplicates that are named
BEGINNING = 60  # characters of one


@dataclass(frozen=True)
class Duplicate:
    """An article that repeats an earlier one, both counted from 1, and how it begins."""

    article: int
    repeats: int
    beginning: str


@dataclass(frozen=True)
class Duplicates:
    """Articles that are the same but for white space.

    Attributes:
        articles: Articles that repeat an earlier one of their split; those without a word aside.
        in_training: Articles that stand in the training split; None where that is not known, or
            is the split itself.
        examples: The first few that repeat an earlier one.
        examples_in_training: The first few that stand in the training split.
    """

    articles: int
    in_training: int | None
    examples: list[Duplicate]
    examples_in_training: list[Duplicate]


def find_duplicates(rows: Rows, digests: "array[int]", training: "array[int] | None") -> Duplicates:
    """Find an article's repetitions by its digest, of 64 bits.

    Of n different articles, some two have one digest with a chance below n^2 / 2^65: one in
    370,000 for ten million.

    Args:
        rows: The split, articles marked; read again, up to the last example, where there is one.
        digests: Of its articles (see `original_text.Reader`).
        training: Those of the training split, if this is another one.
    """
    own = _as_numbers(digests)
    _, first_of, copy_of = np.unique(own, return_index=True, return_inverse=True)
    firsts = first_of[copy_of]
    repeated = np.flatnonzero((firsts != np.arange(len(own))) & (own != NO_WORDS))
    pairs = [(int(place), int(firsts[place])) for place in repeated[:TOLD]]
    if training is None:
        return Duplicates(len(repeated), None, _told(rows, pairs), [])
    theirs, place_of = np.unique(_as_numbers(training), return_index=True)
    nearest = np.searchsorted(theirs, own).clip(max=max(len(theirs) - 1, 0))
    found = (
        np.flatnonzero((theirs[nearest] == own) & (own != NO_WORDS))
        if len(theirs)
        else np.empty(0, np.int64)
    )
    standing = [(int(place), int(place_of[nearest[place]])) for place in found[:TOLD]]
    return Duplicates(len(repeated), len(found), _told(rows, pairs), _told(rows, standing))


def _as_numbers(digests: "array[int]") -> npt.NDArray[np.uint64]:
    return np.frombuffer(digests, np.uint64) if digests else np.empty(0, np.uint64)


def _told(rows: Rows, pairs: list[tuple[int, int]]) -> list[Duplicate]:
    """Look up how articles begin."""
    beginnings: dict[int, str] = {}
    wanted = {article for article, _ in pairs}
    article = -1
    for row in rows if wanted else ():
        article += row.begins or article < 0
        if article > max(wanted):
            break
        if article in wanted and len(beginnings.get(article, "")) < BEGINNING:
            words = " ".join(row.text[: 10 * BEGINNING].split())
            beginnings[article] = " ".join(filter(None, (beginnings.get(article), words)))
    return [
        Duplicate(article + 1, other + 1, "".join(islice(beginnings[article], BEGINNING)))
        for article, other in pairs
    ]
