"""Whether a text is WikiText-2 as it was published."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from gpt2_lightning.data.articles import as_articles
from gpt2_lightning.data.rows import Rows, SplitName
from gpt2_lightning.data.wikitext import RAW_SHA256, ROWS

RAW, TOKENIZED = "wikitext-2-raw-v1", "wikitext-2-v1"  # the subsets' names on the Hub


@dataclass(frozen=True)
class SplitText:
    """A split's text.

    Attributes:
        rows: How many.
        sha256: Of the original text in UTF-8, blank rows restored, in hexadecimal.
    """

    rows: int
    sha256: str


def read_split(rows: Rows) -> SplitText:
    """Read a split to its end; its text is what its articles are made of."""
    total, count = hashlib.sha256(), 0
    for row in as_articles(rows):
        total.update(row.text.encode())
        count += 1
    return SplitText(count, total.hexdigest())


def judge(splits: Mapping[SplitName, SplitText], subset: str | None) -> tuple[str | None, bool]:
    """Compare a text with WikiText-2 as it was published.

    Args:
        splits: Its splits.
        subset: What the text is called, if it has a name.

    Returns:
        The verdict in words, None where there is nothing to compare; and whether the text is not
        what its name says.
    """
    raw = [name for name, text in splits.items() if text.sha256 == RAW_SHA256[name]]
    if raw and len(raw) == len(splits):
        return "the official WikiText-2, raw, by the SHA-256 of each split", False
    if subset == RAW:
        wrong = next(name for name in splits if name not in raw)
        return (
            f"NOT the official {RAW}: {_rows(wrong, splits[wrong])}its text is another. Its "
            "figures cannot be compared with published ones",
            True,
        )
    if subset == TOKENIZED:
        for name, text in splits.items():
            if text.rows != ROWS[name]:
                return f"NOT the official {TOKENIZED}: {_rows(name, text).rstrip('; ')}", True
        return "as many rows as the official WikiText-2, rare words as <unk>", False
    return None, False


def _rows(name: SplitName, text: SplitText) -> str:
    if text.rows == ROWS[name]:
        return f"{name} has the right {text.rows:,} rows, but "
    return f"{name} has {text.rows:,} rows of {ROWS[name]:,}; "
