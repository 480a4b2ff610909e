"""A source's rows: counts, repeated articles, and what is lost by cleaning."""

import hashlib
import random
import re
import unicodedata
from array import array
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import numpy.typing as npt

from gpt2_lightning.data.articles import Row, Rows, count_words, word_chunks
from gpt2_lightning.data.cleaning import MARKS, Cleaner
from gpt2_lightning.data.token_text import WITHOUT_SPACES

NO_WORDS = 0  # instead of the digest of an article without words

MOST_EXAMPLES = 3  # repeated articles that are named
BEGINNING = 60  # characters of one
LONGEST_SAMPLE = 400  # characters shown of a row
SHORTEST_SAMPLE = 40  # characters; headings say little of a cleaner
ANGLE_MARKS = re.compile(r"<(?:unk|UNK|pad|PAD|s|eos|num|NUM|mask|MASK)>")  # of corpora
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass
class OriginalText:
    r"""Counts of the rows as the source has them, WikiText's blank rows restored as ``" \n"``.

    Attributes:
        articles: Articles.
        rows: Rows.
        blank_rows: Rows of white space only.
        words: Words by ``str.split``.
        harness_words: Words by lm-evaluation-harness' rule: the pieces of
            ``re.split(r"\s+", article)``, an empty one at either end included.
        characters: Unicode code points.
        bytes: UTF-8 bytes.
    """

    articles: int = 0
    rows: int = 0
    blank_rows: int = 0
    words: int = 0
    harness_words: int = 0
    characters: int = 0
    bytes: int = 0


class RowCounter:
    """Counts rows and hashes articles; memory grows by eight bytes an article.

    Attributes:
        text: The counts.
        digests: For each article 64 bits of the BLAKE2b of its words joined with single spaces;
            0 if it has none.
    """

    def __init__(self) -> None:
        self.text = OriginalText()
        self.digests = array("Q")
        self._digest = hashlib.blake2b(digest_size=8)
        self._before = 0, 0  # words and bytes before the article
        self._last = ""

    def add(self, row: Row) -> None:
        """Count a row, marked if an article begins with it."""
        text = self.text
        if row.begins or not text.rows:
            self.end_article()
            text.articles += 1
            text.harness_words += row.text[:1].isspace()
        words = 0
        for part in word_chunks(row.text):
            if found := part.split():
                self._digest.update(" ".join([*found, ""]).encode())
                words += len(found)
        text.rows += 1
        text.blank_rows += not words
        text.words += words
        text.harness_words += words
        text.characters += len(row.text)
        text.bytes += len(row.text.encode())
        self._last = row.text

    def end_article(self) -> None:
        """Finish the present article's digest; call it after the last row, too."""
        text = self.text
        words, size = self._before
        if text.rows:
            text.harness_words += self._last[-1:].isspace() or text.bytes == size
            number = int.from_bytes(self._digest.digest(), "big") or 1
            self.digests.append(number if text.words > words else NO_WORDS)
        self._digest = hashlib.blake2b(digest_size=8)
        self._before = text.words, text.bytes


@dataclass(frozen=True)
class Duplicate:
    """An article that repeats an earlier one, both counted from 1, and how it begins."""

    article: int
    repeats: int
    beginning: str


@dataclass(frozen=True)
class Duplicates:
    """Articles that are equal except for white space.

    Attributes:
        articles: Articles that repeat an earlier one of their split, without empty ones.
        in_training: Articles that are also in the training split; None for the training split, or
            without one.
        examples: The first few that repeat an earlier one.
        examples_in_training: The first few that are also in the training split.
    """

    articles: int
    in_training: int | None
    examples: list[Duplicate]
    examples_in_training: list[Duplicate]


def find_duplicates(rows: Rows, digests: "array[int]", training: "array[int] | None") -> Duplicates:
    """Find repeated articles by their 64-bit digests.

    The probability that any two of n different articles collide is below n^2 / 2^65: one in
    370,000 for ten million.

    Args:
        rows: The split, articles marked; read again up to the last example, if there is any.
        digests: Of its articles (see `RowCounter`).
        training: Those of the training split, if this is another one.
    """
    own = _as_numbers(digests)
    _, first_of, copy_of = np.unique(own, return_index=True, return_inverse=True)
    firsts = first_of[copy_of]
    repeated = np.flatnonzero((firsts != np.arange(len(own))) & (own != NO_WORDS))
    pairs = [(int(place), int(firsts[place])) for place in repeated[:MOST_EXAMPLES]]
    if training is None:
        return Duplicates(len(repeated), None, _examples(rows, pairs), [])
    theirs, place_of = np.unique(_as_numbers(training), return_index=True)
    nearest = np.searchsorted(theirs, own).clip(max=max(len(theirs) - 1, 0))
    found = (
        np.flatnonzero((theirs[nearest] == own) & (own != NO_WORDS))
        if len(theirs)
        else np.empty(0, np.int64)
    )
    standing = [(int(place), int(place_of[nearest[place]])) for place in found[:MOST_EXAMPLES]]
    examples = _examples(rows, pairs + standing)
    return Duplicates(len(repeated), len(found), examples[: len(pairs)], examples[len(pairs) :])


def _as_numbers(digests: "array[int]") -> npt.NDArray[np.uint64]:
    return np.frombuffer(digests, np.uint64) if digests else np.empty(0, np.uint64)


def _examples(rows: Rows, pairs: list[tuple[int, int]]) -> list[Duplicate]:
    """Return pairs of repeated articles with their beginnings."""
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


@dataclass(frozen=True)
class SampleRow:
    """The beginning of a row, before and after cleaning."""

    before: str
    after: str


@dataclass
class CleaningLoss:
    """What is lost of a split by cleaning.

    WikiText's marks count as their sign (``@-@`` as ``-``) before and after: undoing them is no
    loss. White space does not count.

    Attributes:
        characters: Characters before, without white space.
        punctuation: Of these, punctuation and symbols (Unicode's categories P and S).
        numbers: Numbers before: digits, with points and commas between them.
        characters_left: Characters after, without white space.
        punctuation_left: Of these, punctuation and symbols.
        numbers_lost: Numbers of a row that are not in it afterwards, such as ``12.5`` if it becomes
            ``12 5``.
        rows_emptied: Rows that become empty.
        text_characters: Characters after cleaning, with white space, of rows that are kept.
        text_words: Words of these, by ``str.split``.
        samples: Random rows, always the same ones of a split.
        marks_made_words: Marks such as ``<unk>`` that the cleaner turns into words, by mark: the
            word, and how often.
        characters_without_spaces: Characters after cleaning, of scripts without spaces between
            words, such as Chinese and Thai.
    """

    characters: int = 0
    punctuation: int = 0
    numbers: int = 0
    characters_left: int = 0
    punctuation_left: int = 0
    numbers_lost: int = 0
    rows_emptied: int = 0
    text_characters: int = 0
    text_words: int = 0
    samples: list[SampleRow] = field(default_factory=list)
    marks_made_words: dict[str, tuple[str, int]] = field(default_factory=dict)
    characters_without_spaces: int = 0

    @property
    def has_words(self) -> bool:
        """Whether the text has words: False if most characters are of scripts without spaces."""
        return bool(self.text_words) and 2 * self.characters_without_spaces < self.characters_left

    @property
    def share_of_characters_lost(self) -> float:
        """Share of the characters that are lost."""
        return 1 - self.characters_left / max(self.characters, 1)

    @property
    def share_of_punctuation_lost(self) -> float:
        """Share of the punctuation that is lost."""
        return 1 - self.punctuation_left / self.punctuation if self.punctuation else 0.0

    @property
    def share_of_numbers_lost(self) -> float:
        """Share of the numbers that are lost."""
        return self.numbers_lost / max(self.numbers, 1)


class CleaningMeter:
    """Cleans rows, and counts what is lost; memory does not grow with the text.

    Args:
        cleaner: The cleaner.
        samples: Number of sample rows to keep.
    """

    def __init__(self, cleaner: Cleaner, samples: int) -> None:
        self.cleaner = cleaner
        self._loss = CleaningLoss()
        self._kinds = _Kinds()
        self._drawn = _Reservoir(samples)

    @property
    def loss(self) -> CleaningLoss:
        """What is lost of the rows so far, with samples."""
        samples = [SampleRow(text, self.cleaner.clean(text)) for text in self._drawn.rows]
        return replace(self._loss, samples=samples)

    def add(self, text: str) -> None:
        """Count a row."""
        loss = self._loss
        cleaned = self.cleaner.clean(text)
        if cleaned.strip() or not self.cleaner.drops_empty:
            loss.text_characters += len(cleaned)
            loss.text_words += count_words(cleaned)
        if not text.strip():
            return
        loss.rows_emptied += not cleaned.strip()
        self._drawn.offer(text)
        unmarked = MARKS.sub(r"\1", text)
        characters, punctuation = self._kinds.count(unmarked)
        numbers = NUMBER.findall(unmarked)
        loss.characters += characters
        loss.punctuation += punctuation
        loss.numbers += len(numbers)
        loss.characters_without_spaces += sum(1 for _ in WITHOUT_SPACES.finditer(cleaned))
        if cleaned != text:
            for mark in ANGLE_MARKS.findall(text):
                if mark not in cleaned and mark[1:-1] in cleaned:
                    _, count = loss.marks_made_words.get(mark, ("", 0))
                    loss.marks_made_words[mark] = mark[1:-1], count + 1
            unmarked = MARKS.sub(r"\1", cleaned)
            characters, punctuation = self._kinds.count(unmarked)
            if numbers:
                lost = Counter(numbers) - Counter(NUMBER.findall(unmarked))
                loss.numbers_lost += lost.total()
        loss.characters_left += characters
        loss.punctuation_left += punctuation


class _Reservoir:
    """A uniform random sample of a stream's rows (reservoir sampling).

    Reference: Vitter, "Random sampling with a reservoir", 1985,
    https://doi.org/10.1145/3147.3165, algorithm R.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.long: list[str] = []
        self.short: list[str] = []
        self.seen = 0
        self.chance = random.Random(0)

    @property
    def rows(self) -> list[str]:
        return (self.long + self.short)[: self.count]

    def offer(self, text: str) -> None:
        if len(text) < SHORTEST_SAMPLE:
            if len(self.short) < self.count:
                self.short.append(text)
            return
        self.seen += 1
        if len(self.long) < self.count:
            self.long.append(_beginning(text))
        elif (place := self.chance.randrange(self.seen)) < self.count:
            self.long[place] = _beginning(text)


def _beginning(text: str) -> str:
    """Cut a long row, between words if possible."""
    if len(text) <= LONGEST_SAMPLE:
        return text
    return text[: text.rfind(" ", 0, LONGEST_SAMPLE) + 1 or LONGEST_SAMPLE]


class _Kinds(dict[int, str]):
    """Code points -> ``p`` for punctuation and symbols, ``s`` for white space, ``x`` for others."""

    def __missing__(self, point: int) -> str:
        kind = unicodedata.category(chr(point))[0]
        self[point] = "s" if chr(point).isspace() else "p" if kind in "PS" else "x"
        return self[point]

    def count(self, text: str) -> tuple[int, int]:
        """Return the number of characters without white space, and that of punctuation."""
        kinds = text.translate(self)
        return len(kinds) - kinds.count("s"), kinds.count("p")
