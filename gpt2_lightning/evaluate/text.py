"""Reads a split for an evaluation: joined to one text, or article by article; and counts it.

Articles of WikiText are detokenised, and their words counted, by lm-evaluation-harness' rules, so
that figures are comparable: they are applied to a whole article, in this order, and lose text in
places (``N`` becomes 1; two distant apostrophes are read as quotation marks).

Reference: https://github.com/EleutherAI/lm-evaluation-harness, ``lm_eval/tasks/wikitext``,
version 0.4.13.
"""

import hashlib
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from gpt2_lightning.data.articles import (
    JoinerName,
    Row,
    Rows,
    first_rows,
    has_titles,
    word_chunks,
)
from gpt2_lightning.data.cleaning import Cleaner, get_cleaner
from gpt2_lightning.data.token_store import TokenStore, store_name
from gpt2_lightning.data.token_text import WITHOUT_SPACES
from gpt2_lightning.data.tokenizer import tokenizer_digest
from gpt2_lightning.data.tokenizing import write_token_store
from gpt2_lightning.errors import UsageError
from gpt2_lightning.storage import whole_file

# pairs of a string or pattern and its replacement
RULES: tuple[tuple[str | re.Pattern[str], str], ...] = (
    ("s '", "s'"),
    (re.compile(r"/' [0-9]/"), "/'[0-9]/"),  # meant for years such as '80, it matches no text
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"),
    (re.compile(r"\(\s*([^\)]*?)\s*\)"), r"(\1)"),
    (re.compile(r"\[\s*([^\]]*?)\s*\]"), r"[\1]"),
    (re.compile(r"{\s*([^}]*?)\s*}"), r"{\1}"),
    (re.compile(r"\"\s*([^\"]*?)\s*\""), r'"\1"'),
    (re.compile(r"'\s*([^']*?)\s*'"), r"'\1'"),
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)

READING_VERSION = 3  # raised when rows are joined or articles detokenised in another way
COUNTS = "counts.npz"  # file of a text's counts, in its token store
JOINERS: dict[JoinerName, str] = {"newlines": "\n\n", "nothing": ""}


@dataclass(frozen=True)
class TextCounts:
    r"""Counts of an original text, by unit.

    Attributes:
        sha256: Of its UTF-8 bytes, in hexadecimal.
        words: Words by ``str.split``, shape ``(units,)``.
        harness_words: Words by lm-evaluation-harness' rule: the pieces of
            ``re.split(r"\s+", unit)``, an empty one at either end included; shape ``(units,)``.
        bytes: UTF-8 bytes, shape ``(units,)``.
        without_spaces: Whether most characters are of scripts without spaces between words, such
            as Chinese and Thai, so that words are not defined.
    """

    sha256: str
    words: npt.NDArray[np.int64]
    harness_words: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]
    without_spaces: bool = False


@dataclass(frozen=True)
class ScoredText:
    """A split's ids, and the counts of its original text by unit.

    Attributes:
        ids: All ids, with an end-of-text before each unit, shape ``(ids,)``.
        starts: First id of every unit, shape ``(units,)``.
        tokens: Tokens of every unit, shape ``(units,)``.
        reading: How the text was read, in words.
        counts: Of the original text.
        lost: Kinds of content that the text loses by tokenizing; None if not known.
        wikitext: Whether the text has WikiText's format.
    """

    ids: npt.NDArray[np.unsignedinteger[Any]]
    starts: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    reading: str
    counts: TextCounts
    lost: list[str] | None
    wikitext: bool = False


def read_joined(
    rows: Rows,
    *,
    joiner: JoinerName | None,
    cleaner: Cleaner,
    tokenizer: PreTrainedTokenizerBase,
    cache: Path,
) -> ScoredText:
    """Read a split as one text, its rows joined.

    Args:
        rows: The split, articles marked.
        joiner: Between rows. Null is two newlines for WikiText, as in the literature; for other
            text, lines are as in their file, with two newlines between documents.
        cleaner: Cleans each row.
        tokenizer: The model's.
        cache: Folder of the token stores.

    Raises:
        UsageError: If there is no text, or none after cleaning.
    """

    def read(rows: Iterable[Row], wikitext: bool) -> Iterator[Row]:
        between_rows = _joiner(joiner, wikitext)
        text, begins = "", True
        kept = (row for row in _cleaned(rows, cleaner) if row.text or not cleaner.drops_empty)
        for index, row in enumerate(kept):
            if index:
                between = JOINERS[between_rows] if between_rows else "\n\n" if row.begins else ""
                yield Row(text + between, begins)
                begins = False
            # in the Hub's copy of WikiText, which published figures use, blank rows are empty
            text = row.text if row.text.strip() or not wikitext else ""
        yield Row(text, begins)

    def reading(wikitext: bool) -> str:
        match _joiner(joiner, wikitext):
            case "newlines":
                return "rows joined with two newlines"
            case "nothing":
                return "rows joined with nothing"
            case None:
                return "lines as they are, two newlines between documents"

    name = ["joined", joiner]
    return _tokenized(rows, name, read, reading, False, cleaner, tokenizer, cache)


def _joiner(joiner: JoinerName | None, wikitext: bool) -> JoinerName | None:
    return joiner or ("newlines" if wikitext else None)


def read_articles(
    rows: Rows, *, cleaner: Cleaner, tokenizer: PreTrainedTokenizerBase, cache: Path
) -> ScoredText:
    """Read a split article by article.

    Articles of WikiText are detokenised by lm-evaluation-harness' rules, unless there is a cleaner;
    documents of other text are unchanged.

    Args:
        rows: The split, articles marked.
        cleaner: Cleans each row.
        tokenizer: The model's.
        cache: Folder of the token stores.

    Raises:
        UsageError: If there is no text, or none after cleaning.
    """

    def read(rows: Iterable[Row], wikitext: bool) -> Iterator[Row]:
        if not wikitext or cleaner.name != "none":
            yield from _cleaned(rows, cleaner)
            return
        held: list[str] = []
        for row in rows:
            if row.begins and held:
                yield Row(detokenize_article("".join(held)), begins=True)
                held = []
            held.append(row.text)
        yield Row(detokenize_article("".join(held)), begins=True)

    def reading(wikitext: bool) -> str:
        by_harness = wikitext and cleaner.name == "none"
        return "articles, detokenised by lm-evaluation-harness' rules" if by_harness else "articles"

    return _tokenized(rows, ["articles"], read, reading, True, cleaner, tokenizer, cache)


def detokenize_article(article: str) -> str:
    """Undo WikiText's tokenisation of one whole article, by the harness' rules."""
    for wanted, instead in RULES:
        if isinstance(wanted, str):
            article = article.replace(wanted, instead)
        else:
            article = wanted.sub(instead, article)
    return article


def _cleaned(rows: Iterable[Row], cleaner: Cleaner) -> Iterator[Row]:
    """Clean rows; of empty ones, keep only the first of an article."""
    for row in rows:
        text = cleaner.clean(row.text)
        if text and cleaner.drops_empty:
            text += "\n"  # such a cleaner removes the row's end, which separates rows
        if text or row.begins or not cleaner.drops_empty:
            yield Row(text, row.begins)


def _tokenized(
    rows: Rows,
    name: list[str | None],
    read: Callable[[Iterable[Row], bool], Iterator[Row]],
    reading: Callable[[bool], str],
    by_article: bool,
    cleaner: Cleaner,
    tokenizer: PreTrainedTokenizerBase,
    cache: Path,
) -> ScoredText:
    """Count and tokenize a text in one reading, or load both from the cache.

    Args:
        rows: The text.
        name: Identifies the way of reading, in the store's name.
        read: The rows, and whether they are WikiText's -> the rows to tokenize.
        reading: Whether the rows are WikiText's -> how they are read, in words.
        by_article: Whether articles are counted one by one.
        cleaner: Cleans each row.
        tokenizer: The model's.
        cache: Folder of the token stores.
    """
    shaped_by: dict[str, Any] = {
        "reading": [*name, READING_VERSION],
        "rows": rows.digest(),
        "cleaning": [cleaner.name, cleaner.version],
        "tokenizer": tokenizer_digest(tokenizer),
    }
    folder = cache / "tokens" / store_name(shaped_by)
    if not folder.is_dir():
        counter = _Counter(by_article=by_article)
        stream = counter.watch(rows)
        head = list(first_rows(stream))
        wikitext = has_titles(head)
        write_token_store(
            folder,
            read(chain(head, stream), wikitext),
            cleaner=get_cleaner("none"),  # the rows are cleaned
            tokenizer=tokenizer,
            unit="article",
            shaped_by=shaped_by | {"wikitext": wikitext},
        )
        _keep_counts(counter.counts, folder)
    store = TokenStore.open(folder)
    counts = count_text(rows, by_article=by_article, store=folder)
    wikitext = bool(store.manifest.shaped_by["wikitext"])
    starts = store.starts[:-1]
    tokens = np.diff(store.starts) - 1  # an end-of-text follows each
    if not tokens.any():
        raise UsageError(f"--data.cleaning {cleaner.name}: nothing of the split is left. Try none.")
    return ScoredText(
        store.ids, starts, tokens, reading(wikitext), counts, store.manifest.lost, wikitext
    )


def count_text(rows: Rows, *, by_article: bool, store: Path | None = None) -> TextCounts:
    """Count a text as one unit, or article by article.

    Args:
        rows: The text.
        by_article: Whether articles are counted one by one.
        store: A token store of the same rows, in which the counts are cached.

    Raises:
        UsageError: If there is no text.
    """
    if store and (kept := _kept_counts(store)):
        return kept
    counter = _Counter(by_article=by_article)
    for _ in counter.watch(rows):
        pass
    if store:
        _keep_counts(counter.counts, store)
    return counter.counts


class _Counter:
    """Counts a text while it is read, as one unit or article by article."""

    def __init__(self, *, by_article: bool) -> None:
        self.by_article = by_article
        self._digest = hashlib.sha256()
        self._words: list[int] = []
        self._harness_words: list[int] = []
        self._bytes: list[int] = []
        self._characters = self._without_spaces = 0

    def watch(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Count rows, and yield them unchanged."""
        last = ""
        for row in rows:
            if not self._words or (row.begins and self.by_article):
                self._end_unit(last)
                self._words.append(0)
                self._harness_words.append(int(row.text[:1].isspace()))
                self._bytes.append(0)
            encoded = row.text.encode()
            found = 0
            for part in word_chunks(row.text):
                pieces = part.split()
                found += len(pieces)
                self._characters += sum(map(len, pieces))
                if not part.isascii():
                    self._without_spaces += sum(1 for _ in WITHOUT_SPACES.finditer(part))
            self._words[-1] += found
            self._harness_words[-1] += found
            self._bytes[-1] += len(encoded)
            self._digest.update(encoded)
            last = row.text
            yield row
        self._end_unit(last)

    def _end_unit(self, last: str) -> None:
        """Count the empty piece after a final white space, or that of an empty unit."""
        if self._words:
            self._harness_words[-1] += int(last[-1:].isspace() or self._bytes[-1] == 0)

    @property
    def counts(self) -> TextCounts:
        """The counts.

        Raises:
            UsageError: If there is no text.
        """
        if not any(self._bytes):
            raise UsageError(
                "--split: there is no text in it. Choose another one, or check the source."
            )
        return TextCounts(
            self._digest.hexdigest(),
            np.asarray(self._words),
            np.asarray(self._harness_words),
            np.asarray(self._bytes),
            2 * self._without_spaces >= max(self._characters, 1),
        )


def _keep_counts(counts: TextCounts, store: Path) -> None:
    with suppress(OSError), whole_file(store / COUNTS) as stream:  # a cache may be read-only
        np.savez(stream, allow_pickle=False, **asdict(counts))


def _kept_counts(store: Path) -> TextCounts | None:
    try:
        with np.load(store / COUNTS, allow_pickle=False) as kept:
            return TextCounts(
                str(kept["sha256"]),
                kept["words"],
                kept["harness_words"],
                kept["bytes"],
                bool(kept["without_spaces"]),
            )
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):  # not cached, or damaged
        return None
