"""A split as an evaluation reads it: joined to one text, or article by article; and its counts.

WikiText as lm-evaluation-harness reads it: articles detokenised, words counted by its rule.

The rules are the harness' own, so that its figures can be compared with: they are applied to a
whole article, in this order, and lose text in places (``N`` becomes 1; a pair of apostrophes far
apart is taken for quotation marks).

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
from gpt2_lightning.data.token_store import TokenStore, store_name, write_token_store
from gpt2_lightning.data.token_text import WITHOUT_SPACES
from gpt2_lightning.data.tokenizer import tokenizer_digest
from gpt2_lightning.errors import UsageError
from gpt2_lightning.storage import whole_file

# What is looked for, and what takes its place; a pattern where the rule is one.
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


def detokenize_article(article: str) -> str:
    """Undo WikiText's tokenisation of one whole article, by the harness' rules."""
    for wanted, instead in RULES:
        if isinstance(wanted, str):
            article = article.replace(wanted, instead)
        else:
            article = wanted.sub(instead, article)
    return article


READING_VERSION = 3  # of how rows are joined and articles detokenised

COUNTS = "counts.npz"  # of a text's units, beside its tokens

JOINERS: dict[JoinerName, str] = {"newlines": "\n\n", "nothing": ""}


@dataclass(frozen=True)
class ScoredText:
    """A split's ids and what its original text holds, unit by unit.

    Attributes:
        ids: All ids, with an end-of-text before each unit, shape ``(ids,)``.
        starts: First id of every unit, shape ``(units,)``.
        tokens: Tokens of every unit, shape ``(units,)``.
        reading: How the text was read, in words.
        counts: Of the original text.
        lost: What the tokens do not give back; None where that is not known.
        wikitext: Whether the text is in WikiText's manner.
    """

    ids: npt.NDArray[np.unsignedinteger[Any]]
    starts: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    reading: str
    counts: "TextCounts"
    lost: list[str] | None
    wikitext: bool = False


@dataclass(frozen=True)
class TextCounts:
    r"""What an original text holds, unit by unit.

    Attributes:
        sha256: Of its UTF-8 bytes, in hexadecimal.
        words: Words by ``str.split``, shape ``(units,)``.
        harness_words: Words by lm-evaluation-harness' rule: the pieces of
            ``re.split(r"\s+", unit)``, an empty one at either end included; shape ``(units,)``.
        bytes: UTF-8 bytes, shape ``(units,)``.
        without_spaces: Whether most of it is of scripts without spaces between words, such as
            Chinese and Thai: its words say nothing then.
    """

    sha256: str
    words: npt.NDArray[np.int64]
    harness_words: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]
    without_spaces: bool = False


class _Counter:
    """Counts a text as it streams by, as one unit, or article by article."""

    def __init__(self, *, by_article: bool) -> None:
        self.by_article = by_article
        self._digest = hashlib.sha256()
        self._words: list[int] = []
        self._harness_words: list[int] = []
        self._bytes: list[int] = []
        self._characters = self._without_spaces = 0

    def watch(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Yield rows as they are."""
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
        """Count the empty piece after a last white space, or the one that an empty unit is."""
        if self._words:
            self._harness_words[-1] += int(last[-1:].isspace() or self._bytes[-1] == 0)

    @property
    def counts(self) -> TextCounts:
        """The counts.

        Raises:
            UsageError: If there was nothing to count.
        """
        if not any(self._bytes):
            raise UsageError(
                "--split: there is no text in it. Choose another, or look at the source."
            )
        return TextCounts(
            self._digest.hexdigest(),
            np.asarray(self._words),
            np.asarray(self._harness_words),
            np.asarray(self._bytes),
            2 * self._without_spaces >= max(self._characters, 1),
        )


def count_text(rows: Rows, *, by_article: bool, store: Path | None = None) -> TextCounts:
    """Count a text as one unit, or article by article.

    Args:
        rows: The text.
        by_article: Whether articles are counted one by one.
        store: A token store of the same rows, in which the counts are kept.

    Raises:
        UsageError: If there is nothing to count.
    """
    if store and (kept := _kept_counts(store)):
        return kept
    counter = _Counter(by_article=by_article)
    for _ in counter.watch(rows):
        pass
    if store:
        _keep_counts(counter.counts, store)
    return counter.counts


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
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):  # not there, or damaged
        return None


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
        joiner: What stands between rows. Null takes two newlines for WikiText, whose rows are
            joined so in the literature; elsewhere lines follow each other as in their file, and
            two newlines stand between documents.
        cleaner: What is done to each row.
        tokenizer: The model's.
        cache: Where the tokens are kept.

    Raises:
        UsageError: If there is no text, or none is left by the cleaner.
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
            # the Hub's copy of WikiText, from which the figures are, has its blank rows empty
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

    asked = ["joined", joiner]
    return _tokenized(rows, asked, read, reading, False, cleaner, tokenizer, cache)


def _joiner(joiner: JoinerName | None, wikitext: bool) -> JoinerName | None:
    return joiner or ("newlines" if wikitext else None)


def read_articles(
    rows: Rows, *, cleaner: Cleaner, tokenizer: PreTrainedTokenizerBase, cache: Path
) -> ScoredText:
    """Read a split article by article.

    Articles of WikiText are detokenised by lm-evaluation-harness' rules, unless a cleaner is asked
    for; documents of another text are as they are.

    Args:
        rows: The split, articles marked.
        cleaner: What is done to each row.
        tokenizer: The model's.
        cache: Where the tokens are kept.

    Raises:
        UsageError: If there is no text, or none is left by the cleaner.
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


def _cleaned(rows: Iterable[Row], cleaner: Cleaner) -> Iterator[Row]:
    """Clean rows; of those that are left empty, only the first of an article stays."""
    for row in rows:
        text = cleaner.clean(row.text)
        if text and cleaner.drops_empty:
            text += "\n"  # such a cleaner takes the row's end as well, which keeps rows apart
        if text or row.begins or not cleaner.drops_empty:
            yield Row(text, row.begins)


def _tokenized(
    rows: Rows,
    asked: list[str | None],
    read: Callable[[Iterable[Row], bool], Iterator[Row]],
    reading: Callable[[bool], str],
    by_article: bool,
    cleaner: Cleaner,
    tokenizer: PreTrainedTokenizerBase,
    cache: Path,
) -> ScoredText:
    """Count and tokenize a text in one reading, or take both from the cache.

    Args:
        rows: The text.
        asked: What decides, beside the text itself, how it is read.
        read: The rows, and whether they are WikiText's -> the rows to tokenize.
        reading: Whether the rows are WikiText's -> how they are read, in words.
        by_article: Whether articles are counted one by one.
        cleaner: What is done to each row.
        tokenizer: The model's.
        cache: Where the tokens are kept.
    """
    shaped_by: dict[str, Any] = {
        "reading": [*asked, READING_VERSION],
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
        raise UsageError(
            f"--data.cleaning {cleaner.name}: it leaves nothing of the split. Try none."
        )
    return ScoredText(
        store.ids, starts, tokens, reading(wikitext), counts, store.manifest.lost, wikitext
    )
