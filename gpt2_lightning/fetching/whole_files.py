"""Files that only look like content: pointers of git LFS, links to nowhere, damaged content."""

import re
from pathlib import Path

from gpt2_lightning.errors import UsageError
from gpt2_lightning.fetching.content import git_sha1_of, sha256_of
from gpt2_lightning.fetching.manifest import read_manifest

POINTER = b"version https://git-lfs.github.com/spec/"
LONGEST_POINTER = 1024  # bytes, as git LFS has it
SHA256, SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


def visible_files(folder: Path) -> list[Path]:
    """Return the files at any depth, links to nowhere included, but no hidden ones."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if (path.is_file() or path.is_symlink())
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def check_content(folder: Path, files: list[Path]) -> list[str]:
    """See that files hold content, and the content that is known to belong there.

    Returns:
        The names of those whose hash is known, and right.

    Raises:
        UsageError: If one is a pointer, a link to nowhere, or has another hash.
    """
    pointers = [file for file in files if is_pointer(file)]
    if pointers:
        raise UsageError(
            f"--check {folder}: {_names(folder, pointers)} {_is(pointers)} of git LFS instead of "
            "content: it was cloned without LFS, or downloaded as a raw page. Run git lfs pull "
            "there, or fetch it with: python -m gpt2_lightning fetch."
        )
    lost = [file for file in files if file.is_symlink() and not file.exists()]
    if lost:
        raise UsageError(
            f"--check {folder}: {_names(folder, lost)} leads to {lost[0].readlink()}, which is not "
            "there: of a cache, only the links were copied. Copy the whole models--... or "
            "datasets--... folder, or follow the links: cp -rL."
        )
    known = [name for file in files if (name := _verified(folder, file))]
    return known


def is_pointer(file: Path) -> bool:
    """Tell whether a file is git LFS' note of a content that is elsewhere."""
    if not file.is_file() or file.stat().st_size > LONGEST_POINTER:
        return False
    return file.read_bytes().startswith(POINTER)


def _verified(folder: Path, file: Path) -> str | None:
    """Return a file's name if the hub's hash of it is known from its download."""
    wanted = _promised(folder, file)
    if wanted is None:
        return None
    if (SHA1.fullmatch(wanted) and git_sha1_of(file) != wanted) or (
        SHA256.fullmatch(wanted) and sha256_of(file) != wanted
    ):
        raise UsageError(
            f"--check {folder}: {file.relative_to(folder)} is damaged or was changed: its hash is "
            "not the one that was written down when it was downloaded. Fetch it again."
        )
    return file.relative_to(folder).as_posix()


def _promised(folder: Path, file: Path) -> str | None:
    """Return what hash a file should have, by what downloaded it.

    Ours writes a manifest. The Hub's client, downloading into a folder, leaves a note below
    .cache/huggingface; in its cache, files are links to content that is named by its hash.
    """
    name = file.relative_to(folder).as_posix()
    if (manifest := read_manifest(folder)) is not None:
        return manifest.sha256.get(name)
    note = folder / ".cache/huggingface/download" / f"{name}.metadata"
    try:
        words = [note.read_text(encoding="utf-8").split()[1]] if note.is_file() else []
    except (OSError, ValueError, IndexError):
        words = []
    if file.is_symlink() and file.resolve().parent.name == "blobs":
        words.append(file.resolve().name)
    for word in words:
        if SHA256.fullmatch(word) or SHA1.fullmatch(word):
            return word
    return None


def _names(folder: Path, files: list[Path]) -> str:
    first = ", ".join(str(file.relative_to(folder)) for file in files[:3])
    return first + (f" and {len(files) - 3} more" if len(files) > 3 else "")


def _is(files: list[Path]) -> str:
    return "is a pointer" if len(files) == 1 else "are pointers"
