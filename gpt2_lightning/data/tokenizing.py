"""Rows -> a token store: cleaned, tokenized on all cores, and gone on with after a kill."""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from gpt2_lightning.data.articles import WORD_END, Row, count_words
from gpt2_lightning.data.cleaning import MARKS, Cleaner
from gpt2_lightning.data.encoding import Encoder, Ids
from gpt2_lightning.data.token_store import Manifest
from gpt2_lightning.data.tokenizer import cuts_at_spaces
from gpt2_lightning.storage import resumable_folder, sweep, write_text
from gpt2_lightning.untrusted import read_json

CHARACTERS_PER_PIECE = 1 << 16

CHARACTERS_PER_BATCH = 1 << 20  # what is tokenized in one call; bounds the memory

BATCHES_AHEAD = 2  # that are read while one is tokenized

BATCHES_PER_SHARD = 16  # after which a preparation that was killed would go on

PROGRESS = "shard.json"  # in a store that is not finished: how far its last whole shard is

COUNTED = ("articles", "rows", "words", "bytes", "marks", "cleaned_bytes", "lost")

Unit = Literal["article", "row"]

Batch = list[tuple[str, bool]]  # pieces of text, each with whether a unit begins


def write_token_store(
    folder: Path,
    rows: Iterable[Row],
    *,
    cleaner: Cleaner,
    tokenizer: PreTrainedTokenizerBase,
    unit: Unit,
    shaped_by: dict[str, Any],
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Clean and tokenize rows and write their ids.

    With unit ``article`` the ids begin with an end-of-text, and one follows each article. With
    unit ``row`` each row is a unit without an end-of-text; blank ones are dropped. Memory does not
    grow with the text. While a thread tokenizes, on all cores, the next rows are read and cleaned.
    A process that is killed leaves what it has written, and the next one goes on after the last
    whole shard: some 16 MB of text, or more where a single line is longer.

    Args:
        folder: The store to write; an existing one is kept.
        rows: The rows, marked where an article begins; the same ones each time.
        cleaner: Cleans each row.
        tokenizer: Turns text into ids.
        unit: What an entry of ``starts`` marks.
        shaped_by: The store's origin, for the manifest.
        advance: Called with the number of further UTF-8 bytes that were read.
    """
    with resumable_folder(folder) as writing:
        if writing is None:
            return
        progress = writing / PROGRESS
        done = _last_shard(progress)
        pieces = _Pieces(rows, done, cleaner, unit, advance, cuts=cuts_at_spaces(tokenizer))
        with _Writer(writing, done, unit, tokenizer) as writer:
            batches = 0
            for batch, place, ids in _encoded(pieces, Encoder(tokenizer, done.lost, done.examined)):
                for (_, begins), encoded in zip(batch, ids, strict=True):
                    writer.write(encoded, begins=begins)
                batches += 1
                if place is not None and batches >= BATCHES_PER_SHARD:
                    write_text(progress, json.dumps(asdict(writer.shard(place))) + "\n")
                    batches = 0
            writer.end()
            manifest = Manifest(
                tokens=writer.tokens,
                units=writer.units,
                dtype=writer.dtype.name,
                shaped_by=shaped_by,
                **{name: getattr(pieces.read, name) for name in COUNTED},
            )
        (writing / "manifest.json").write_text(
            json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8"
        )
        progress.unlink(missing_ok=True)
        sweep(writing)  # a killed process may have left half of one


@dataclass
class _Shard:
    """How far a store is written: what was read, what of it is held back, and what is on disk."""

    rows: int = 0
    articles: int = 0
    words: int = 0
    bytes: int = 0
    marks: int = 0
    cleaned_bytes: int = 0
    lost: list[str] = field(default_factory=list)
    examined: int = 0  # pieces of which something is lost
    held: str | None = None  # cleaned text that was read and is not tokenized
    begins: bool = True  # whether a unit begins with it
    tokens: int = 0
    units: int = 0


def _last_shard(progress: Path) -> _Shard:
    """Return how far a killed process came; the beginning, where that is not known."""
    with suppress(OSError, ValueError, TypeError):  # none, damaged, or of another version
        return _Shard(**read_json(progress))
    return _Shard()


class _Writer:
    """The ids and starts of a store, appended after its last whole shard."""

    def __init__(
        self, folder: Path, done: _Shard, unit: Unit, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.dtype = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)
        self.tokens, self.units = done.tokens, done.units
        closing = [tokenizer.eos_token_id] if unit == "article" else []
        self._closing = np.array(closing, np.uint32)
        self._ids = _open_at(folder / "ids.bin", done.tokens * self.dtype.itemsize)
        self._starts = _open_at(folder / "starts.bin", done.units * 8)
        if not done.tokens:
            self._put(self._closing)

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *error: object) -> None:
        self._ids.close()
        self._starts.close()

    def write(self, ids: Ids, *, begins: bool) -> None:
        """Add the ids of a piece of text."""
        if begins:
            if self.units:
                self._put(self._closing)
            self._mark()
            self.units += 1
        self._put(ids)

    def end(self) -> None:
        """Close the last unit."""
        if self.units:
            self._put(self._closing)
        self._mark()

    def shard(self, place: _Shard) -> _Shard:
        """Put on the disk what was written, and return how far that is."""
        for stream in (self._ids, self._starts):
            stream.flush()
            os.fsync(stream.fileno())
        return replace(place, tokens=self.tokens, units=self.units)

    def _put(self, ids: Ids) -> None:
        self._ids.write(ids.astype(self.dtype).tobytes())
        self.tokens += len(ids)

    def _mark(self) -> None:
        self._starts.write(np.int64(self.tokens).tobytes())


def _open_at(file: Path, size: int) -> BinaryIO:
    """Open a file to be written on from some size."""
    stream = file.open("r+b" if size else "wb")
    stream.truncate(size)
    stream.seek(size)
    return stream


class _Pieces:
    """Cleaned text in pieces that end where a token ends, each with whether a unit begins.

    Attributes:
        read: What was read so far.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        done: _Shard,
        cleaner: Cleaner,
        unit: Unit,
        advance: Callable[[int], None] = lambda count: None,
        *,
        cuts: bool,
    ) -> None:
        self.read = replace(done, lost=list(done.lost))
        self._rows, self._cleaner, self._unit, self._cuts = rows, cleaner, unit, cuts
        self._advance = advance
        self._parts = [] if done.held is None else [done.held]
        self._length = len(done.held or "")
        self._whole, self._start = "", 0  # a text that is being cut
        self._begins = done.begins

    def place(self) -> _Shard | None:
        """Return how far the text is read; None within a line too long to be held back."""
        if self._length + len(self._whole) - self._start > CHARACTERS_PER_BATCH:
            return None
        parts = [self._whole[self._start :]] if self._whole else self._parts
        held = "".join(parts) if parts else None
        return replace(self.read, held=held, begins=self._begins, lost=list(self.read.lost))

    def _watched(self) -> Iterator[Row]:
        """Yield the rows that were not read yet, and count them."""
        rows, reported = iter(self._rows), 0
        deque(islice(rows, self.read.rows), maxlen=0)
        for row in rows:
            size = len(row.text.encode())
            self.read.rows += 1
            self.read.articles += row.begins
            self.read.words += count_words(row.text)
            self.read.bytes += size
            self.read.marks += "@" in row.text and MARKS.search(row.text) is not None
            if self.read.bytes - reported >= 1 << 16:
                self._advance(self.read.bytes - reported)
                reported = self.read.bytes
            yield row
        self._advance(self.read.bytes - reported)

    def __iter__(self) -> Iterator[tuple[str, bool]]:
        for piece in self._each():
            self.read.cleaned_bytes += len(piece[0].encode())
            yield piece

    def _each(self) -> Iterator[tuple[str, bool]]:
        for row in self._watched():
            text = self._cleaner.clean(row.text)
            if self._unit == "row":
                if text.strip():
                    yield text, True
                continue
            kept = bool(text) or not self._cleaner.drops_empty
            if kept and self._cleaner.drops_empty:
                text += "\n"  # the cleaner removed the row's end, which separates rows
            before = self._take() if row.begins else None
            if kept:
                self._parts.append(text)
                self._length += len(text)
            if before is not None:
                yield before
            if self._cuts and self._length >= CHARACTERS_PER_PIECE:
                yield from self._cut()
        if (last := self._take()) is not None:
            yield last

    def _take(self) -> tuple[str, bool] | None:
        """Return what is held, if anything is; what follows begins a unit."""
        found = ("".join(self._parts), self._begins) if self._parts else None
        self._parts, self._length, self._begins = [], 0, True
        return found

    def _cut(self) -> Iterator[tuple[str, bool]]:
        """Yield what is held up to the last place for a cut."""
        self._whole, self._start = "".join(self._parts), 0
        self._parts, self._length = [], 0
        while cut := _last_cut(self._whole, self._start, self._start + CHARACTERS_PER_PIECE):
            piece = self._whole[self._start : cut], self._begins
            self._start, self._begins = cut, False
            yield piece
            if len(self._whole) - self._start < CHARACTERS_PER_PIECE:
                break
        self._parts = [self._whole[self._start :]]
        self._length = len(self._parts[0])
        self._whole, self._start = "", 0


def _batches(pieces: _Pieces) -> Iterator[tuple[Batch, _Shard | None]]:
    """Yield pieces that are tokenized in one call, and how far the text is read then."""
    batch: Batch = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece[0])
        if characters >= CHARACTERS_PER_BATCH:
            yield batch, pieces.place()
            batch, characters = [], 0
    if batch:
        yield batch, None


def _encoded(pieces: _Pieces, encoder: Encoder) -> Iterator[tuple[Batch, _Shard | None, list[Ids]]]:
    """Yield batches with their ids; the next one is read while a thread tokenizes."""

    def encode(batch: Batch) -> tuple[list[Ids], list[str], int]:
        return encoder([text for text, _ in batch]), list(encoder.lost), encoder.examined

    waiting: deque[tuple[Batch, _Shard | None, Future[tuple[list[Ids], list[str], int]]]] = deque()

    def first() -> tuple[Batch, _Shard | None, list[Ids]]:
        batch, place, future = waiting.popleft()
        ids, lost, examined = future.result()
        pieces.read.lost = lost
        return batch, place and replace(place, lost=lost, examined=examined), ids

    with ThreadPoolExecutor(max_workers=1) as thread:
        for batch, place in _batches(pieces):
            waiting.append((batch, place, thread.submit(encode, batch)))
            if len(waiting) > BATCHES_AHEAD:
                yield first()
        while waiting:
            yield first()


def _last_cut(text: str, start: int, end: int) -> int:
    """Return the last index before ``end`` at which a space follows another character.

    If there is none after ``start``, the next such index after ``end``; 0 if there is none at all.
    """
    for place in range(min(end, len(text) - 1), start, -1):
        if WORD_END.match(text, place - 1):
            return place
    found = WORD_END.search(text, end)
    return found.end() if found else 0
