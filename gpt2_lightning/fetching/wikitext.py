r"""WikiText-2 as it was published: its rows, and the hashes of its raw text.

Merity et al., "Pointer Sentinel Mixture Models", https://arxiv.org/abs/1609.07843. The hashes are
of wiki.{train,valid,test}.raw; a row of the Hub's copy is a line there, its blank ones ``" \n"``.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from gpt2_lightning.data.articles import as_articles
from gpt2_lightning.data.rows import Rows, SplitName

ROWS: dict[SplitName, int] = {"train": 36718, "validation": 3760, "test": 4358}
RAW_SHA256: dict[SplitName, str] = {
    "train": "6707892fa3788b5ab9ed78ab5ff37d9fe825f6011a2ad4fcd6a6d467f0e7da57",
    "validation": "4cd0f6876d07a413aa911261ff6d363c72d757d47f0fdd6015702014c89cb9c7",
    "test": "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
}
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
