"""What cleaning takes from a text: characters, punctuation, numbers and rows."""

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from gpt2_lightning.data.cleaning import MARKS, Cleaner
from gpt2_lightning.data.rows import Row, stretches
from gpt2_lightning.data.token_text import WITHOUT_SPACES

LONGEST_SAMPLE = 400  # characters shown of a row
SHORTEST_SAMPLE = 40  # characters; headings say little of a cleaner
ANGLE_MARKS = re.compile(r"<(?:unk|UNK|pad|PAD|s|eos|num|NUM|mask|MASK)>")  # of corpora
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass(frozen=True)
class SampleRow:
    """The beginning of a row, before and after."""

    before: str
    after: str


@dataclass
class CleaningLoss:
    """What a cleaner leaves of a split.

    WikiText's own marks count as the sign they carry (``@-@`` as ``-``), on both sides: undoing
    them is no loss. White space does not count.

    Attributes:
        characters: Characters before, white space aside.
        punctuation: Of these, punctuation and symbols (Unicode's categories P and S).
        numbers: Numbers before: digits, with points and commas between them.
        characters_left: Characters after, white space aside.
        punctuation_left: Of these, punctuation and symbols.
        numbers_lost: Numbers of a row that do not stand in it afterwards, such as ``12.5`` where
            ``12 5`` is left.
        rows_emptied: Rows of which nothing is left, blank ones aside.
        text_characters: Characters after cleaning, white space included, of rows that are left.
        text_words: Words of it, by ``str.split``.
        samples: Some rows, drawn at random, always the same of a split.
        marks_made_words: Marks such as ``<unk>`` of which the cleaner leaves the word alone, by
            mark: the word, and how often.
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
        """Whether the text has words: not where most characters are of scripts without spaces."""
        return bool(self.text_words) and 2 * self.characters_without_spaces < self.characters_left

    @property
    def share_of_characters_lost(self) -> float:
        """Share of the characters that are gone."""
        return 1 - self.characters_left / max(self.characters, 1)

    @property
    def share_of_punctuation_lost(self) -> float:
        """Share of the punctuation that is gone."""
        return 1 - self.punctuation_left / self.punctuation if self.punctuation else 0.0

    @property
    def share_of_numbers_lost(self) -> float:
        """Share of the numbers that are gone."""
        return self.numbers_lost / max(self.numbers, 1)


def measure_cleaning(rows: Iterable[Row], cleaner: Cleaner, samples: int) -> CleaningLoss:
    """Clean rows, and count what is lost; memory does not grow with the text.

    Args:
        rows: The split.
        cleaner: What is done to each row.
        samples: Rows to keep for show.
    """
    loss = CleaningLoss()
    kinds = _Kinds()
    drawn = _Drawn(samples)
    for row in rows:
        cleaned = cleaner.clean(row.text)
        blank = not row.text.strip()
        if cleaned.strip() or not cleaner.drops_empty:
            loss.text_characters += len(cleaned)
            loss.text_words += sum(len(part.split()) for part in stretches(cleaned))
        if blank:
            continue
        loss.rows_emptied += not cleaned.strip()
        drawn.offer(row.text)
        unmarked = MARKS.sub(r"\1", row.text)
        characters, punctuation = kinds.count(unmarked)
        numbers = NUMBER.findall(unmarked)
        loss.characters += characters
        loss.punctuation += punctuation
        loss.numbers += len(numbers)
        loss.characters_without_spaces += sum(1 for _ in WITHOUT_SPACES.finditer(cleaned))
        if cleaned != row.text:
            for mark in ANGLE_MARKS.findall(row.text):
                if mark not in cleaned and mark[1:-1] in cleaned:
                    _, count = loss.marks_made_words.get(mark, ("", 0))
                    loss.marks_made_words[mark] = mark[1:-1], count + 1
            unmarked = MARKS.sub(r"\1", cleaned)
            characters, punctuation = kinds.count(unmarked)
            if numbers:
                lost = Counter(numbers) - Counter(NUMBER.findall(unmarked))
                loss.numbers_lost += lost.total()
        loss.characters_left += characters
        loss.punctuation_left += punctuation
    for text in drawn.rows:
        loss.samples.append(SampleRow(text, cleaner.clean(text)))
    return loss


class _Drawn:
    """Some rows of a stream, each as likely as any other (reservoir sampling).

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
    """Cut a long row between words, if it has any."""
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
        """Return the characters that are no white space, and how many are punctuation."""
        kinds = text.translate(self)
        return len(kinds) - kinds.count("s"), kinds.count("p")
