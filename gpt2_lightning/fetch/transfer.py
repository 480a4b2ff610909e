"""Downloads a file from a hub: with time-outs, retries, and resumption after an interruption.

The hubs' clients could do this too, but huggingface_hub 2.4 deletes the incomplete file of a
stopped process, and buffers up to 10 MB of it in memory, which on a slow line may be all. One
transfer of our own serves both hubs, over the HTTP client that huggingface_hub requires.
"""

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx2
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from gpt2_lightning.errors import UsageError, unusable_proxy
from gpt2_lightning.fetch.hubs import (
    Listing,
    RemoteFile,
    RepoRef,
    Unavailable,
    check_status,
    given_up,
)

TRIES = 4  # in a row without progress

Result = TypeVar("Result")


def download(
    client: httpx2.Client,
    listing: Listing,
    file: RemoteFile,
    part: Path,
    show: Callable[[int], None],
) -> None:
    """Download a file, continuing an earlier transfer.

    Args:
        client: The HTTP client.
        listing: The file's repository.
        file: The file.
        part: Path of the content, of which the beginning may exist.
        show: Called with the number of bytes downloaded so far.

    Raises:
        UsageError: If the hub refuses, or the transfer fails repeatedly.
    """
    repo = listing.repo

    def size_on_disk() -> int:
        return part.stat().st_size if part.exists() else 0

    def step() -> None:
        start = size_on_disk()
        if file.size is None or start > file.size:  # it cannot be told whether it is complete
            part.unlink(missing_ok=True)
            start = 0
        if start == file.size:
            part.touch()
            return
        headers = {**listing.headers, "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        with client.stream("GET", file.url, headers=headers) as response:
            if response.status_code == 416:  # the file is shorter than the part on the disk
                part.unlink(missing_ok=True)
                raise httpx2.RemoteProtocolError("the server has no such range")
            check_status(response, repo, file.path)
            continues = start > 0 and _first_byte(response) == start
            with part.open("ab" if continues else "wb") as stream:
                done = start if continues else 0
                for chunk in response.iter_bytes():
                    stream.write(chunk)
                    done += len(chunk)
                    show(done)
                    if file.size is not None and done > file.size:
                        raise UsageError(
                            f"{repo.label}: {file.path}: {repo.where} sends more than the "
                            f"{file.size:,} bytes that it lists. Try another --endpoint."
                        )
        if file.size is not None and size_on_disk() < file.size:
            raise httpx2.RemoteProtocolError(f"{size_on_disk():,} of {file.size:,} bytes arrived")

    with_retries(
        step,
        repo,
        moved=size_on_disk,
        kept=lambda: (
            f"{file.path} is kept up to byte {size_on_disk():,}, where the next try begins."
        ),
    )
    show(size_on_disk())


def _first_byte(response: httpx2.Response) -> int | None:
    """Return the first byte of an answer; None if it is the whole file."""
    if response.status_code != 206:  # a server may ignore the requested range
        return None
    first = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(first[1]) if first else None


def with_retries(
    step: Callable[[], Result],
    repo: RepoRef,
    moved: Callable[[], int] = lambda: 0,
    kept: Callable[[], str] = lambda: "",
) -> Result:
    """Call a function that uses the network, and again if it fails, as long as it makes progress.

    Args:
        step: The function.
        repo: The repository, with the time-out.
        moved: Returns the progress so far.
        kept: Returns a sentence about the part that is kept, for the message.

    Raises:
        UsageError: If the hub refuses, or ``TRIES`` calls in a row fail without progress.
    """
    failures, best = 0, moved()
    while True:
        try:
            return step()
        except (httpx2.TransportError, Unavailable) as error:
            wanted = error.wait if isinstance(error, Unavailable) else None
            failures, best = (0, moved()) if moved() > best else (failures + 1, best)
            if failures == TRIES or (wanted or 0) > repo.timeout:
                raise given_up(error, repo, kept()) from error
            time.sleep(wanted if wanted is not None else min(repo.timeout, 2**failures / 2))


def open_client(repo: RepoRef) -> httpx2.Client:
    """Open an HTTP client, which uses the proxies of the environment.

    Raises:
        UsageError: If it cannot use one of them.
    """
    try:
        return httpx2.Client(
            timeout=repo.timeout,
            follow_redirects=True,  # to the storage of large files; the token is not sent there
            headers={"User-Agent": "gpt2_lightning"},
        )
    except (ImportError, ValueError) as error:
        if (proxy := unusable_proxy()) is None:
            raise
        raise UsageError(f"{proxy}.") from error


@contextmanager
def progress() -> Iterator[Callable[[RemoteFile], Callable[[int], None]]]:
    """Show the progress of downloads.

    Yields:
        A function to call at the beginning of each file; it returns one to call with the number of
        bytes downloaded so far.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:

        def begin(file: RemoteFile) -> Callable[[int], None]:
            if not console.is_terminal:
                size = "" if file.size is None else f" ({megabytes(file.size)})"
                console.print(f"{file.path}{size}", soft_wrap=True, highlight=False, markup=False)
            bar = bars.add_task(file.path, total=file.size)
            return lambda done: bars.update(bar, completed=done)

        yield begin


def megabytes(size: int) -> str:
    """Return a size with its unit, MB or kB."""
    return f"{size / 1e6:,.1f} MB" if size >= 50_000 else f"{size / 1e3:,.1f} kB"


def difference_from_listing(path: Path, file: RemoteFile) -> str | None:
    """Return how a file differs from its hub's listing, by size and hash; None if it does not."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"{size:,} bytes instead of {file.size:,}"
    for name, wanted, found in (
        ("sha256", file.sha256, sha256_of),
        ("git hash", file.git_sha1, git_sha1_of),
    ):
        if wanted is not None and (here := found(path)) != wanted:
            return f"its {name} is {here[:12]}..., not {wanted[:12]}..."
    return None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def git_sha1_of(path: Path) -> str:
    r"""Return the name git gives a file's content: SHA-1 of ``blob SIZE\0`` and the content."""
    total = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            total.update(piece)
    return total.hexdigest()
