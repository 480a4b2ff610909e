"""What a repository holds, as its hub lists it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from gpt2_lightning.errors import UsageError
from gpt2_lightning.fetching.asked import Asked


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository.

    Attributes:
        path: Inside the repository, with slashes.
        url: Where its content is.
        size: Bytes; null where the hub does not say.
        sha256: Of its content, in hexadecimal, where the hub knows it.
        git_sha1: Git's own hash of it (of a header and its content), where the hub knows that.
    """

    path: str
    url: str
    size: int | None
    sha256: str | None = None
    git_sha1: str | None = None


@dataclass(frozen=True)
class Listing:
    """A repository at one commit.

    Attributes:
        asked: What was asked for.
        commit: What the revision stands for; the revision itself where the hub does not say.
        files: All files.
        headers: To be sent with every request for one.
    """

    asked: Asked
    commit: str
    files: tuple[RemoteFile, ...]
    headers: Mapping[str, str]


def safe_path(path: str, asked: Asked) -> str:
    """Return a listed path if it stays inside the folder that it is put into.

    Raises:
        UsageError: If it points out of it, which no honest hub lists.
    """
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or ":" in parts[0]:
        raise UsageError(
            f"{asked.said}: {asked.where} lists a file {path!r}, which would be written outside "
            "the folder. Nothing was written; use another --endpoint."
        )
    return path
