"""A validation and a test split for a source that has none."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from gpt2_lightning.data.rows import Row, Rows, SplitName

HELD_OUT_SHARE = 0.05  # of the bytes, for each split that is made
FEWEST_ARTICLES = 20  # below this, articles are too few to choose from
SPLITTING_VERSION = 3
LINE = re.compile(rb"[^\n]*\n|[^\n]+")
AFTER_LINE = re.compile(r"\n()")
AFTER_WORD = re.compile(r"\S()\s")


@dataclass(frozen=True)
class Splitting:
    """How a source's only rows were shared out.

    Attributes:
        rows: The marked rows of every split.
        articles: How many articles of the source went to each split; null where the text was cut
            by position instead.
    """

    rows: dict[SplitName, Rows]
    articles: dict[SplitName, int] | None

    def __str__(self) -> str:
        held_out = [name for name in self.rows if name != "train"]
        share = f"{100 * HELD_OUT_SHARE:.0f} % of the text" + " each" * (len(held_out) > 1)
        if self.articles is None:
            return f"the last {share} (it has fewer than {FEWEST_ARTICLES} articles)"
        counts = " and ".join(str(self.articles[name]) for name in held_out)
        return f"about {share}, {counts} of {sum(self.articles.values())} articles"


def split_rows(rows: Rows, missing: list[SplitName]) -> Splitting:
    """Take the missing splits, each 5 % of the bytes, out of the training rows.

    Articles are ordered by the SHA-256 of their text, so neither their order nor a copy under
    another name changes the choice; the first ones go to the held-out splits. With fewer than 20
    articles, the held-out splits are the text's end, cut where a line ends, or between words if
    a line is longer than a split, or between characters if a word is.

    Args:
        rows: The training rows, marked where an article begins.
        missing: The splits to make, in the order in which they are taken.

    Returns:
        The rows of the training split and of the missing ones.
    """
    sizes: list[int] = []
    hashes: list[bytes] = []
    running = hashlib.sha256()
    longest_line = 0  # bytes
    for row in rows:
        if row.begins and sizes:
            hashes.append(running.digest())
            running = hashlib.sha256()
        if row.begins or not sizes:
            sizes.append(0)
        encoded = row.text.encode()
        running.update(encoded)
        sizes[-1] += len(encoded)
        for line in LINE.finditer(encoded):
            longest_line = max(longest_line, line.end() - line.start())
    hashes.append(running.digest())
    names: list[SplitName] = ["train", *missing]
    identity = f"{rows.identity} split {SPLITTING_VERSION} {missing}"
    if len(sizes) >= FEWEST_ARTICLES:
        owners = _owners(sizes, hashes, missing)
        by_split = {
            name: Rows(partial(_of_articles, rows, owners, name), rows.files, f"{identity} {name}")
            for name in names
        }
        return Splitting(by_split, {name: owners.count(name) for name in names})
    edges = _edges(sum(sizes), names)
    # in a stretch as long as the longest line, a line begins
    share = int(HELD_OUT_SHARE * sum(sizes))
    # not all of a share is searched for a word's end, so that each split gets some of it
    ends = (AFTER_LINE, sum(sizes)) if longest_line <= share else (AFTER_WORD, 3 * share // 4)
    by_split = {
        name: Rows(
            partial(_of_positions, rows, *ends, *edges[name]), rows.files, f"{identity} {name}"
        )
        for name in names
    }
    return Splitting(by_split, None)


def _owners(sizes: list[int], hashes: list[bytes], missing: list[SplitName]) -> list[SplitName]:
    """Give every article to a split."""
    owners: list[SplitName] = ["train"] * len(sizes)
    share = HELD_OUT_SHARE * sum(sizes)
    filled: dict[SplitName, int] = dict.fromkeys(missing, 0)
    for article in sorted(range(len(sizes)), key=hashes.__getitem__):
        for name in missing:
            # One long article must not become the whole split: it would say little of the rest.
            if filled[name] < share and filled[name] + sizes[article] <= 1.5 * share:
                owners[article] = name
                filled[name] += sizes[article]
                break
    if any(size == 0 for size in filled.values()):  # every article is longer than a share
        for name, article in zip(
            missing, sorted(range(len(sizes)), key=sizes.__getitem__), strict=False
        ):
            owners[article] = name
    return owners


def _edges(total: int, names: list[SplitName]) -> dict[SplitName, tuple[int, int]]:
    """Return first and last byte of each split: the training text, then the held-out ends."""
    held_out = int(HELD_OUT_SHARE * total)
    begin = total - held_out * (len(names) - 1)
    edges = {names[0]: (0, begin)}
    for name in names[1:]:
        edges[name] = (begin, begin + held_out)
        begin += held_out
    edges[names[-1]] = (edges[names[-1]][0], total + 1)
    return edges


def _of_articles(rows: Rows, owners: list[SplitName], name: SplitName) -> Iterator[Row]:
    article = -1
    for row in rows:
        article += row.begins
        if owners[max(article, 0)] == name:
            yield row


def _of_positions(
    rows: Rows, part_ends: re.Pattern[str], reach: int, begin: int, end: int
) -> Iterator[Row]:
    """Yield the lines or words that begin at a byte from ``begin`` to before ``end``."""
    position, first = 0, True
    for row in rows:
        size = len(row.text) if row.text.isascii() else len(row.text.encode())
        start, stop = (
            _cut(row.text, size, edge - position, part_ends, reach) for edge in (begin, end)
        )
        position += size
        if start < stop:
            yield Row(row.text[start:stop], begins=first or (row.begins and start == 0))
            first = False


def _cut(text: str, size: int, edge: int, part_ends: re.Pattern[str], reach: int) -> int:
    """Return the place of the first line or word that begins at a byte or after it.

    Within a word that is longer than the reach, it is the place of the byte itself.

    Args:
        text: The text.
        size: Its length in bytes.
        edge: The byte.
        part_ends: What ends a line or word; its group stands where the next one begins.
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
