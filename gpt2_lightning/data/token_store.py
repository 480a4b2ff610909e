"""Tokens on disk, memory-mapped and named by their content; and how well xz compresses the text."""

import hashlib
import json
import lzma
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from gpt2_lightning.data.tokenizer import save_tokenizer_files
from gpt2_lightning.errors import UsageError
from gpt2_lightning.untrusted import read_json

FORMAT_VERSION = 2

IDS_PER_PIECE = 1 << 18  # ids or units read together

LONGEST_FOR_XZ = 4_000_000  # bytes, for which xz needs some seconds


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
    def at_hand(self) -> bool:
        """Whether all ids are, or can be kept, on this machine."""
        return True

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
