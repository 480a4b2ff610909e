"""Bytes from a hub: noticed when they stall, asked for again, gone on with where they ended.

The clients of both hubs could do this too, but huggingface_hub 2.4 throws away what a stopped
process has of a file, and holds back up to 10 MB of it in memory; on a slow line that is all that
came. One transfer of our own serves both hubs, over the HTTP client that huggingface_hub requires.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx2

from gpt2_lightning.errors import UsageError
from gpt2_lightning.fetching.answers import Unavailable, check_status, given_up
from gpt2_lightning.fetching.asked import Asked
from gpt2_lightning.fetching.listing import Listing, RemoteFile
from gpt2_lightning.hub_errors import unusable_proxy

TRIES = 4  # in a row that bring nothing new
Result = TypeVar("Result")


def open_client(asked: Asked) -> httpx2.Client:
    """Open an HTTP client; proxies are as the environment has them.

    Raises:
        UsageError: If the client cannot use one of them.
    """
    try:
        return httpx2.Client(
            timeout=asked.timeout,
            follow_redirects=True,  # to where large files are; it leaves the token behind
            headers={"User-Agent": "gpt2_lightning"},
        )
    except (ImportError, ValueError) as error:
        if (proxy := unusable_proxy()) is None:
            raise
        raise UsageError(f"{proxy}.") from error


def persist(
    step: Callable[[], Result],
    asked: Asked,
    moved: Callable[[], int] = lambda: 0,
    kept: Callable[[], str] = lambda: "",
) -> Result:
    """Take a step over the network, again where it fails, until that brings nothing new.

    Args:
        step: What to do.
        asked: What was asked for, and the patience.
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
            if failures == TRIES or (wanted or 0) > asked.timeout:
                raise given_up(error, asked, kept()) from error
            time.sleep(wanted if wanted is not None else min(asked.timeout, 2**failures / 2))


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
    asked = listing.asked

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
            check_status(response, asked, file.path)
            goes_on = start > 0 and _first_byte(response) == start
            with part.open("ab" if goes_on else "wb") as stream:
                done = start if goes_on else 0
                for chunk in response.iter_bytes():
                    stream.write(chunk)
                    done += len(chunk)
                    show(done)
                    if file.size is not None and done > file.size:
                        raise UsageError(
                            f"{asked.said}: {file.path}: {asked.where} sends more than the "
                            f"{file.size:,} bytes that it lists. Use another --endpoint."
                        )
        if file.size is not None and there() < file.size:
            raise httpx2.RemoteProtocolError(f"{there():,} of {file.size:,} bytes came")

    persist(
        step,
        asked,
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
