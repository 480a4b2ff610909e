"""Tokens on disk, memory-mapped and named by their content; and how well xz compresses the text."""

import hashlib
import json
import lzma
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from gpt2_lightning.data.articles import WORD_END, Row, word_chunks
from gpt2_lightning.data.cleaning import MARKS, Cleaner
from gpt2_lightning.data.token_text import decode_all
from gpt2_lightning.data.tokenizer import cuts_at_spaces, lost_text, save_tokenizer_files
from gpt2_lightning.errors import UsageError, reason
from gpt2_lightning.storage import whole_folder
from gpt2_lightning.untrusted import read_json

FORMAT_VERSION = 2

CHARACTERS_PER_PIECE = 1 << 16

CHARACTERS_PER_BATCH = 1 << 20  # what is tokenized in one call; bounds the memory

# A text without a space to cut at is tokenized in overlapping windows, joined at a token that both
# have, in the middle of the overlap: beyond BERT's limit of 100 characters per word.
WINDOW = 1 << 16  # characters

OVERLAP = 1 << 10

IDS_PER_PIECE = 1 << 18  # ids or units read together

MOST_EXAMINED = 1000  # pieces that lose text, to list the kinds of loss

LONGEST_FOR_XZ = 4_000_000  # bytes, for which xz needs some seconds

Unit = Literal["article", "row"]

Ids = list[int] | npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Manifest:
    """The contents of a token store.

    Attributes:
        tokens: Ids stored: a leading end-of-text (unit ``article``), the text's, and an
            end-of-text after each article.
        units: Articles, or rows that were kept (unit ``row``).
        articles: Articles in the original text.
        rows: Rows in the original text.
        words: Words of the original text, by ``str.split``.
        bytes: UTF-8 bytes of the original text.
        marks: Rows of the original text with WikiText's marks, such as ``@-@``.
        cleaned_bytes: UTF-8 bytes after cleaning.
        dtype: NumPy type of the ids.
        shaped_by: Everything that the store's name is a hash of.
        lost: Kinds of content that the cleaned text loses by tokenizing; None in a store of an
            earlier version, which did not check.
    """

    tokens: int
    units: int
    articles: int
    rows: int
    words: int
    bytes: int
    marks: int
    cleaned_bytes: int
    dtype: str
    shaped_by: dict[str, Any]
    lost: list[str] | None = None


@dataclass(frozen=True)
class TokenStore:
    """One split's ids, in one long run.

    Attributes:
        folder: The store's folder.
        manifest: Its contents.
        ids: The ids, shape ``(tokens,)``, memory-mapped.
        starts: Index of the first id of every unit and, last, the number of ids, shape
            ``(units + 1,)``.
    """

    folder: Path
    manifest: Manifest
    ids: npt.NDArray[np.unsignedinteger[Any]]
    starts: npt.NDArray[np.int64]

    @classmethod
    def open(cls, folder: Path) -> "TokenStore":
        """Memory-map a store that `write_token_store` wrote.

        Raises:
            UsageError: If it is damaged.
        """
        try:
            manifest = Manifest(**read_json(folder / "manifest.json"))
            store = cls(
                folder, manifest, _map(folder / "ids.bin", manifest.dtype), _map_starts(folder)
            )
            whole = len(store.ids) == manifest.tokens and len(store.starts) == manifest.units + 1
        except (OSError, ValueError, TypeError) as error:
            raise _damaged(folder, str(error)) from error
        if not whole:
            raise _damaged(folder, "its sizes are not those of its manifest")
        return store

    @property
    def closing(self) -> int:
        """Tokens at the end of a unit that are not its text: 1 for an article's end-of-text."""
        return int(self.manifest.shaped_by["unit"] == "article")

    # read instead of memory-mapped: pages of a map count as memory once they were read

    def ids_between(self, start: int, stop: int) -> npt.NDArray[np.unsignedinteger[Any]]:
        """Read ``ids[start:stop]``."""
        return _read(self.folder / "ids.bin", self.manifest.dtype, start, stop)

    def starts_between(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Read ``starts[start:stop]``."""
        return _read(self.folder / "starts.bin", "int64", start, stop)

    def each_piece(self) -> Iterator[npt.NDArray[np.unsignedinteger[Any]]]:
        """Yield all ids in order, a piece at a time."""
        for start in range(0, self.manifest.tokens, IDS_PER_PIECE):
            yield self.ids_between(start, min(start + IDS_PER_PIECE, self.manifest.tokens))

    def unit_lengths(self) -> Iterator[npt.NDArray[np.int64]]:
        """Yield the tokens of every unit, its end-of-text aside, a piece at a time."""
        for start in range(0, self.manifest.units, IDS_PER_PIECE):
            stop = min(start + IDS_PER_PIECE, self.manifest.units)
            yield np.diff(self.starts_between(start, stop + 1)) - self.closing


def _damaged(folder: Path, why: str) -> UsageError:
    return UsageError(
        f"{folder}: the cached tokens are damaged ({why}). Delete that folder; they are made again."
    )


def _map(file: Path, dtype: str) -> npt.NDArray[Any]:
    if file.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype)
    return np.memmap(file, dtype=dtype, mode="r")


def _map_starts(folder: Path) -> npt.NDArray[np.int64]:
    return _map(folder / "starts.bin", "int64")


def _read(file: Path, dtype: str, start: int, stop: int) -> npt.NDArray[Any]:
    return np.fromfile(file, dtype, stop - start, offset=start * np.dtype(dtype).itemsize)


def store_name(shaped_by: dict[str, Any]) -> str:
    """Return a store's name: a hash of everything that determines its content."""
    text = json.dumps({"format": FORMAT_VERSION, **shaped_by}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def cache_tokenizer(files: Mapping[str, str], cache: Path) -> Path:
    """Write a checkpoint's tokenizer into a cache; return its folder."""
    folder = cache / "tokenizers" / store_name(dict(files))
    save_tokenizer_files(files, folder)
    return folder


def write_token_store(
    folder: Path,
    rows: Iterable[Row],
    *,
    cleaner: Cleaner,
    tokenizer: PreTrainedTokenizerBase,
    unit: Unit,
    shaped_by: dict[str, Any],
    advance: Callable[[int], None] = lambda rows: None,
) -> None:
    """Clean and tokenize rows and write their ids.

    With unit ``article`` the ids begin with an end-of-text, and one follows each article. With
    unit ``row`` each row is a unit without an end-of-text; blank ones are dropped. Memory does not
    grow with the text.

    Args:
        folder: The store to write; an existing one is kept.
        rows: The rows, marked where an article begins.
        cleaner: Cleans each row.
        tokenizer: Turns text into ids.
        unit: What an entry of ``starts`` marks.
        shaped_by: The store's origin, for the manifest.
        advance: Called with the number of further rows that were read.
    """
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)
    counts = _Counts()
    end_of_text = int(tokenizer.eos_token_id)
    ids_of = _Encoder(tokenizer)
    tokens = units = 0
    with whole_folder(folder) as writing:
        with (writing / "ids.bin").open("wb") as ids, (writing / "starts.bin").open("wb") as starts:

            def put(values: Ids) -> None:
                nonlocal tokens
                ids.write(np.asarray(values, dtype).tobytes())
                tokens += len(values)

            def mark() -> None:
                starts.write(np.int64(tokens).tobytes())

            if unit == "article":
                put([end_of_text])
            pieces = _pieces(counts.watch(rows, advance), cleaner, unit, ids_of.cuts)
            for (_, begins), encoded in ids_of(pieces):
                if begins:
                    if unit == "article" and units:
                        put([end_of_text])
                    mark()
                    units += 1
                put(encoded)
            if unit == "article" and units:
                put([end_of_text])
            mark()
        manifest = Manifest(
            tokens=tokens,
            units=units,
            articles=counts.articles,
            rows=counts.rows,
            words=counts.words,
            bytes=counts.bytes,
            marks=counts.marks,
            cleaned_bytes=ids_of.bytes,
            dtype=dtype.name,
            shaped_by=shaped_by,
            lost=list(ids_of.lost),
        )
        (writing / "manifest.json").write_text(
            json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8"
        )


class _Counts:
    """Counts of the original text, updated as its rows are read."""

    def __init__(self) -> None:
        self.rows = self.articles = self.words = self.bytes = self.marks = 0

    def watch(self, rows: Iterable[Row], advance: Callable[[int], None]) -> Iterator[Row]:
        reported = 0
        for row in rows:
            self.rows += 1
            self.articles += row.begins
            self.words += sum(len(part.split()) for part in word_chunks(row.text))
            self.bytes += len(row.text.encode())
            self.marks += MARKS.search(row.text) is not None
            if self.rows - reported == 1000:
                advance(1000)
                reported = self.rows
            yield row
        advance(self.rows - reported)


def _pieces(
    rows: Iterable[Row], cleaner: Cleaner, unit: Unit, cuts: bool
) -> Iterator[tuple[str, bool]]:
    """Yield cleaned text in pieces that end where a token ends, and whether a unit begins."""
    if unit == "row":
        for row in rows:
            if (text := cleaner.clean(row.text)).strip():
                yield text, True
        return
    held: list[str] = []
    length, begins = 0, True
    for row in rows:
        if row.begins and held:
            yield "".join(held), begins
            held, length, begins = [], 0, True
        text = cleaner.clean(row.text)
        if cleaner.drops_empty and not text:
            continue
        if cleaner.drops_empty:
            text += "\n"  # the cleaner removed the row's end, which separates rows
        held.append(text)
        length += len(text)
        if cuts and length >= CHARACTERS_PER_PIECE:
            whole, start = "".join(held), 0
            while cut := _last_cut(whole, start, start + CHARACTERS_PER_PIECE):
                yield whole[start:cut], begins
                start, begins = cut, False
                if len(whole) - start < CHARACTERS_PER_PIECE:
                    break
            held, length = [whole[start:]], len(whole) - start
    if held:
        yield "".join(held), begins


def _last_cut(text: str, start: int, end: int) -> int:
    """Return the last index before ``end`` at which a space follows another character.

    If there is none after ``start``, the next such index after ``end``; 0 if there is none at all.
    """
    for place in range(min(end, len(text) - 1), start, -1):
        if text[place].isspace() and not text[place - 1].isspace():
            return place
    found = WORD_END.search(text, end)
    return found.end() if found else 0


class _Encoder:
    """Tokenizes pieces, many in one call, which the tokenizer computes on all cores."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.cuts = cuts_at_spaces(tokenizer)
        self.bytes = 0
        self.lost: dict[str, None] = {}
        self._examined = 0  # pieces of which something is lost

    def __call__(
        self, pieces: Iterable[tuple[str, bool]]
    ) -> Iterator[tuple[tuple[str, bool], Ids]]:
        batch: list[tuple[str, bool]] = []
        characters = 0
        for piece in pieces:
            self.bytes += len(piece[0].encode())
            if len(piece[0]) > 2 * WINDOW and self.cuts and (ids := self._in_windows(piece[0])):
                yield from self._encode(batch)
                batch, characters = [], 0
                yield piece, np.concatenate(ids)
                continue
            batch.append(piece)
            characters += len(piece[0])
            if characters >= CHARACTERS_PER_BATCH:
                yield from self._encode(batch)
                batch, characters = [], 0
        yield from self._encode(batch)

    def _encode(self, batch: list[tuple[str, bool]]) -> Iterator[tuple[tuple[str, bool], Ids]]:
        if not batch:
            return
        with _naming_panic(max(len(text) for text, _ in batch)):
            encoded = self.tokenizer(
                [text for text, _ in batch],
                add_special_tokens=False,
                return_attention_mask=False,
                verbose=False,  # no warning about the model's positions
            )["input_ids"]
        self._look_for_losses(batch, encoded)
        yield from zip(batch, encoded, strict=True)

    def _in_windows(self, text: str) -> list[npt.NDArray[np.int64]]:
        """Return a long text's ids, in parts; empty if the windows cannot be joined.

        Joined at a token that both windows have, the ids are those of the whole text: in a
        byte-level BPE, because each two adjacent ids are the ids of their text; in WordPiece,
        because each token depends only on the text after its beginning.
        """
        parts: list[npt.NDArray[np.int64]] = []
        last: npt.NDArray[np.int64] | None = None  # id, first character and end of each token
        begin = 0  # of what is left of the last window, in characters
        starts = range(0, len(text) - OVERLAP, WINDOW - OVERLAP)
        at_once = CHARACTERS_PER_BATCH // WINDOW
        for some in (starts[at : at + at_once] for at in range(0, len(starts), at_once)):
            encoded = self.tokenizer(
                [text[start : start + WINDOW] for start in some],
                add_special_tokens=False,
                return_attention_mask=False,
                return_offsets_mapping=True,
                verbose=False,
            )
            for start, ids, spans in zip(
                some, encoded["input_ids"], encoded["offset_mapping"], strict=True
            ):
                window = np.column_stack([ids, np.asarray(spans).reshape(-1, 2) + start])
                if last is not None:
                    seam = _seam(last, window, start + OVERLAP // 2)
                    if seam is None:
                        return []
                    self._look_for_losses(
                        [(text[begin : seam[2]], False)], [last[: seam[0], 0].tolist()]
                    )
                    parts.append(last[: seam[0], 0])
                    window, begin = window[seam[1] :], seam[2]
                last = window
        assert last is not None
        self._look_for_losses([(text[begin:], False)], [last[:, 0].tolist()])
        return [*parts, last[:, 0]]

    def _look_for_losses(self, batch: list[tuple[str, bool]], encoded: list[list[int]]) -> None:
        if self._examined >= MOST_EXAMINED:
            return
        unknown = self.tokenizer.unk_token_id
        if unknown == self.tokenizer.eos_token_id:  # GPT-2's: with bytes, nothing is unknown
            unknown = None
        texts = decode_all(self.tokenizer, encoded)
        for (text, _), ids, back in zip(batch, encoded, texts, strict=True):
            if found := lost_text(text, back, unknown=unknown in ids):
                self.lost |= dict.fromkeys(found)
                self._examined += 1


@contextmanager
def _naming_panic(characters: int) -> Iterator[None]:
    """Turn a panic of `tokenizers`, whose pattern matching has bounded memory, into a UsageError.

    ``except Exception`` does not catch a PanicException.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # made by pyo3, and in no module
            raise
        raise UsageError(
            f"The tokenizer failed ({reason(error)}) on a piece of {characters:,} characters "
            "without a word boundary. Insert spaces or line ends, or check whether it is text."
        ) from error


def _seam(
    before: npt.NDArray[np.int64], after: npt.NDArray[np.int64], middle: int
) -> tuple[int, int, int] | None:
    """Find the token nearest to the middle of an overlap that both windows have.

    Args:
        before: Id, first character and end of each token, shape ``(tokens, 3)``.
        after: The same of the next window.
        middle: Index of a character.

    Returns:
        The number of tokens up to and including it in either window, and its end; None if there
        is no such token.
    """

    def around(window: npt.NDArray[np.int64]) -> dict[tuple[int, ...], int]:
        # if a token ends within a character, the next one begins in the same character
        whole = np.append(window[1:, 1] >= window[:-1, 2], False)
        near = np.abs(window[:, 2] - middle) < OVERLAP // 4
        return {tuple(window[at].tolist()): int(at) + 1 for at in np.flatnonzero(whole & near)}

    one, other = around(before), around(after)
    shared = min(one.keys() & other.keys(), key=lambda it: (abs(it[2] - middle), it), default=None)
    return None if shared is None else (one[shared], other[shared], shared[2])


def xz_bits_per_byte(
    train: TokenStore, held_out: TokenStore, tokenizer: PreTrainedTokenizerBase
) -> float | None:
    """Return bits per byte of a held-out split compressed by xz after the training split.

    Args:
        train: The training split, cleaned without loss.
        held_out: The split to be predicted, cleaned without loss.
        tokenizer: A byte-level tokenizer, which loses no text.

    Returns:
        Bits per byte of the original text; None if the training text is longer than
        `LONGEST_FOR_XZ`.
    """
    if train.manifest.bytes > LONGEST_FOR_XZ:
        return None
    texts = [
        cast(str, tokenizer.decode(store.ids.tolist(), skip_special_tokens=True)).encode()
        for store in (train, held_out)
    ]
    cleaned_share = len(texts[1]) / held_out.manifest.bytes  # what is compressed is the cleaned
    return primed_xz_bits_per_byte(*texts) * cleaned_share


def primed_xz_bits_per_byte(train: bytes, held_out: bytes) -> float:
    """Return bits per byte of a held-out text compressed by xz after the training text.

    ``8 (xz(train + held_out) - xz(train)) / len(held_out)``, where ``xz`` is the compressed size
    in bytes at preset 9, extreme.

    Args:
        train: The training text in UTF-8.
        held_out: The text to be predicted, in UTF-8.
    """
    preset = 9 | lzma.PRESET_EXTREME
    both = len(lzma.compress(train + held_out, preset=preset))
    return 8 * (both - len(lzma.compress(train, preset=preset))) / len(held_out)
