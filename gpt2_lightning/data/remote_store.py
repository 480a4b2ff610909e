"""Token stores on another file system (s3://, gs://, a mounted disk), in shards.

A store is published as ``NAME/ids-000000.bin``, ``ids-000001.bin``, .. and ``starts.bin``, and last
``manifest.json``, without which it counts as absent. A machine that trains on it keeps of the
training split's shards what it has read last, within a limit.
"""

import hashlib
import json
import logging
import math
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import fsspec
import numpy as np
import numpy.typing as npt

from gpt2_lightning.data.token_store import Manifest, TokenStore
from gpt2_lightning.errors import UsageError
from gpt2_lightning.storage import refusal_of, whole_file, whole_folder

log = logging.getLogger(__name__)

SHARD_BYTES = 64 << 20

COPIED_AT_ONCE = 1 << 20  # bytes

TRIES, PAUSE = 3, 2.0  # of a shard that cannot be read, and seconds between them


class RemoteStores:
    """The token stores below an address.

    Args:
        url: An address that fsspec knows: ``s3://bucket/tokens``, ``gs://..``, ``file:///mnt/..``.
        local: Folder for the shards that are kept on this machine.
        limit_gb: GB of them, of all stores together.
        shard_bytes: Size of a shard that is published.

    Raises:
        UsageError: If fsspec does not know the address' scheme, or lacks its package, or the limit
            is less than two shards.
    """

    def __init__(
        self, url: str, local: Path, *, limit_gb: float, shard_bytes: int = SHARD_BYTES
    ) -> None:
        if not 2 * shard_bytes <= limit_gb * 1e9 < math.inf:
            raise UsageError(
                f"--data.remote_cache_gb {limit_gb:g}: must be at least "
                f"{2 * shard_bytes / 1e9:g}, two shards."
            )
        self.url, self.local, self.shard_bytes = url, local, shard_bytes
        self.limit = int(limit_gb * 1e9)  # bytes
        try:
            self.files, self.root = fsspec.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise UsageError(
                f"--data.remote_cache {url}: {error}. s3:// needs the package s3fs, gs:// gcsfs."
            ) from error

    def has(self, name: str) -> bool:
        """Whether a store of this name was published whole."""
        with self._naming(name):
            return bool(self.files.exists(self._path(name, "manifest.json")))

    def publish(self, name: str, store: TokenStore) -> None:
        """Write a store of this machine to the address, unless it is there."""
        if self.has(name):
            return
        itemsize = np.dtype(store.manifest.dtype).itemsize
        total = store.manifest.tokens * itemsize
        log.info("Publishing %.1f MB of tokens to %s.", total / 1e6, self.url)
        digests = []
        with self._naming(name), (store.folder / "ids.bin").open("rb") as ids:
            self.files.makedirs(self._path(name), exist_ok=True)
            for number in range(-(-total // self.shard_bytes)):
                count = min(self.shard_bytes, total - number * self.shard_bytes)
                digests.append(self._write(name, _shard_name(number), ids, count))
            with (store.folder / "starts.bin").open("rb") as starts:
                size = os.fstat(starts.fileno()).st_size
                digest = self._write(name, "starts.bin", starts, size)
            manifest = {
                **asdict(store.manifest),
                "shard_bytes": self.shard_bytes,
                "sha256": [*digests, digest],
            }
            self.files.pipe_file(self._path(name, "manifest.json"), json.dumps(manifest).encode())

    def open(self, name: str) -> TokenStore:
        """Open a store whose shards are read when they are asked for."""
        folder = self.local / name
        with self._naming(name):
            described = json.loads(self.files.cat_file(self._path(name, "manifest.json")))
            shard_bytes, digests = described.pop("shard_bytes"), described.pop("sha256")
            manifest = Manifest(**described)
        ids = ShardedIds(self, name, manifest, shard_bytes, digests)
        starts = folder / "starts.bin"
        if not starts.exists():
            self._fetch(name, starts, digests[-1])
        mapped: Any = np.memmap(starts, "int64", "r") if starts.stat().st_size else np.empty(0)
        # what is asked of the ids of a training split is their number, their type and slices
        return RemoteTokenStore(folder, manifest, cast("npt.NDArray[Any]", ids), mapped)

    def fetch(self, name: str, folder: Path) -> TokenStore:
        """Copy a store as a whole into a folder of this machine, and open it there."""
        store = self.open(name)
        with whole_folder(folder) as written:
            (written / "manifest.json").write_text(json.dumps(asdict(store.manifest)))
            (written / "starts.bin").write_bytes(np.asarray(store.starts, np.int64).tobytes())
            with (written / "ids.bin").open("wb") as stream:
                for piece in store.each_piece():
                    stream.write(piece.tobytes())
        return TokenStore.open(folder)

    def shard(self, name: str, number: int, digest: str) -> Path:
        """Return a shard on this machine, fetched if need be; it now counts as the last read."""
        file = self.local / name / _shard_name(number)
        try:
            os.utime(file)
        except FileNotFoundError:
            self._make_room()
            self._fetch(name, file, digest)
        return file

    def _make_room(self) -> None:
        """Remove the shards that were read longest ago, until one more is within the limit."""
        found = []
        for file in self.local.glob("*/ids-*.bin"):
            try:
                found.append((file.stat().st_mtime_ns, file.stat().st_size, file))
            except FileNotFoundError:  # another process removed it
                continue
        held = sum(size for _, size, _ in found)
        for _, size, file in sorted(found):
            if held + self.shard_bytes <= self.limit:
                break
            file.unlink(missing_ok=True)
            held -= size

    def _fetch(self, name: str, file: Path, digest: str) -> None:
        for tries in range(1, TRIES + 1):
            try:
                with self._naming(name):
                    self._copy(self._path(name, file.name), file, digest)
                return
            except UsageError:
                if tries == TRIES:
                    raise
                time.sleep(PAUSE)

    def _copy(self, remote: str, file: Path, digest: str) -> None:
        with self.files.open(remote, "rb") as source, whole_file(file) as stream:
            found = hashlib.sha256()
            while piece := source.read(COPIED_AT_ONCE):
                found.update(piece)
                stream.write(piece)
            if found.hexdigest() != digest:
                raise ValueError(f"{file.name} has another sha256 than its manifest says")

    def _write(self, name: str, file: str, source: Any, count: int) -> str:
        digest = hashlib.sha256()
        # beside it first: another machine may have published the same meanwhile
        partial = self._path(name, f"{file}.{secrets.token_hex(4)}.partial")
        with self.files.open(partial, "wb") as target:
            while count:
                piece = source.read(min(count, COPIED_AT_ONCE))
                digest.update(piece)
                target.write(piece)
                count -= len(piece)
        self.files.mv(partial, self._path(name, file))
        return digest.hexdigest()

    def _path(self, name: str, file: str = "") -> str:
        return "/".join(part for part in (self.root.rstrip("/"), name, file) if part)

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        try:
            yield
        # each file system has errors of its own beside OSError: botocore's, google's, aiohttp's
        except Exception as error:
            if refusal_of(error) is not None:  # of this machine's disk
                raise
            raise UsageError(
                f"--data.remote_cache {self.url}: the store {name} could not be read or written "
                f"({type(error).__name__}: {error})."
            ) from error


class ShardedIds:
    """The ids of a store in shards, read by slices of step 1, like an array of one dimension."""

    def __init__(
        self,
        stores: RemoteStores,
        name: str,
        manifest: Manifest,
        shard_bytes: int,
        digests: list[str],
    ) -> None:
        self.stores, self.name, self.digests = stores, name, digests
        self.dtype = np.dtype(manifest.dtype)
        self.shape = (manifest.tokens,)
        self.ids_per_shard = shard_bytes // self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: slice) -> npt.NDArray[np.unsignedinteger[Any]]:
        start, stop, _ = key.indices(len(self))
        pieces = [np.empty(0, self.dtype)]
        while start < stop:
            number, offset = divmod(start, self.ids_per_shard)
            count = min(stop - start, self.ids_per_shard - offset)
            try:
                file = self.stores.shard(self.name, number, self.digests[number])
                piece = np.fromfile(file, self.dtype, count, offset=offset * self.dtype.itemsize)
            except FileNotFoundError:  # removed between the two by another process
                continue
            if len(piece) < count:
                raise UsageError(f"{file}: it is cut off. Delete it; it is fetched again.")
            pieces.append(piece)
            start += count
        return np.concatenate(pieces)

    def tolist(self) -> list[int]:
        """Return all ids."""
        return cast("list[int]", self[:].tolist())


class RemoteTokenStore(TokenStore):
    """A store whose ids lie in shards elsewhere."""

    @property
    def at_hand(self) -> bool:
        """Whether all ids can be kept on this machine."""
        ids = cast(ShardedIds, self.ids)
        return len(ids) * ids.dtype.itemsize <= ids.stores.limit

    def ids_between(self, start: int, stop: int) -> npt.NDArray[np.unsignedinteger[Any]]:
        """Read ``ids[start:stop]``."""
        return self.ids[start:stop]


def _shard_name(number: int) -> str:
    return f"ids-{number:06}.bin"
