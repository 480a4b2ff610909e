"""Bytes from a hub: noticed when they stall, asked for again, gone on with where they ended.

The clients of both hubs could do this too, but huggingface_hub 2.4 throws away what a stopped
process has of a file, and holds back up to 10 MB of it in memory; on a slow line that is all that
came. One transfer of our own serves both hubs, over the HTTP client that huggingface_hub requires.
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

TRIES = 4  # in a row that bring nothing new


def what_differs(path: Path, file: RemoteFile) -> str | None:
    """Return how a file's content differs from what its hub lists; None where it does not."""
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


@contextmanager
def progress() -> Iterator[Callable[[RemoteFile], Callable[[int], None]]]:
    """Show how far files have come.

    Yields:
        What to call at the beginning of each file; it returns what to tell how many of its bytes
        are there.
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
    """Return a size in words."""
    return f"{size / 1e6:,.1f} MB" if size >= 50_000 else f"{size / 1e3:,.1f} kB"


Result = TypeVar("Result")


def open_client(repo: RepoRef) -> httpx2.Client:
    """Open an HTTP client; proxies are as the environment has them.

    Raises:
        UsageError: If the client cannot use one of them.
    """
    try:
        return httpx2.Client(
            timeout=repo.timeout,
            follow_redirects=True,  # to where large files are; it leaves the token behind
            headers={"User-Agent": "gpt2_lightning"},
        )
    except (ImportError, ValueError) as error:
        if (proxy := unusable_proxy()) is None:
            raise
        raise UsageError(f"{proxy}.") from error


def persist(
    step: Callable[[], Result],
    repo: RepoRef,
    moved: Callable[[], int] = lambda: 0,
    kept: Callable[[], str] = lambda: "",
) -> Result:
    """Take a step over the network, again where it fails, until that brings nothing new.

    Args:
        step: What to do.
        repo: The repository, and the patience.
        moved: How far the steps have come so far.
        kept: What is there of it, as a sentence for the message.

    Raises:
        UsageError: If the hub refuses, or ``TRIES`` steps in a row fail where the first began.
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


def download(
    client: httpx2.Client,
    listing: Listing,
    file: RemoteFile,
    part: Path,
    show: Callable[[int], None],
) -> None:
    """Fetch a file's content, beginning where an earlier transfer ended.

    Args:
        client: Over which.
        listing: The file's repository.
        file: The file.
        part: Where its content goes, and what of it is there.
        show: Told how many bytes are there.

    Raises:
        UsageError: If the hub refuses, or does not send the file at length.
    """
    repo = listing.repo

    def there() -> int:
        return part.stat().st_size if part.exists() else 0

    def step() -> None:
        start = there()
        if file.size is None or start > file.size:  # where it ends, or what it is, is not known
            part.unlink(missing_ok=True)
            start = 0
        if start == file.size:
            part.touch()
            return
        headers = {**listing.headers, "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        with client.stream("GET", file.url, headers=headers) as response:
            if response.status_code == 416:  # it is shorter there than what is here
                part.unlink(missing_ok=True)
                raise httpx2.RemoteProtocolError("the server has no such range")
            check_status(response, repo, file.path)
            goes_on = start > 0 and _first_byte(response) == start
            with part.open("ab" if goes_on else "wb") as stream:
                done = start if goes_on else 0
                for chunk in response.iter_bytes():
                    stream.write(chunk)
                    done += len(chunk)
                    show(done)
                    if file.size is not None and done > file.size:
                        raise UsageError(
                            f"{repo.said}: {file.path}: {repo.where} sends more than the "
                            f"{file.size:,} bytes that it lists. Use another --endpoint."
                        )
        if file.size is not None and there() < file.size:
            raise httpx2.RemoteProtocolError(f"{there():,} of {file.size:,} bytes came")

    persist(
        step,
        repo,
        moved=there,
        kept=lambda: f"{file.path} is there up to byte {there():,}, where the next try begins.",
    )
    show(there())


def _first_byte(response: httpx2.Response) -> int | None:
    """Return at which byte an answer begins; None where it is the whole file."""
    if response.status_code != 206:  # a server may ignore what range was asked for
        return None
    told = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(told[1]) if told else None
