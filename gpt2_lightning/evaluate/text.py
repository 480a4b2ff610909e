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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from gpt2_lightning.data.articles import JoinerName, Row, Rows, has_titles, stretches
from gpt2_lightning.data.cleaning import Cleaner, get_cleaner
from gpt2_lightning.data.token_store import TokenStore, store_name, write_token_store
from gpt2_lightning.data.token_text import WITHOUT_SPACES
from gpt2_lightning.data.tokenizer import tokenizer_digest
from gpt2_lightning.errors import UsageError

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


READING_VERSION = 2  # of how rows are joined and articles detokenised

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
    """

    ids: npt.NDArray[np.unsignedinteger[Any]]
    starts: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    reading: str
    counts: "TextCounts"
    lost: list[str] | None


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


def count_text(rows: Rows, *, by_article: bool) -> TextCounts:
    """Count a text as one unit, or article by article.

    Raises:
        UsageError: If there is nothing to count.
    """
    digest = hashlib.sha256()
    words: list[int] = []
    harness_words: list[int] = []
    sizes: list[int] = []
    last = ""
    characters = without_spaces = 0
    for row in rows:
        if not words or (row.begins and by_article):
            if words:
                harness_words[-1] += _last_piece(last, sizes[-1])
            words.append(0)
            harness_words.append(int(row.text[:1].isspace()))
            sizes.append(0)
        encoded = row.text.encode()
        found = 0
        for part in stretches(row.text):
            pieces = part.split()
            found += len(pieces)
            characters += sum(map(len, pieces))
            without_spaces += 0 if part.isascii() else sum(1 for _ in WITHOUT_SPACES.finditer(part))
        words[-1] += found
        harness_words[-1] += found
        sizes[-1] += len(encoded)
        digest.update(encoded)
        last = row.text
    if not any(sizes):
        raise UsageError("--split: there is no text in it. Choose another, or look at the source.")
    harness_words[-1] += _last_piece(last, sizes[-1])
    return TextCounts(
        digest.hexdigest(),
        np.asarray(words),
        np.asarray(harness_words),
        np.asarray(sizes),
        2 * without_spaces >= max(characters, 1),
    )


def _last_piece(last: str, size: int) -> int:
    """Count the empty piece after a unit's last white space, or the one that an empty unit is."""
    return int(last[-1:].isspace() or size == 0)


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
    wikitext = has_titles(rows)
    joiner = joiner or ("newlines" if wikitext else None)

    def read() -> Iterator[Row]:
        text, begins = "", True
        kept = (row for row in _cleaned(rows, cleaner) if row.text or not cleaner.drops_empty)
        for index, row in enumerate(kept):
            if index:
                between = JOINERS[joiner] if joiner else "\n\n" if row.begins else ""
                yield Row(text + between, begins)
                begins = False
            # the Hub's copy of WikiText, from which the figures are, has its blank rows empty
            text = row.text if row.text.strip() or not wikitext else ""
        yield Row(text, begins)

    how = {
        "newlines": "rows joined with two newlines",
        "nothing": "rows joined with nothing",
        None: "lines as they are, two newlines between documents",
    }[joiner]
    return _tokenized(
        count_text(rows, by_article=False), read, how, rows, cleaner, tokenizer, cache
    )


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
    by_harness = has_titles(rows) and cleaner.name == "none"

    def read() -> Iterator[Row]:
        if not by_harness:
            yield from _cleaned(rows, cleaner)
            return
        held: list[str] = []
        for row in rows:
            if row.begins and held:
                yield Row(detokenize_article("".join(held)), begins=True)
                held = []
            held.append(row.text)
        yield Row(detokenize_article("".join(held)), begins=True)

    how = "articles, detokenised by lm-evaluation-harness' rules" if by_harness else "articles"
    return _tokenized(count_text(rows, by_article=True), read, how, rows, cleaner, tokenizer, cache)


def _cleaned(rows: Rows, cleaner: Cleaner) -> Iterator[Row]:
    """Clean rows; of those that are left empty, only the first of an article stays."""
    for row in rows:
        text = cleaner.clean(row.text)
        if text and cleaner.drops_empty:
            text += "\n"  # such a cleaner takes the row's end as well, which keeps rows apart
        if text or row.begins or not cleaner.drops_empty:
            yield Row(text, row.begins)


def _tokenized(
    counts: TextCounts,
    read: Callable[[], Iterator[Row]],
    how: str,
    rows: Rows,
    cleaner: Cleaner,
    tokenizer: PreTrainedTokenizerBase,
    cache: Path,
) -> ScoredText:
    shaped_by = {
        "reading": [how, READING_VERSION],
        "rows": rows.digest(),
        "cleaning": [cleaner.name, cleaner.version],
        "tokenizer": tokenizer_digest(tokenizer),
    }
    folder = cache / "tokens" / store_name(shaped_by)
    if not folder.is_dir():
        write_token_store(
            folder,
            read(),
            cleaner=get_cleaner("none"),  # the rows are cleaned
            tokenizer=tokenizer,
            unit="article",
            shaped_by=shaped_by,
        )
    store = TokenStore.open(folder)
    starts = store.starts[:-1]
    tokens = np.diff(store.starts) - 1  # an end-of-text follows each
    if not tokens.any():
        raise UsageError(
            f"--data.cleaning {cleaner.name}: it leaves nothing of the split. Try none."
        )
    return ScoredText(store.ids, starts, tokens, how, counts, store.manifest.lost)
