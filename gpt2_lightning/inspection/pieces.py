"""A token store read piece by piece: what is mapped and read would count as memory."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2_lightning.data.token_store import TokenStore

PIECE = 1 << 18  # ids or units looked at together; bounds the memory

Integers = npt.NDArray[np.int64]


def ids_between(store: TokenStore, start: int, stop: int) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Read the ids from ``start`` to before ``stop``, shape ``(stop - start,)``."""
    return _read(store, "ids.bin", store.manifest.dtype, start, stop)


def starts_between(store: TokenStore, start: int, stop: int) -> Integers:
    """Read entries of ``starts`` from ``start`` to before ``stop``, shape ``(stop - start,)``."""
    return _read(store, "starts.bin", "int64", start, stop)


def _read(store: TokenStore, name: str, dtype: str, start: int, stop: int) -> npt.NDArray[Any]:
    offset = start * np.dtype(dtype).itemsize
    return np.fromfile(store.folder / name, dtype, stop - start, offset=offset)


def each_piece(store: TokenStore) -> Iterator[npt.NDArray[np.unsignedinteger[Any]]]:
    """Yield all ids in order, a piece at a time."""
    tokens = store.manifest.tokens
    for start in range(0, tokens, PIECE):
        yield ids_between(store, start, min(start + PIECE, tokens))


def unit_lengths(store: TokenStore) -> Iterator[Integers]:
    """Yield the tokens of every unit, an article's end-of-text aside, a piece at a time."""
    units = store.manifest.units
    for start in range(0, units, PIECE):
        yield np.diff(starts_between(store, start, min(start + PIECE, units) + 1)) - closing(store)


def closing(store: TokenStore) -> int:
    """Return how many tokens end a unit without being its text: an article's end-of-text."""
    return int(store.manifest.shaped_by["unit"] == "article")
