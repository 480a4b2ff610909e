"""Rows, the articles that they make, and a validation and a test split cut from them."""

import hashlib
import logging
import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import Literal, NamedTuple

log = logging.getLogger(__name__)

SplitName = Literal["train", "validation", "test"]

JoinerName = Literal["newlines", "nothing"]  # between rows that are joined to one text

DocumentsName = Literal["file", "line"]  # what of a text file is a document

# What people call their splits -> what we call them.
SPLIT_NAMES: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}

CHARACTERS_PER_CHUNK = 1 << 16  # of a long text; bounds what its words need in memory

# U+001C to U+001F are blanks for Python and none for tokenizers, which cut no text before them
WORD_END = re.compile(r"\S(?=[^\S\x1c-\x1f])")

SHOWN = 3  # file names in a log line

TITLE = re.compile(r" = [^=].*[^=] = ")
ARTICLE_RULE_VERSION = 1

# WikiText has a title among the first rows; other text is not read to its end for one.
ROWS_SEARCHED_FOR_TITLE = 1000
CHARACTERS_SEARCHED_FOR_TITLE = 1 << 24  # the rows are held in memory, and may be books
HELD_OUT_SHARE = 0.05  # of the bytes, for each split that is made
FEWEST_ARTICLES = 20  # below this, articles are too few to choose from
SPLITTING_VERSION = 3
LINE = re.compile(rb"[^\n]*\n|[^\n]+")
AFTER_LINE = re.compile(r"\n()")
AFTER_WORD = re.compile(r"\S()\s")

# Rows of WikiText-2's splits as published: Merity et al., "Pointer Sentinel Mixture Models",
# https://arxiv.org/abs/1609.07843.
ROWS: dict[SplitName, int] = {"train": 36718, "validation": 3760, "test": 4358}

# Of its wiki.{train,valid,test}.raw; a row of the Hub's copy is a line there, its blank ones " \n".
RAW_SHA256: dict[SplitName, str] = {
    "train": "6707892fa3788b5ab9ed78ab5ff37d9fe825f6011a2ad4fcd6a6d467f0e7da57",
    "validation": "4cd0f6876d07a413aa911261ff6d363c72d757d47f0fdd6015702014c89cb9c7",
    "test": "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
}


class Row(NamedTuple):
    """One row of text, and whether a document begins with it."""

    text: str
    begins: bool


@dataclass(frozen=True)
class SourceFile:
    """A file that rows are read from; hashed once, however many splits are read from it."""

    path: Path

    @cached_property
    def sha256(self) -> bytes:
        """The SHA-256 of its content; size and time do not show that a file is the same."""
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()


@dataclass(frozen=True)
class Rows:
    """The rows of one split: read from the start at each iteration, never held in memory.

    Attributes:
        read: Yields the rows in order.
        files: The files the rows are read from; their content identifies the split.
        identity: Whatever else determines the rows (a column's name, a version).
    """

    read: Callable[[], Iterator[Row]]
    files: tuple[SourceFile, ...] = ()
    identity: str = ""

    def __iter__(self) -> Iterator[Row]:
        return self.read()

    def digest(self) -> str:
        """Return the SHA-256 of the files' content and the identity, in hexadecimal."""
        total = hashlib.sha256(self.identity.encode())
        for file in self.files:
            total.update(file.sha256)
        return total.hexdigest()


def word_chunks(text: str, characters: int = CHARACTERS_PER_CHUNK) -> Iterator[str]:
    """Cut a long text before white space, so that no word is split.

    Args:
        text: The text; usually it is short, and is yielded as it is.
        characters: In each chunk but the last, at least; a longer word stays whole.

    Yields:
        The chunks; joined they are the text.
    """
    start = 0
    while len(text) - start > characters:
        end = WORD_END.search(text, start + characters - 1)
        if end is None:
            break
        yield text[start : end.end()]
        start = end.end()
    yield text[start:] if start else text


def count_words(text: str) -> int:
    """Return the words of a text, by ``str.split``."""
    if len(text) <= CHARACTERS_PER_CHUNK:
        return len(text.split())
    return sum(len(part.split()) for part in word_chunks(text))


def log_splits(
    source: str | Path,
    splits: dict[SplitName, str],
    left_out: dict[str, list[str]],
    what: str = "file",
) -> None:
    """Log in one line which parts of a source are which split, and what is left out.

    Args:
        source: Its name.
        splits: What each split consists of, in words.
        left_out: Names of what is not read, by the reason.
        what: The kind of thing that they name, such as ``file``.
    """
    order: tuple[SplitName, ...] = ("train", "validation", "test")
    parts = [f"{name}: {splits[name]}" for name in order if name in splits]
    parts += [
        f"left out, {why}: {counted(sorted(names), what)}"
        for why, names in sorted(left_out.items())
    ]
    log.info("%s: %s.", source, "; ".join(parts))


def counted(names: list[str], what: str) -> str:
    """Return the only name, or the number of names and the first of them."""
    if len(names) == 1:
        return names[0]
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"{len(names):,} {what}s ({shown})"


def is_title(text: str) -> bool:
    r"""Return whether a row is an article's title, such as ``" = Valkyria = \n"``."""
    return TITLE.fullmatch(text.removesuffix("\n")) is not None


def has_titles(rows: Iterable[Row]) -> bool:
    """Return whether a text has WikiText's format: a title is among its first rows."""
    return any(is_title(row.text) for row in first_rows(rows))


def first_rows(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield the rows that are searched for a title."""
    characters = 0
    for row in islice(rows, ROWS_SEARCHED_FOR_TITLE):
        characters += len(row.text)
        yield row
        if characters > CHARACTERS_SEARCHED_FOR_TITLE:
            return


def mark_articles(rows: Iterable[Row]) -> Iterator[Row]:
    r"""Mark the rows that begin an article.

    If a title is among the first rows, articles run from title to title, rows are lines, and blank
    rows regain the newline that the Hub's copy of WikiText lacks (``""`` for ``" \n"``). Blank rows
    before the first title belong to the first article. Otherwise every document of the source (a
    text file, a row of a table) is one article.

    Args:
        rows: Rows as the source has them, ``begins`` marking documents.

    Yields:
        The rows in the same order, ``begins`` marking articles.
    """
    stream = iter(rows)
    head = list(first_rows(stream))
    if not has_titles(head):
        yield from head
        yield from stream
        return
    first, blank_so_far = True, True
    for row in chain(head, stream):
        title = is_title(row.text)
        yield Row(_as_line(row.text), begins=first or (title and not blank_so_far))
        first, blank_so_far = False, blank_so_far and not title and not row.text.strip()


def as_articles(rows: Rows) -> Rows:
    """Return the rows with the beginnings of articles marked, as by `mark_articles`."""
    identity = f"{rows.identity} articles {ARTICLE_RULE_VERSION}"
    return Rows(lambda: mark_articles(rows), rows.files, identity)


def _as_line(text: str) -> str:
    if text.endswith("\n"):
        return text
    return (text or " ") + "\n"


@dataclass(frozen=True)
class HeldOutChoice:
    """Which part of a text goes to each split, in plain values that are cached.

    Attributes:
        articles: Articles of the text.
        held_out: Articles of each held-out split, counted from 0; null if the text is cut by
            position.
        bytes: UTF-8 bytes of the text.
        longest_line: Bytes.
    """

    articles: int
    held_out: dict[str, list[int]] | None
    bytes: int
    longest_line: int


@dataclass(frozen=True)
class Splitting:
    """A source's training rows, divided into splits.

    Attributes:
        rows: The marked rows of every split.
        articles: Number of articles in each split; null if the text was cut by position.
        rows_with_split: Yields all rows in the source's order, each with its split.
    """

    rows: dict[SplitName, Rows]
    articles: dict[SplitName, int] | None
    rows_with_split: Callable[[], Iterator[tuple[SplitName, Row]]]

    def __str__(self) -> str:
        held_out = [name for name in self.rows if name != "train"]
        share = f"{100 * HELD_OUT_SHARE:.0f} % of the text" + " each" * (len(held_out) > 1)
        if self.articles is None:
            return f"the last {share} (it has fewer than {FEWEST_ARTICLES} articles)"
        counts = " and ".join(str(self.articles[name]) for name in held_out)
        return f"about {share}, {counts} of {sum(self.articles.values())} articles"


def choose_held_out(rows: Iterable[Row], missing: list[SplitName]) -> HeldOutChoice:
    """Read a text, and choose the part of it for each missing split: 5 % of the bytes.

    Articles are ordered by the SHA-256 of their text, so neither their order nor a copy under
    another name changes the choice; the first ones go to the held-out splits. With fewer than 20
    articles, the text is cut by position (see `split_rows`).

    Args:
        rows: The training rows, marked where an article begins.
        missing: The splits to make, in the order in which they are filled.
    """
    sizes, hashes = array("Q"), array("Q")  # 16 bytes an article, of which there may be millions
    running = hashlib.sha256()
    longest_line = 0
    for row in rows:
        if row.begins and sizes:
            hashes.append(int.from_bytes(running.digest()[:8], "big"))
            running = hashlib.sha256()
        if row.begins or not sizes:
            sizes.append(0)
        encoded = row.text.encode()
        running.update(encoded)
        sizes[-1] += len(encoded)
        for line in LINE.finditer(encoded):
            longest_line = max(longest_line, line.end() - line.start())
    hashes.append(int.from_bytes(running.digest()[:8], "big"))
    held_out = None if len(sizes) < FEWEST_ARTICLES else _choose(sizes, hashes, missing)
    return HeldOutChoice(len(sizes), held_out, sum(sizes), longest_line)


def split_rows(
    rows: Rows, missing: list[SplitName], choice: HeldOutChoice | None = None
) -> Splitting:
    """Hold the missing splits out of the training rows.

    They are whole articles or, if these are few, the end of the text, cut at a line end, between
    words if a line is longer than a split, or between characters if a word is.

    Args:
        rows: The training rows, marked where an article begins.
        missing: The splits to make, in the order in which they are filled.
        choice: The result of `choose_held_out` for the same rows; null computes it.

    Returns:
        The rows of the training split and of the missing ones.
    """
    found = choice or choose_held_out(rows, missing)
    names: list[SplitName] = ["train", *missing]
    articles: dict[SplitName, int] | None = None
    rows_with_split = partial(_by_position, rows, found, names)
    if found.held_out is not None:
        owners = {at: name for name in missing for at in found.held_out[name]}
        counts = {name: len(found.held_out[name]) for name in missing}
        articles = {"train": found.articles - len(owners), **counts}
        rows_with_split = partial(_by_article, rows, owners)

    def only(name: SplitName) -> Rows:
        identity = f"{rows.identity} split {SPLITTING_VERSION} {missing} {name}"
        return Rows(
            lambda: (row for of, row in rows_with_split() if of == name), rows.files, identity
        )

    return Splitting({name: only(name) for name in names}, articles, rows_with_split)


def _choose(
    sizes: "array[int]", hashes: "array[int]", missing: list[SplitName]
) -> dict[str, list[int]]:
    """Return the articles of each held-out split, counted from 0."""
    chosen: dict[str, list[int]] = {name: [] for name in missing}
    share = HELD_OUT_SHARE * sum(sizes)
    filled: dict[SplitName, int] = dict.fromkeys(missing, 0)
    for article in sorted(range(len(sizes)), key=hashes.__getitem__):
        for name in missing:
            # one long article must not be the whole split: it would not represent the text
            if filled[name] < share and filled[name] + sizes[article] <= 1.5 * share:
                chosen[name].append(article)
                filled[name] += sizes[article]
                break
    if any(size == 0 for size in filled.values()):  # every article is longer than a share
        shortest = sorted(range(len(sizes)), key=sizes.__getitem__)
        owners = {article: name for name in missing for article in chosen[name]}
        owners |= dict(zip(shortest, missing, strict=False))
        chosen = {name: [at for at, of in owners.items() if of == name] for name in missing}
    return chosen


def _by_article(rows: Rows, owners: dict[int, SplitName]) -> Iterator[tuple[SplitName, Row]]:
    article = -1
    for row in rows:
        article += row.begins
        yield owners.get(max(article, 0), "train"), row


def _by_position(
    rows: Rows, choice: HeldOutChoice, names: list[SplitName]
) -> Iterator[tuple[SplitName, Row]]:
    """Yield the lines or words of each split: the training text, then the held-out ends."""
    share = int(HELD_OUT_SHARE * choice.bytes)
    # any span as long as the longest line has a line's beginning; for a word's, only a part of a
    # share is searched, so that each split gets some text
    by_line = choice.longest_line <= share
    part_ends, reach = (AFTER_LINE, choice.bytes) if by_line else (AFTER_WORD, 3 * share // 4)
    edges = [choice.bytes - share * left for left in range(len(names) - 1, 0, -1)]
    position, begun = 0, set[SplitName]()
    for row in rows:
        size = len(row.text) if row.text.isascii() else len(row.text.encode())
        cuts = [_cut(row.text, size, edge - position, part_ends, reach) for edge in edges]
        position += size
        start = 0
        for name, stop in zip(names, [*cuts, len(row.text)], strict=True):
            if start < stop:
                text = row.text[start:stop]
                yield name, Row(text, begins=name not in begun or (row.begins and start == 0))
                begun.add(name)
                start = stop


def _cut(text: str, size: int, edge: int, part_ends: re.Pattern[str], reach: int) -> int:
    """Return the index of the first line or word that begins at a byte or after it.

    Within a word that is longer than the reach, it is the index of the byte itself.

    Args:
        text: The text.
        size: Its length in bytes.
        edge: The byte.
        part_ends: Matches the end of a line or word; its group is where the next one begins.
        reach: How many bytes after the edge are searched.
    """
    if edge <= 0:
        return 0
    if edge >= size:
        return len(text)
    place, end = edge, min(edge + reach, size)
    if size > len(text):
        encoded = text.encode()
        place, end = (len(encoded[:byte].decode("utf-8", "ignore")) for byte in (edge, end))
    found = part_ends.search(text, max(place - 1, 0), end)
    if found:
        return found.start(1)
    return place if end < len(text) else len(text)
