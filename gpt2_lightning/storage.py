"""Files and folders that appear whole or not at all, and are on the disk when they do.

All that this package writes goes through here. It is written beside its target, on the same disk,
as ``.NAME-xxxxxxxx.partial``, flushed to the disk, and renamed: a reader, a process that is killed
at any moment, or a power cut never meets half of it, and what was there before stays until then.
"""

import errno
import logging
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from gpt2_lightning.errors import UsageError

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)

SUFFIX = ".partial"

UNFINISHED = ".unfinished"

WEEK = 7 * 24 * 3600  # seconds

PARTIAL = re.compile(r"\.(.+)-[0-9a-z_]{8}\.partial")

LONGEST_NAME = 200  # bytes of a target's name in that of its partial: file systems allow 255

SCRATCH_BYTES = 64 << 20  # more than the files of any tokenizer

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}

# Rust's standard library ends its messages so; safetensors and tokenizers pass on no errno
RUST_OS_ERROR = re.compile(r"\(os error (\d+)\)")

_under_way: set[Path] = set()  # partials that this process is writing


@contextmanager
def whole_file(target: Path, *, replace_link: bool = False) -> Iterator[BinaryIO]:
    """Give a file to write, which takes its target's place when the block ends well.

    Args:
        target: The file to be. One that is there is replaced, and its permissions are kept.
        replace_link: Where the target is a link, replace the link instead of the file behind it.

    Yields:
        The file, open for bytes.

    Raises:
        UsageError: If the target is a folder, a device or a pipe.
        OSError: If the disk refuses; it names the target.
    """
    named = target
    if not replace_link:
        target = Path(os.path.realpath(target))
    if target.exists() and not target.is_file():
        raise UsageError(f"{named}: it is no regular file, and is not replaced. Give another.")
    with _naming(named):
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent, target.name)
        partial, stream = _create(target)
    with _naming(named), stream:
        try:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            if target.is_file() and not target.is_symlink():
                os.chmod(partial, stat.S_IMODE(target.stat().st_mode))
            if sys.platform == "win32":  # which renames no open file
                stream.close()
            os.replace(partial, target)
            flush_folder(target.parent)
        finally:
            with suppress(OSError):  # what the disk refuses has been said by now
                stream.close()
            partial.unlink(missing_ok=True)
            _under_way.discard(partial)


def write_text(target: Path, text: str) -> None:
    """Write a text file whole or not at all, as UTF-8 with the line ends that the text has."""
    with whole_file(target) as stream:
        stream.write(text.encode())


def append_text(target: Path, text: str) -> None:
    """Add lines to a file; where the disk refuses, what was written of them is taken back.

    A last line that a killed process left unfinished is ended first, so that it alone is lost.
    """
    with _naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # unbuffered: a buffer would write what is taken back once more when the file is closed
        with target.open("a+b", buffering=0) as stream:
            end = stream.seek(0, os.SEEK_END)
            try:
                content = text.encode()
                if end and stream.seek(end - 1) and stream.read(1) != b"\n":
                    content = b"\n" + content
                while content:
                    content = content[stream.write(content) :]
                os.fsync(stream.fileno())
            except BaseException:
                with suppress(OSError):
                    stream.truncate(end)
                raise


@contextmanager
def whole_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a folder to write into, which takes its target's place when the block ends well.

    What killed writers of the same target have left is removed first.

    Args:
        target: The folder to be.
        replace: Take the place of a folder that is there. Otherwise the one that is there stays:
            for folders named by a hash of their content, it is the same.

    Yields:
        The folder to write into.

    Raises:
        OSError: If the disk refuses; it names the target.
    """
    with _naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent, target.name)
        partial, handle = _create_folder(target)
    written = partial / "new"
    try:
        with _naming(target):
            written.mkdir()
            yield written
            flush_tree(written)
            if replace and target.exists():
                os.rename(target, partial / "old")
            try:
                os.rename(written, target)
            except OSError:
                if replace or not target.is_dir():
                    raise
            flush_folder(target.parent)
    finally:
        _remove(partial, target)
        _under_way.discard(partial)
        if handle is not None:
            os.close(handle)


@contextmanager
def resumable_folder(target: Path) -> Iterator[Path | None]:
    """Give a folder to write into as `whole_folder` does, with what a killed writer left in it.

    It lies beside its target as ``.NAME-HOST.unfinished``: machines that share a disk do not see
    each other's locks. The end of the process, however it comes, leaves it for the next writer
    of the same target; an error removes it. One that nobody went on with for a week is removed.

    Args:
        target: The folder to be; its name says what it holds, so that the next writer would write
            the same.

    Yields:
        The folder to write into; None if another process has finished it meanwhile.

    Raises:
        OSError: If the disk refuses; it names the target.
    """
    host = re.sub(r"\W", "_", platform.node())
    unfinished = target.with_name(f".{_short(target.name)}-{host[:40]}{UNFINISHED}")
    handle = None
    with _naming(target):
        _remove_abandoned(target.parent)
        while not target.is_dir():
            unfinished.mkdir(parents=True, exist_ok=True)
            if _is_locked(unfinished):
                log.info("Another process is writing %s; it is waited for.", target)
            handle = _locked(unfinished, wait=True)  # None where a file system has no locks
            if unfinished.exists():
                break
            if handle is not None:  # its writer has finished it meanwhile
                os.close(handle)
                handle = None
    try:
        if target.is_dir():
            yield None
            return
        with _naming(target):
            yield unfinished
            flush_tree(unfinished)
            try:
                os.rename(unfinished, target)
            except OSError:
                if not target.is_dir():
                    raise
                shutil.rmtree(unfinished, ignore_errors=True)  # another machine was quicker
            flush_folder(target.parent)
    except Exception:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    finally:
        if handle is not None:
            os.close(handle)


def _remove_abandoned(folder: Path) -> None:
    for unfinished in folder.glob(f".*{UNFINISHED}"):
        with suppress(OSError):
            newest = max(it.stat().st_mtime for it in (unfinished, *unfinished.iterdir()))
            if time.time() - newest < WEEK or (handle := _locked(unfinished, wait=False)) is None:
                continue
            shutil.rmtree(unfinished, ignore_errors=True)
            os.close(handle)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give a folder for a moment, where there is room: a full temporary folder ends no run."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    places = [Path(tempfile.gettempdir()), cache, Path.cwd()]
    there = [place for place in places if place.is_dir() and os.access(place, os.W_OK)]
    roomy = (place for place in there if shutil.disk_usage(place).free >= SCRATCH_BYTES)
    with tempfile.TemporaryDirectory(dir=next(roomy, None), prefix="gpt2_lightning-") as folder:
        yield Path(folder)


def sweep(folder: Path, name: str | None = None) -> list[Path]:
    """Remove what killed writers left in a folder, and put back what they had only moved aside.

    What a living process writes is locked, and stays; so does all where a file system has no locks.

    Args:
        folder: The folder.
        name: Of the target whose leftovers are meant; null means all.

    Returns:
        What was removed.
    """
    removed = []
    for partial in folder.iterdir() if folder.is_dir() else ():
        found = PARTIAL.fullmatch(partial.name)
        if not found or (name is not None and found[1] != _short(name)):
            continue
        handle = _locked(partial, wait=False)
        if handle is None:
            continue
        _remove(partial, folder / found[1])
        removed.append(partial)
        os.close(handle)
    return removed


def undo() -> None:
    """Remove what this process is writing, when it ends at once."""
    for partial in list(_under_way):
        found = PARTIAL.fullmatch(partial.name)
        if found:
            _remove(partial, partial.with_name(found[1]))


def flush_tree(folder: Path) -> None:
    """Flush every file and folder below a folder, and itself, to the disk."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            flush_file(Path(place, name))
        flush_folder(Path(place))


def flush_file(file: Path) -> None:
    """Flush a file's content to the disk."""
    # Windows flushes only what is open for writing
    handle = os.open(file, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_folder(folder: Path) -> None:
    """Flush a folder's names to the disk: a rename is lost in a power cut otherwise."""
    if sys.platform == "win32":  # which opens no folder, and needs none of this
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        os.close(handle)


def refusal_of(error: BaseException) -> OSError | None:
    """Return a disk's refusal behind an exception: Lightning's loggers, for one, wrap it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in DISK_ERRORS:
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def disk_message(error: OSError, place: Path | None = None) -> str | None:
    """Say what a system's refusal means.

    Args:
        error: The refusal.
        place: What was written, where the error names no file.

    Returns:
        The file, the disk and what it lacks, in a sentence or two; None where neither the file nor
        a reason is known.
    """
    if not error.filename and place is None:
        return f"{error.strerror}." if error.strerror else None
    name = os.fsdecode(error.filename or str(place))
    mount = mount_of(Path(name))
    match error.errno:
        case errno.ENOSPC:
            usage = shutil.disk_usage(mount)
            free = f"without it {usage.free / 1e6:,.1f} of {usage.total / 1e6:,.1f} MB are free"
            return f"{name}: no space is left on the disk at {mount} ({free}). Make room there."
        case errno.EDQUOT:
            return f"{name}: your quota on the disk at {mount} is used up. Make room there."
        case errno.EFBIG:
            return f"{name}: it would be larger than the disk at {mount}, or a limit, allows."
        case errno.EROFS:
            return f"{name}: the disk at {mount} can only be read."
        case errno.EACCES | errno.EPERM:
            there = next(place for place in (Path(name), *Path(name).parents) if place.exists())
            return f"{name}: permission denied. ls -ld {there} shows whose it is."
        case errno.EIO:
            return f"{name}: the disk at {mount} fails ({error.strerror}). Take another."
    return f"{name}: {error.strerror}." if error.strerror else None


def mount_of(path: Path) -> Path:
    """Return where the disk of a path, which need not exist, is mounted."""
    place = Path(os.path.realpath(path))
    while not os.path.ismount(place) and place != place.parent:
        place = place.parent
    return place


def _short(name: str) -> str:
    return os.fsencode(name)[:LONGEST_NAME].decode(errors="ignore")


def _partial_of(target: Path) -> Path:
    return target.with_name(f".{_short(target.name)}-{secrets.token_hex(4)}{SUFFIX}")


def _create(target: Path) -> tuple[Path, BinaryIO]:
    while True:
        partial = _partial_of(target)
        stream = partial.open("xb")
        _under_way.add(partial)
        _lock(stream.fileno(), wait=True)
        if partial.exists():  # no sweep came between the two
            return partial, stream
        stream.close()


def _create_folder(target: Path) -> tuple[Path, int | None]:
    while True:
        partial = _partial_of(target)
        partial.mkdir()
        _under_way.add(partial)
        handle = _locked(partial, wait=True)
        if partial.exists():
            return partial, handle


def _locked(path: Path, *, wait: bool) -> int | None:
    """Lock a file or folder until its handle is closed, or the process ends in whatever way."""
    with suppress(OSError):  # it has gone, or may not be opened
        handle = os.open(path, os.O_RDONLY)
        if _lock(handle, wait=wait):
            return handle
        os.close(handle)
    return None


def _is_locked(path: Path) -> bool:
    """Tell whether a living process holds the lock; where there are no locks, none does."""
    with suppress(OSError):  # it has gone, or may not be opened
        handle = os.open(path, os.O_RDONLY)
        try:
            if sys.platform != "win32":
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
    return False


def _lock(handle: int, *, wait: bool) -> bool:
    if sys.platform == "win32":  # no such locks
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # its writer lives, or the file system has no locks
        return False
    return True


def _remove(partial: Path, target: Path) -> None:
    """Remove a partial file or folder; what it had moved aside comes back."""
    if not partial.is_dir():
        partial.unlink(missing_ok=True)
        return
    if (partial / "old").exists() and not target.exists():
        if len(os.fsencode(target.name)) >= LONGEST_NAME:  # perhaps not its whole name
            return
        os.rename(partial / "old", target)
    shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Let what a disk refuses be an OSError that names the target, whichever library met it."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.filename:
            ours = SUFFIX in os.fsdecode(error.filename)  # else it is of what is read meanwhile
            number = error.errno if ours else None
        else:
            number = _disk_error_of(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(target)) from error


def _disk_error_of(error: BaseException) -> int | None:
    """Return the number of the disk's refusal behind an exception, if there is one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in DISK_ERRORS:
            return seen.errno
        if (found := RUST_OS_ERROR.search(str(seen))) and int(found[1]) in DISK_ERRORS:
            return int(found[1])
        seen = seen.__cause__ or seen.__context__
    return None


def check_replaceable(output: Path, flag: str, is_own: Callable[[str], bool]) -> None:
    """See that what stands where a user wants a file is one that the same verb wrote, or empty.

    Args:
        output: The file to be.
        flag: Its flag.
        is_own: Tells it by the first mebibyte of its text.

    Raises:
        UsageError: If it holds something else, which would be lost.
    """
    if not output.is_file():  # opening a pipe would wait for its other end
        return
    try:
        with output.open("rb") as stream:
            beginning = stream.read(1 << 20).decode(errors="replace")
        own = not beginning or is_own(beginning)
    except PermissionError:  # a file of somebody else's, in a folder of the user's
        own = False
    if not own:
        raise UsageError(
            f"{flag} {output}: it holds something else, which would be lost. Give another name, or "
            "remove it."
        )
