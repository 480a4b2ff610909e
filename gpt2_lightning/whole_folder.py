"""Folders that appear whole or not at all."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

if sys.platform != "win32":
    import fcntl

SUFFIX = ".partial"


@contextmanager
def whole_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a folder to write into, which takes its place when the block ends well.

    The writing happens beside the target, on the same disk, in ``.NAME-xxxxxxxx.partial``, and
    ends with a rename: a reader, or a run that is killed at any moment, never sees half a folder.
    What killed writers of the same target have left is removed first.

    Args:
        target: The folder to be.
        replace: Take the place of a folder that is there. Otherwise the one that is there stays:
            for folders named by a hash of their content, it is the same.

    Yields:
        The folder to write into.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=SUFFIX, dir=target.parent))
    handle = _locked(beside)
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
        if handle is not None:
            os.close(handle)


def _sweep(target: Path) -> None:
    """Remove what killed writers left; a folder that one had only moved aside comes back."""
    for beside in target.parent.glob(f".{escape(target.name)}-????????{SUFFIX}"):
        handle = _locked(beside)
        if handle is None:  # its writer lives, or the file system cannot tell
            continue
        if (beside / "old").is_dir() and not target.exists():
            (beside / "old").rename(target)
        shutil.rmtree(beside, ignore_errors=True)
        os.close(handle)


def _locked(folder: Path) -> int | None:
    """Lock a folder until its handle is closed, or the process ends in whatever way."""
    if sys.platform == "win32":  # no locks on folders
        return None
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return None
        return handle
    return None
