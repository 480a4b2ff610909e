"""Folders that appear whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a folder to write into, which takes its place when the block ends well.

    The writing happens beside the target, on the same disk, and ends with a rename: a reader, or
    a run that is killed at any moment, never sees half a folder.

    Args:
        target: The folder to be.
        replace: Take the place of a folder that is there. Otherwise the one that is there stays:
            for folders named by a hash of their content, it is the same.

    Yields:
        The folder to write into.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        written = beside / "new"
        written.mkdir()
        yield written
        if replace and target.exists():
            target.rename(beside / "old")
        try:
            written.rename(target)
        except OSError:
            if replace or not target.is_dir():
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
