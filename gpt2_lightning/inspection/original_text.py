r"""What a split's original text holds, counted as it streams by."""

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gpt2_lightning.data.rows import Row, stretches

NO_WORDS = 0  # in place of an article's digest


@dataclass
class OriginalText:
    r"""Counts of the rows as the source has them, WikiText's blank rows restored as ``" \n"``.

    Attributes:
        articles: Articles.
        rows: Rows.
        blank_rows: Rows of nothing but white space.
        words: Words by ``str.split``.
        harness_words: Words by lm-evaluation-harness' rule: the pieces of
            ``re.split(r"\s+", article)``, an empty one at either end included.
        characters: Unicode code points.
        bytes: UTF-8 bytes.
    """

    articles: int = 0
    rows: int = 0
    blank_rows: int = 0
    words: int = 0
    harness_words: int = 0
    characters: int = 0
    bytes: int = 0


class Reader:
    """Counts rows, and takes each article's digest, on their way to somebody else.

    Memory grows by eight bytes an article.

    Attributes:
        text: The counts.
        digests: For each article 64 bits of the BLAKE2b of its words joined with single spaces;
            0 where it has none.
    """

    def __init__(self) -> None:
        self.text = OriginalText()
        self.digests = array("Q")

    def watch(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Yield rows, articles marked, as they are."""
        text = self.text
        digest = hashlib.blake2b(digest_size=8)
        begun = 0, 0  # words and bytes before the article
        last = ""
        for row in rows:
            if row.begins or not text.rows:
                if text.rows:
                    self._close(digest, last, *begun)
                digest = hashlib.blake2b(digest_size=8)
                begun = text.words, text.bytes
                text.articles += 1
                text.harness_words += row.text[:1].isspace()
            words = 0
            for part in stretches(row.text):
                if found := part.split():
                    digest.update(" ".join([*found, ""]).encode())
                    words += len(found)
            text.rows += 1
            text.blank_rows += not words
            text.words += words
            text.harness_words += words
            text.characters += len(row.text)
            text.bytes += len(row.text.encode())
            last = row.text
            yield row
        if text.rows:
            self._close(digest, last, *begun)

    def _close(self, digest: "hashlib.blake2b", last: str, words: int, size: int) -> None:
        """End an article, before which there were so many words and bytes."""
        self.text.harness_words += last[-1:].isspace() or self.text.bytes == size
        has_words = self.text.words > words
        number = int.from_bytes(digest.digest(), "big") or 1
        self.digests.append(number if has_words else NO_WORDS)
