"""Rows of text, and the splits they come in."""

import hashlib
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

SplitName = Literal["train", "validation", "test"]
JoinerName = Literal["newlines", "nothing"]  # what may stand between rows, joined to one text
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


CHARACTERS_PER_STRETCH = 1 << 16  # of a long text; bounds what its words need in memory
WORD_END = re.compile(r"\S(?=\s)")
SHOWN = 3  # names in the line that says what is which split

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """One row of text, and whether a document begins with it."""

    text: str
    begins: bool


@dataclass(frozen=True)
class Rows:
    """The rows of one split: read from the start at each iteration, never held in memory.

    Attributes:
        read: Yields the rows in order.
        files: The files the rows are read from; their content identifies the split.
        identity: Whatever else shapes the rows (a column's name, a version).
    """

    read: Callable[[], Iterator[Row]]
    files: tuple[Path, ...] = ()
    identity: str = ""

    def __iter__(self) -> Iterator[Row]:
        return self.read()

    def digest(self) -> str:
        """Return the SHA-256 of the files' content and the identity, in hexadecimal."""
        total = hashlib.sha256(self.identity.encode())
        for file in self.files:
            with file.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
        return total.hexdigest()


def stretches(text: str, characters: int = CHARACTERS_PER_STRETCH) -> Iterator[str]:
    """Cut a long text before white space, so that no word is parted.

    Args:
        text: The text; as a rule it is short, and comes as it is.
        characters: In each stretch but the last, at least; a word that is longer stays whole.

    Yields:
        The stretches; joined they are the text.
    """
    start = 0
    while len(text) - start > characters:
        end = WORD_END.search(text, start + characters - 1)
        if end is None:
            break
        yield text[start : end.end()]
        start = end.end()
    yield text[start:] if start else text


def say_splits(
    source: str | Path,
    splits: dict[SplitName, str],
    left_out: dict[str, list[str]],
    what: str = "file",
) -> None:
    """Say in one line what of a source is which split, and what is left out.

    Args:
        source: Its name.
        splits: What each split consists of, in words.
        left_out: Names of what is not read, by the reason.
        what: What they are names of.
    """
    order: tuple[SplitName, ...] = ("train", "validation", "test")
    parts = [f"{name}: {splits[name]}" for name in order if name in splits]
    parts += [
        f"left out, {why}: {counted(sorted(names), what)}"
        for why, names in sorted(left_out.items())
    ]
    log.info("%s: %s.", source, "; ".join(parts))


def counted(names: list[str], what: str) -> str:
    """Return a name, or how many there are with the first of them."""
    if len(names) == 1:
        return names[0]
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"{len(names):,} {what}s ({shown})"
