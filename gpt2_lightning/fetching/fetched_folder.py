"""A folder from a hub: listed, chosen, fetched file by file, verified, and put in its place."""

import shutil
from collections.abc import Callable
from pathlib import Path

import httpx2

from gpt2_lightning.errors import UsageError
from gpt2_lightning.fetching.asked import Asked
from gpt2_lightning.fetching.content import what_differs
from gpt2_lightning.fetching.listing import Listing, RemoteFile
from gpt2_lightning.fetching.manifest import Manifest, read_manifest, write_manifest
from gpt2_lightning.fetching.progress import megabytes, progress
from gpt2_lightning.fetching.transfer import download, open_client, persist
from gpt2_lightning.fetching.work_folder import WorkFolder
from gpt2_lightning.storage import disk_message

SPARE = 50_000_000  # bytes; a disk filled to the last one is no use to anybody


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
    folder: Path, asked: Asked, subset: str | None, *, everything: bool
) -> Manifest | None:
    """Tell whether a folder is what is asked for, without asking a hub.

    Returns:
        What it was fetched as, perhaps without the subset; None if there is nothing yet.

    Raises:
        UsageError: If it holds something else.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    manifest = read_manifest(folder)
    if manifest is None:
        raise UsageError(
            f"--to {folder}: it holds files that no fetch wrote. fetch --check {folder} says "
            "whether they can be used as they are; or give a folder that is not there yet."
        )
    if other := manifest.differs_from(asked, subset, everything):
        raise UsageError(
            f"--to {folder}: it was fetched as something else ({other}). Give another folder, or "
            "move this one away."
        )
    if damaged := manifest.damaged(folder):
        raise UsageError(
            f"--to {folder}: since it was fetched, {', '.join(damaged[:3])} changed or went. Move "
            "the folder away and fetch it again."
        )
    if manifest.lacks(subset) and (folder / str(subset)).exists():
        raise UsageError(
            f"--to {folder}: its {subset} was not fetched with it. Move that away, or give another "
            "folder."
        )
    return manifest


def fetch_folder(
    target: Path,
    asked: Asked,
    subset: str | None,
    *,
    everything: bool,
    choose: Callable[[Listing], list[RemoteFile]],
    finish: Callable[[Path], None],
    extra: Callable[[list[RemoteFile]], int] = lambda files: 0,
    earlier: Manifest | None = None,
) -> Manifest:
    """Fetch a folder; it appears when every file in it is what the hub says.

    Args:
        target: The folder to be.
        asked: The repository.
        subset: Of the data.
        everything: Whether all files are taken.
        choose: Which files to take.
        finish: Is given the files, to do with them what is left before they take their place.
        extra: How many bytes that will need.
        earlier: What the folder was fetched as before; the subset is added to it.

    Raises:
        UsageError: If the hub does not give it, or not as it lists it, or the disk is too small.
    """
    from gpt2_lightning.fetching.hub import list_hub
    from gpt2_lightning.fetching.modelscope import list_modelscope

    with open_client(asked) as client:
        if asked.hub == "modelscope":
            listing = persist(lambda: list_modelscope(asked, client), asked)
        else:
            listing = persist(lambda: list_hub(asked), asked)
        # a file that is not what it should be is found before the large ones are under way
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
                except UsageError:  # they came whole, and would be the same again
                    work.clear()
                    raise
                manifest = write_manifest(
                    work.files,
                    asked,
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
    asked = listing.asked
    told = [[file.path, file.size, file.sha256, file.git_sha1] for file in files]
    return {"kind": asked.kind, "name": asked.name, "commit": listing.commit, "files": told}


def _check_disk(target: Path, files: list[RemoteFile], work: WorkFolder, extra: int) -> None:
    needed = sum(file.size or 0 for file in files) + extra - work.kept()
    free = shutil.disk_usage(work.folder).free
    if free < needed + SPARE:
        if work.kept() == 0:
            work.clear()
        raise UsageError(
            f"--to {target}: {megabytes(needed)} are needed, and {megabytes(SPARE)} to spare; "
            f"{megabytes(free)} are free on that disk. Make room, or choose a folder on another."
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
    wrong = what_differs(part, file)
    if wrong and resumed:  # what was there may have come from elsewhere
        part.unlink()
        download(client, listing, file, part, show)
        wrong = what_differs(part, file)
    if wrong:
        work.clear()
        raise UsageError(
            f"{listing.asked.said}: {file.path} came damaged ({wrong}). Nothing of it was kept. "
            f"Try again, or another --endpoint than {listing.asked.endpoint}."
        )
    work.put(part, file.path)
