"""Named, versioned cleaners of rows: none, detokenize, tutorial."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

CleaningName = Literal["none", "detokenize", "tutorial"]


@dataclass(frozen=True)
class Cleaner:
    """What is done to each row.

    Attributes:
        name: As the flag has it.
        version: Raised when the output changes, so that stored tokens are not used again.
        clean: The cleaning, a pure function of one row.
        lossless: Whether nothing of the text is lost, so that bits per byte of the original text
            say something.
        drops_empty: Whether rows that are empty afterwards are left out.
    """

    name: CleaningName
    version: int
    clean: Callable[[str], str]
    lossless: bool
    drops_empty: bool


def get_cleaner(name: CleaningName) -> Cleaner:
    """Return a cleaner by its name."""
    return CLEANERS[name]


NOT_WORDS = re.compile(r"[^\w\s\u4e00-\u9fff]+")


def tutorial(row: str) -> str:
    """Put a space for all that is neither word, white space nor Chinese, as the tutorial does."""
    return NOT_WORDS.sub(" ", row).strip()


# WikiText marks what it split inside numbers and compounds.
MARKS = re.compile(r"(?:^| )@([-,.])@(?: |$)", re.MULTILINE)

HEADING = re.compile(r"(=(?: =)*) (.+) \1")

BEFORE = re.compile(r" +(?=(?:[,.;:!?)\]}%]|\.\.\.)(?:[ ,.;:!?)\]}\"']|$))")

AFTER = re.compile(r"(?<=[(\[{$£€]) +")

# it 's, they 're, do n't, players ' ; English contractions as the Penn treebank splits them
CONTRACTION = re.compile(r" (?=(?:'(?:s|S|re|ve|ll|d|m)|n't)(?:[ ,.;:!?)\]}\"]|$))")

QUOTED = re.compile(r'(?<![^ (\[{–—])" ([^"]*[^" ]) "(?![^ ,.;:!?)\]}–—\'])')

SINGLE_QUOTED = re.compile(r"(?<![^ (\[{\"])' ([^']*[^' ]) '(?![^ ,.;:!?)\]}\"])")


def detokenize(row: str) -> str:
    """Undo WikiText's tokenisation, losing nothing but its marks and the spaces it put in.

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
