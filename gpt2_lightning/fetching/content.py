"""Whether a file holds what its hub says it holds."""

import hashlib
from pathlib import Path

from gpt2_lightning.fetching.listing import RemoteFile


def what_differs(path: Path, file: RemoteFile) -> str | None:
    """Return how a file's content differs from what its hub lists; None where it does not."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"{size:,} bytes instead of {file.size:,}"
    for name, wanted, found in (
        ("sha256", file.sha256, sha256_of),
        ("git hash", file.git_sha1, git_sha1_of),
    ):
        if wanted is not None and (here := found(path)) != wanted:
            return f"its {name} is {here[:12]}..., not {wanted[:12]}..."
    return None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def git_sha1_of(path: Path) -> str:
    r"""Return the name git gives a file's content: SHA-1 of ``blob SIZE\0`` and the content."""
    total = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            total.update(piece)
    return total.hexdigest()
