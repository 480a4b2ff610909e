"""Where rows come from: the built-in corpus, a path or the Hub."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from gpt2_lightning.data.arrow import open_hub
from gpt2_lightning.data.articles import (
    SPLIT_NAMES,
    DocumentsName,
    Row,
    Rows,
    SplitName,
    log_splits,
)
from gpt2_lightning.data.files import (
    flag_of,
    locate_held_out,
    open_held_out,
    open_path,
    warn_unused,
)
from gpt2_lightning.data.readers import OTHER_DOCUMENTS, is_data
from gpt2_lightning.errors import UsageError

BUILTIN_VERSION = 1

UNDERLINE = re.compile(r"([*=\-~^\"'])\1{2,}")

DEPTH = {"*": 1, "=": 2, "-": 3}  # of a heading, by its underline; others are deeper

PROSE_START = re.compile(r'[*+-]? *["\'(*A-Z]')

FEWEST_BYTES = 400  # of an article; a topic that repeats another leaves less, which is dropped

MOST_BYTES_HELD_OUT = 9_000  # of an article, so that several make up a held-out split

HELD_OUT_SHARE = 0.055

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def open_source(
    source: str,
    *,
    subset: str | None = None,
    revision: str | None = None,
    text_column: str = "text",
    documents: DocumentsName = "file",
    validation_source: str | None = None,
    test_source: str | None = None,
) -> dict[SplitName, Rows]:
    """Find the splits of a source.

    Args:
        source: ``builtin``, the path of a file or folder, or a Hub id such as
            ``Salesforce/wikitext``.
        subset: Folder below ``source``, or configuration on the Hub.
        revision: Branch, tag or commit on the Hub.
        text_column: The column that holds the text, in parquet, jsonl and csv files.
        documents: Whether a text file, or each of its lines, is a document.
        validation_source: File, folder or pattern of the validation split, as a path or inside
            ``source``; ``none`` to hold it out of the training text, whatever the source's files
            are called.
        test_source: The same of the test split.

    Returns:
        The rows of every split that the source has.

    Raises:
        UsageError: If the source does not exist, or nothing in it can be read.
    """
    held_out: dict[SplitName, str] = {}
    given: dict[SplitName, str | None] = {"validation": validation_source, "test": test_source}
    for split, name in given.items():
        if name is not None:
            held_out[split] = locate_held_out(flag_of(split), name, source, subset)
    found = _open(source, subset, revision, text_column, documents, held_out)
    for split, name in held_out.items():
        if name != "none":
            found[split] = open_held_out(flag_of(split), name, text_column, documents)
    files = {file: file for rows in found.values() for file in rows.files}
    return {  # an archive that holds several splits is one file: hashed once
        split: replace(rows, files=tuple(files[file] for file in rows.files))
        for split, rows in found.items()
    }


def _open(
    source: str,
    subset: str | None,
    revision: str | None,
    text_column: str,
    documents: DocumentsName,
    held_out: dict[SplitName, str],
) -> dict[SplitName, Rows]:
    if source == "builtin":
        try:
            rows = builtin_rows()
        except ValueError as error:
            raise UsageError(f"--data.source builtin: {error}") from error
        for flag, value in (("subset", subset), ("revision", revision)):
            warn_unused(flag, value, "the built-in text has none")
        warn_unused("documents", documents, "the built-in text is not a file of lines")
        warn_unused("text_column", text_column, "the built-in text is no table")
        named = {SPLIT_NAMES[name]: text for name, text in rows.items()}
        kept = {name: text for name, text in named.items() if name not in held_out}
        log_splits(
            "builtin, the language reference of this Python",
            {name: f"{len(text):,} rows" for name, text in kept.items()},
            {
                f"--data.{name}_source is given": [f"its own {name} split"]
                for name in named
                if name not in kept
            },
        )
        return {name: _rows_in_memory(text) for name, text in kept.items()}
    path = Path(source).expanduser()
    if path.exists():
        warn_unused("revision", revision, f"{path} is a local path, not a source on the Hub")
        return open_path(path, subset, text_column, documents=documents, held_out=held_out)
    is_file = is_data(source) or path.suffix.lower() in OTHER_DOCUMENTS
    if HUB_ID.fullmatch(source) and source[0] not in ".-" and not is_file:
        warn_unused("documents", documents, "each row of a data set is a document")
        return open_hub(source, subset, revision, text_column, held_out)
    raise UsageError(
        f"--data.source {source}: there is no such file or folder. Give a path that exists, "
        "a Hub id such as Salesforce/wikitext, or builtin."
    )


def _rows_in_memory(texts: list[str]) -> Rows:
    identity = f"builtin {BUILTIN_VERSION} " + hashlib.sha256("".join(texts).encode()).hexdigest()
    return Rows(lambda: (Row(text, index == 0) for index, text in enumerate(texts)), (), identity)


class Paragraph(NamedTuple):
    """A paragraph's rows, of depth 0; or a heading, of depth 1 for a title, and more below."""

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
    """Return the rows of the train, validation and test splits of Python's language reference.

    Paragraphs that mostly repeat an earlier topic are dropped. Whole articles are held out, chosen
    by the hash of their title; long ones are not, so that a split has several.

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
            "this Python has no language reference (pydoc_data.topics). Give a file, a folder or "
            "a Hub id."
        )
    return found


def _articles(topics: dict[str, str]) -> list[Article]:
    """Turn topics into articles without repeated paragraphs."""
    seen: set[tuple[str, ...]] = set()
    articles: list[Article] = []
    # short topics first: the long ones repeat them, and what repeats is dropped
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
    """Return a paragraph's 8-grams of words, or all its words if they are fewer."""
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
