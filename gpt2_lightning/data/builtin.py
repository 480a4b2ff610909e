"""The built-in corpus: the language reference that CPython carries, in WikiText's manner."""

import hashlib
import re
from collections.abc import Iterator
from importlib import import_module
from typing import NamedTuple

BUILTIN_VERSION = 1

UNDERLINE = re.compile(r"([*=\-~^\"'])\1{2,}")
DEPTH = {"*": 1, "=": 2, "-": 3}  # of a heading, by its underline; others are deeper
PROSE_START = re.compile(r'[*+-]? *["\'(*A-Z]')
FEWEST_BYTES = 400  # of an article: what remains of a topic that repeats another is left out
MOST_BYTES_HELD_OUT = 9_000  # of an article, so that several make up a held-out split
HELD_OUT_SHARE = 0.055


class Paragraph(NamedTuple):
    """A paragraph's rows, or a heading's one with its depth: 1 for a title, 0 for no heading."""

    rows: list[str]
    depth: int = 0


class Article(NamedTuple):
    """A title and the rows below it."""

    title: str
    rows: list[str]

    @property
    def size(self) -> int:
        """UTF-8 bytes."""
        return sum(len(row.encode()) for row in self.rows)


def builtin_rows() -> dict[str, list[str]]:
    """Return the rows of the train, validation and test splits.

    Paragraphs most of which stood in a topic before are dropped. Whole articles are held out, by
    the hash of their title, leaving out those too long to be one among several.

    Raises:
        ValueError: If this Python was built without the reference.
    """
    articles = _articles(_topics())
    share = HELD_OUT_SHARE * sum(article.size for article in articles)
    splits: dict[str, list[Article]] = {"train": [], "validation": [], "test": []}
    filled = {"validation": 0, "test": 0}
    for article in sorted(articles, key=lambda a: hashlib.sha256(a.title.encode()).digest()):
        name = "train"
        if article.size <= MOST_BYTES_HELD_OUT:
            name = next((held for held in filled if filled[held] < share), "train")
        if name in filled:
            filled[name] += article.size
        splits[name].append(article)
    return {
        name: [row for article in sorted(chosen) for row in article.rows]
        for name, chosen in splits.items()
    }


def _topics() -> dict[str, str]:
    try:
        found: dict[str, str] = dict(import_module("pydoc_data.topics").topics)
    except ImportError:
        found = {}
    if not found:
        raise ValueError(
            "this Python carries no language reference (pydoc_data.topics). Give --data.source a "
            "file, a folder or a Hub id."
        )
    return found


def _articles(topics: dict[str, str]) -> list[Article]:
    """Turn topics into articles without repeated paragraphs."""
    seen: set[tuple[str, ...]] = set()
    articles: list[Article] = []
    # The short topics first: the long ones repeat them, and lose what they repeat.
    for name in sorted(topics, key=lambda name: (len(topics[name]), name)):
        title, rows = name, list[str]()
        for paragraph in _paragraphs(topics[name]):
            if paragraph.depth:
                (heading,) = paragraph.rows
                if paragraph.depth == 1:
                    articles.append(Article(title, rows))
                    title, rows = f"{name}: {heading}", []
                marks = " ".join("=" * paragraph.depth)
                rows += [" \n", f" {marks} {heading} {marks} \n", " \n"]
            elif not _repeats(grams := _grams(paragraph.rows), seen):
                seen |= grams
                rows += [f" {row}\n" for row in paragraph.rows]
        articles.append(Article(title, rows))
    return [article for article in articles if article.size >= FEWEST_BYTES]


def _grams(rows: list[str]) -> set[tuple[str, ...]]:
    """Return a paragraph's runs of eight words, or its words where they are fewer."""
    words = " ".join(rows).split()
    return {tuple(words[at : at + 8]) for at in range(max(1, len(words) - 7))}


def _repeats(grams: set[tuple[str, ...]], seen: set[tuple[str, ...]]) -> bool:
    return 2 * len(grams & seen) > len(grams)


def _paragraphs(text: str) -> Iterator[Paragraph]:
    """Yield a topic's headings and paragraphs, wrapped prose joined into one row."""
    for part in re.split(r"\n\s*\n", text):
        lines = [line.rstrip() for line in part.split("\n") if line.strip()]
        while len(lines) >= 2 and (under := UNDERLINE.fullmatch(lines[1])):
            yield Paragraph([lines[0].strip()], DEPTH.get(under[1], 4))
            lines = lines[2:]
        if lines and _is_prose(lines):
            yield Paragraph([" ".join(line.strip() for line in lines)])
        elif lines:
            yield Paragraph(lines)


def _is_prose(lines: list[str]) -> bool:
    indents = {len(line) - len(line.lstrip()) for line in lines[1:]}
    first = lines[0].lstrip()
    letters = sum(c.isalpha() or c.isspace() for line in lines for c in line)
    return (
        len(indents) <= 1
        and PROSE_START.match(first) is not None
        and letters > 0.85 * sum(map(len, lines))
    )
