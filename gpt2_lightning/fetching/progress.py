"""A bar for each file on standard error, or a line where that is no terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from gpt2_lightning.fetching.listing import RemoteFile


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
