"""Named, versioned cleaners of rows: none, detokenize, tutorial."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

CleaningName = Literal["none", "detokenize", "tutorial"]

NOT_WORDS = re.compile(r"[^\w\s\u4e00-\u9fff]+")

# WikiText's marks where it has split numbers and compounds
MARKS = re.compile(r"(?:^| )@([-,.])@(?: |$)", re.MULTILINE)
HEADING = re.compile(r"(=(?: =)*) (.+) \1")
BEFORE = re.compile(r" +(?=(?:[,.;:!?)\]}%]|\.\.\.)(?:[ ,.;:!?)\]}\"']|$))")
AFTER = re.compile(r"(?<=[(\[{$£€]) +")

# it 's, they 're, do n't, players ' ; English contractions as the Penn treebank splits them
CONTRACTION = re.compile(r" (?=(?:'(?:s|S|re|ve|ll|d|m)|n't)(?:[ ,.;:!?)\]}\"]|$))")
QUOTED = re.compile(r'(?<![^ (\[{–—])" ([^"]*[^" ]) "(?![^ ,.;:!?)\]}–—\'])')
SINGLE_QUOTED = re.compile(r"(?<![^ (\[{\"])' ([^']*[^' ]) '(?![^ ,.;:!?)\]}\"])")


@dataclass(frozen=True)
class Cleaner:
    """A function that cleans each row.

    Attributes:
        name: Value of ``--data.cleaning``.
        version: Raised when the output changes, so that stored tokens are not used again.
        clean: The cleaning, a pure function of one row.
        lossless: Whether no text is lost, so that bits per byte of the original text are defined.
        drops_empty: Whether rows that are empty afterwards are dropped.
    """

    name: CleaningName
    version: int
    clean: Callable[[str], str]
    lossless: bool
    drops_empty: bool


def get_cleaner(name: CleaningName) -> Cleaner:
    """Return a cleaner by its name."""
    return CLEANERS[name]


def tutorial(row: str) -> str:
    """Replace all but words, white space and Chinese by spaces, as the tutorial does."""
    return NOT_WORDS.sub(" ", row).strip()


def detokenize(row: str) -> str:
    """Undo WikiText's tokenisation; only its marks and the spaces that it inserted are lost.

    Quotation marks are paired row by row; one without a partner stays as it is.
    """
    text = row.rstrip(" \n")
    if not text.strip(" "):
        return "\n" if row.endswith("\n") else ""
    end = "\n" if row.endswith("\n") else ""
    text = text.strip(" ")
    if heading := HEADING.fullmatch(text):
        marks = heading[1].replace(" ", "")
        return f"{marks} {_join(heading[2])} {marks}{end}"
    return _join(text) + end


def _join(text: str) -> str:
    # twice: in "a @-@ b @-@ c" the marks share no space, in "1 @,@ 2" neither, but "@-@ @-@" does
    text = MARKS.sub(r"\1", MARKS.sub(r"\1", text))
    text = QUOTED.sub(r'"\1"', text)
    text = CONTRACTION.sub("", text)
    text = SINGLE_QUOTED.sub(r"'\1'", text)
    text = BEFORE.sub("", text)
    return AFTER.sub("", text)


CLEANERS: dict[CleaningName, Cleaner] = {
    "none": Cleaner("none", 1, lambda row: row, lossless=True, drops_empty=False),
    "detokenize": Cleaner("detokenize", 1, detokenize, lossless=True, drops_empty=False),
    "tutorial": Cleaner("tutorial", 1, tutorial, lossless=False, drops_empty=True),
}
