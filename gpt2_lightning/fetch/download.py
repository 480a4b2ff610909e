"""Downloads files into a folder that appears when it is complete, with a manifest of its files."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2
from filelock import FileLock, Timeout

from gpt2_lightning import __version__
from gpt2_lightning.errors import UsageError
from gpt2_lightning.fetch.hubs import Kind, Listing, RemoteFile, RepoRef
from gpt2_lightning.fetch.transfer import (
    difference_from_listing,
    download,
    megabytes,
    open_client,
    progress,
    sha256_of,
    with_retries,
)
from gpt2_lightning.storage import disk_message, flush_file, flush_folder, flush_tree, write_text
from gpt2_lightning.untrusted import misfit, read_json

NAME = ".fetch.json"  # hidden: another .json would be read as data

AUTHOR = "gpt2_lightning fetch"

# the types of the manifest's values, as `misfit` takes them
FORM = {
    **dict.fromkeys(("kind", "name", "hub", "endpoint", "revision", "commit"), str),
    "subsets": [str],
    "sha256": {"*": str},
    "size": {"*": int},
}

SPARE = 50_000_000  # bytes that stay free on the disk


@dataclass(frozen=True)
class Manifest:
    """The origin and the files of a fetched folder.

    Attributes:
        kind: ``model`` or ``data``.
        name: ORG/NAME in the hub.
        hub: ``hub`` or ``modelscope``.
        endpoint: Its address.
        revision: The value of ``--revision``.
        commit: The commit of that revision.
        subsets: Of the data; empty if it has no name, or all files were downloaded.
        everything: Whether all files were downloaded.
        sha256: Of each file, by its path, in hexadecimal.
        size: Of each file, in bytes.
    """

    kind: Kind
    name: str
    hub: str
    endpoint: str
    revision: str | None
    commit: str
    subsets: list[str]
    everything: bool
    sha256: dict[str, str]
    size: dict[str, int]

    def differs_from(self, repo: RepoRef, subset: str | None, everything: bool) -> str | None:
        """Return how the folder differs from what is requested; None if it does not."""
        if (self.kind, self.name, self.hub) != (repo.kind, repo.name, repo.hub):
            return f"{self.kind} {self.name} from {self.hub}"
        if repo.revision not in (None, self.revision, self.commit):
            return f"revision {self.revision or 'of the main branch'} ({self.commit[:12]})"
        if everything and not self.everything:
            return "fewer files, without --all"
        if subset is not None and not self.subsets and not self.everything:
            return "without --subset"
        return None

    def lacks(self, subset: str | None) -> bool:
        """Return whether the folder has subsets, and not this one."""
        return bool(subset and self.subsets and subset not in self.subsets and not self.everything)

    def damaged(self, folder: Path) -> list[str]:
        """Return the files that are missing or have another size."""
        return [
            name
            for name, size in self.size.items()
            if not (folder / name).is_file() or (folder / name).stat().st_size != size
        ]


def write_manifest(
    folder: Path,
    repo: RepoRef,
    commit: str,
    subset: str | None,
    *,
    everything: bool,
    earlier: Manifest | None = None,
) -> Manifest:
    """Write the manifest of a folder, with the hash of each file in it.

    Args:
        folder: The folder with the files.
        repo: Their repository.
        commit: The commit of its revision.
        subset: Of the data.
        everything: Whether all files were downloaded.
        earlier: The manifest of the folder that they will be added to.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != NAME)
    paths = {file.relative_to(folder).as_posix(): file for file in files}
    manifest = Manifest(
        kind=repo.kind,
        name=repo.name,
        hub=repo.hub,
        endpoint=repo.endpoint,
        revision=earlier.revision if earlier else repo.revision,
        commit=commit,
        subsets=[*(earlier.subsets if earlier else []), *([subset] if subset else [])],
        everything=everything,
        sha256=(earlier.sha256 if earlier else {})
        | {name: sha256_of(file) for name, file in paths.items()},
        size=(earlier.size if earlier else {})
        | {name: file.stat().st_size for name, file in paths.items()},
    )
    about = {"written_by": AUTHOR, "version": __version__, **asdict(manifest)}
    (folder / NAME).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """Return a folder's manifest; None if `fetch` did not write the folder."""
    try:
        about = read_json(folder / NAME)
        if about.pop("written_by") != AUTHOR or misfit(about, FORM) is not None:
            return None
        del about["version"]
        return Manifest(**about)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


class WorkFolder:
    """A transfer in progress: ``.NAME.fetching`` beside the target folder, on the same disk.

    Unlike the temporary folder of `whole_folder` it stays when the process ends, so that the next
    one resumes the transfer.

    Attributes:
        files: Folder of complete files.
        parts: Folder of incomplete files.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.folder = target.parent / f".{target.name}.fetching"
        self.files = self.folder / "files"
        self.parts = self.folder / "parts"

    @contextmanager
    def open(self) -> Iterator[None]:
        """Lock the folder for this process.

        Raises:
            UsageError: If another process has locked it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(
                f"--to {self.target}: another fetch is writing it. Wait until it ends, or choose "
                "another folder."
            ) from None
        try:
            yield
        finally:
            lock.release()
            if not self.folder.exists() or not (self.files.exists() or self.parts.exists()):
                shutil.rmtree(self.folder, ignore_errors=True)

    def keep_only(self, transfer: dict[str, Any]) -> None:
        """Keep the files of the same transfer; delete those of another.

        Args:
            transfer: What identifies the transfer, in plain values.
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
        """Return the path of an incomplete file."""
        return self.parts / path.replace("/", "%2F")

    def kept(self) -> int:
        """Return the bytes on the disk."""
        found = [*self.files.rglob("*"), *self.parts.rglob("*")]
        return sum(file.stat().st_size for file in found if file.is_file())

    def put(self, part: Path, path: str) -> None:
        """Move a complete file to its place in ``files``."""
        whole = self.files / path
        whole.parent.mkdir(parents=True, exist_ok=True)
        flush_file(part)  # the next process takes every file in `files` as complete
        os.replace(part, whole)
        flush_folder(whole.parent)

    def finish(self) -> None:
        """Move the complete folder to the target."""
        if self.target.is_dir():  # empty, or it would have been refused
            self.target.rmdir()
        flush_tree(self.files)
        os.rename(self.files, self.target)
        flush_folder(self.target.parent)
        self.clear()

    def finish_inside(self, inner: str) -> None:
        """Move one complete folder, and the manifest beside it, into the target."""
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
        """Delete all files of the transfer."""
        for folder in (self.files, self.parts):
            shutil.rmtree(folder, ignore_errors=True)
        (self.folder / "transfer.json").unlink(missing_ok=True)


def target_folder(to: str) -> Path:
    """Return the folder that ``--to`` names.

    Raises:
        UsageError: If there is a file of that name.
    """
    folder = Path(to).expanduser().resolve()
    above = next(place for place in (folder, *folder.parents) if place.exists())
    if not above.is_dir():
        raise UsageError(f"--to {to}: {above} is a file. Choose another folder.")
    return folder


def already_there(
    folder: Path, repo: RepoRef, subset: str | None, *, everything: bool
) -> Manifest | None:
    """Return the manifest of the requested folder if it exists; no hub is asked.

    Returns:
        Its manifest, perhaps without the subset; None if the folder does not exist yet.

    Raises:
        UsageError: If it contains something else.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    manifest = read_manifest(folder)
    if manifest is None:
        raise UsageError(
            f"--to {folder}: it contains files that fetch did not write. fetch --check {folder} "
            "says whether they can be used; or give a folder that does not exist yet."
        )
    if other := manifest.differs_from(repo, subset, everything):
        raise UsageError(
            f"--to {folder}: it was fetched as something else ({other}). Give another folder, or "
            "move this one away."
        )
    if damaged := manifest.damaged(folder):
        raise UsageError(
            f"--to {folder}: since it was fetched, {', '.join(damaged[:3])} changed or was "
            "deleted. Move the folder away and fetch it again."
        )
    if manifest.lacks(subset) and (folder / str(subset)).exists():
        raise UsageError(
            f"--to {folder}: its {subset} was not fetched with it. Move that away, or give another "
            "folder."
        )
    return manifest


def fetch_folder(
    target: Path,
    repo: RepoRef,
    subset: str | None,
    *,
    everything: bool,
    choose: Callable[[Listing], list[RemoteFile]],
    finish: Callable[[Path], None],
    extra: Callable[[list[RemoteFile]], int] = lambda files: 0,
    earlier: Manifest | None = None,
) -> Manifest:
    """Download a folder; it appears when every file in it is what the hub lists.

    Args:
        target: The folder to create.
        repo: The repository.
        subset: Of the data.
        everything: Whether all files are downloaded.
        choose: Selects the files to download.
        finish: Called with the folder of complete files before it is moved to the target.
        extra: Returns the bytes that ``finish`` needs.
        earlier: Manifest of the existing folder; the subset is added to it.

    Raises:
        UsageError: If the hub refuses, a file is not what it lists, or the disk is too small.
    """
    from gpt2_lightning.fetch.hubs import list_hub, list_modelscope

    with open_client(repo) as client:
        if repo.hub == "modelscope":
            listing = with_retries(lambda: list_modelscope(repo, client), repo)
        else:
            listing = with_retries(lambda: list_hub(repo), repo)
        # the small ones first: a wrong file is found before the large ones are downloaded
        files = sorted(choose(listing), key=lambda file: file.size or 0)
        work = WorkFolder(target)
        try:
            with work.open():
                work.keep_only(_transfer(listing, files))
                _check_disk(target, files, work, extra(files))
                with progress() as begin:
                    for file in files:
                        if not (work.files / file.path).is_file():
                            _fetch_file(listing, file, work, client, begin(file))
                try:
                    finish(work.files)
                except UsageError:  # the files are complete, and would be the same again
                    work.clear()
                    raise
                manifest = write_manifest(
                    work.files,
                    repo,
                    listing.commit,
                    subset,
                    everything=everything,
                    earlier=earlier,
                )
                if earlier is None:
                    work.finish()
                else:
                    work.finish_inside(str(subset))
        except OSError as error:
            raise UsageError(f"--to {disk_message(error, target)}") from error
    return manifest


def _transfer(listing: Listing, files: list[RemoteFile]) -> dict[str, object]:
    repo = listing.repo
    listed = [[file.path, file.size, file.sha256, file.git_sha1] for file in files]
    return {"kind": repo.kind, "name": repo.name, "commit": listing.commit, "files": listed}


def _check_disk(target: Path, files: list[RemoteFile], work: WorkFolder, extra: int) -> None:
    needed = sum(file.size or 0 for file in files) + extra - work.kept()
    free = shutil.disk_usage(work.folder).free
    if free < needed + SPARE:
        if work.kept() == 0:
            work.clear()
        raise UsageError(
            f"--to {target}: {megabytes(needed)} are needed, and {megabytes(SPARE)} to spare; "
            f"{megabytes(free)} are free on that disk. Free some space, or choose another disk."
        )


def _fetch_file(
    listing: Listing,
    file: RemoteFile,
    work: WorkFolder,
    client: httpx2.Client,
    show: Callable[[int], None],
) -> None:
    part = work.part(file.path)
    resumed = part.exists()
    download(client, listing, file, part, show)
    wrong = difference_from_listing(part, file)
    if wrong and resumed:  # the first part may be of another file
        part.unlink()
        download(client, listing, file, part, show)
        wrong = difference_from_listing(part, file)
    if wrong:
        work.clear()
        raise UsageError(
            f"{listing.repo.label}: {file.path} arrived damaged ({wrong}). It was deleted. "
            f"Try again, or another --endpoint than {listing.repo.endpoint}."
        )
    work.put(part, file.path)
