"""The hidden folder in which a transfer grows, until it takes its place as a whole."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gpt2_lightning.errors import UsageError
from gpt2_lightning.storage import flush_file, flush_folder, flush_tree, write_text
from gpt2_lightning.untrusted import read_json


class WorkFolder:
    """A transfer under way: ``.NAME.fetching`` beside the folder to be, on the same disk.

    Unlike in that of `whole_folder`, what is in it stays when the process ends, so that the next
    one goes on from there.

    Attributes:
        files: Where the files are put.
        parts: Where they are while they are incomplete.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.folder = target.parent / f".{target.name}.fetching"
        self.files = self.folder / "files"
        self.parts = self.folder / "parts"

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold the folder for this process alone.

        Raises:
            UsageError: If another process holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(
                f"--to {self.target}: another fetch is writing it. Wait for its end, or choose "
                "another folder."
            ) from None
        try:
            yield
        finally:
            lock.release()
            if not self.folder.exists() or not (self.files.exists() or self.parts.exists()):
                shutil.rmtree(self.folder, ignore_errors=True)

    def keep_only(self, transfer: dict[str, Any]) -> None:
        """Keep what is there if it is of the same transfer, else begin anew.

        Args:
            transfer: What tells one from another, in plain values.
        """
        note = self.folder / "transfer.json"
        with suppress(OSError, ValueError):
            if read_json(note) == transfer:
                return
        self.clear()
        self.files.mkdir()
        self.parts.mkdir()
        write_text(note, json.dumps(transfer))

    def part(self, path: str) -> Path:
        """Return where an incomplete file is kept."""
        return self.parts / path.replace("/", "%2F")

    def kept(self) -> int:
        """Return the bytes that are there."""
        found = [*self.files.rglob("*"), *self.parts.rglob("*")]
        return sum(file.stat().st_size for file in found if file.is_file())

    def put(self, part: Path, path: str) -> None:
        """Move a file that is complete to where it belongs."""
        whole = self.files / path
        whole.parent.mkdir(parents=True, exist_ok=True)
        flush_file(part)  # the next process takes for whole what lies there
        os.replace(part, whole)
        flush_folder(whole.parent)

    def finish(self) -> None:
        """Let the files take their place as a whole."""
        if self.target.is_dir():  # empty, or it would have been refused
            self.target.rmdir()
        flush_tree(self.files)
        os.rename(self.files, self.target)
        flush_folder(self.target.parent)
        self.clear()

    def finish_inside(self, inner: str) -> None:
        """Let one folder of the files, and the notes beside it, go into the target as a whole."""
        place = self.target / inner
        place.parent.mkdir(parents=True, exist_ok=True)
        flush_tree(self.files)
        os.rename(self.files / inner, place)
        flush_folder(place.parent)
        for note in self.files.glob(".*"):
            os.replace(note, self.target / note.name)
        flush_folder(self.target)
        self.clear()

    def clear(self) -> None:
        """Remove all that is there."""
        for folder in (self.files, self.parts):
            shutil.rmtree(folder, ignore_errors=True)
        (self.folder / "transfer.json").unlink(missing_ok=True)
