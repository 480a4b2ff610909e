"""The folder of an export: which may be written, and how an earlier one is known."""

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpt2_lightning.errors import UsageError
from gpt2_lightning.untrusted import misfit, read_json

RECORD = "export.json"
AUTHOR = "gpt2_lightning export"


def export_folder(name: str, *, overwrite: bool) -> Path:
    """Return the folder that ``--to`` names, if nothing of the user's would be lost there.

    An earlier export carries a record of its files. It may be replaced while it holds them as
    they were written, and no others.

    Args:
        name: The folder.
        overwrite: Replace an earlier export.

    Raises:
        UsageError: If it may not be written.
    """
    folder = Path(name).expanduser().resolve()
    if Path.cwd().is_relative_to(folder):  # a shell would be left in a folder that is gone
        raise UsageError(f"--to {name}: it is the folder you are in. Give one in it.")
    if not folder.exists():
        above = next(parent for parent in folder.parents if parent.exists())
        if not above.is_dir():
            raise UsageError(f"--to {name}: {above} is a file. Choose another folder.")
        return folder
    if not folder.is_dir():
        raise UsageError(f"--to {name}: it is a file. Give a folder that is not there yet.")
    if not any(folder.iterdir()):
        return folder
    record = _record(folder)
    if record is None:
        raise UsageError(
            f"--to {name}: it holds files that no export wrote. Give a folder that is not there "
            "yet."
        )
    if not overwrite:
        raise UsageError(
            f"--to {name}: an earlier export is there. Add --overwrite true to replace it, or give "
            "a folder that is not there yet."
        )
    if theirs := _not_of(folder, record):
        raise UsageError(
            f"--to {name}: since its export {', '.join(theirs[:3])}"
            f"{f' and {len(theirs) - 3} more' if len(theirs) > 3 else ''} came or changed, and "
            "would be lost. Move that away, or give a folder that is not there yet."
        )
    return folder


def write_record(folder: Path, about: dict[str, Any]) -> None:
    """Write, as the last file, what wrote the folder and the SHA-256 of every other file.

    Args:
        folder: The folder.
        about: What else to tell, in plain values.
    """
    try:
        ours: str | None = version("gpt2-lightning")
    except PackageNotFoundError:  # run from its folder, not installed
        ours = None
    files = {file.name: _sha256(file) for file in sorted(folder.iterdir())}
    record = {"written_by": AUTHOR, "version": ours, **about, "sha256": files}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _record(folder: Path) -> dict[str, str] | None:
    """Return an earlier export's files and their hashes; None if the folder is no export."""
    try:
        record = read_json(folder / RECORD)
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("written_by") != AUTHOR:
        return None
    files = record.get("sha256")
    return files if isinstance(files, dict) and misfit(files, {"*": str}) is None else None


def _not_of(folder: Path, record: dict[str, str]) -> list[str]:
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.name != RECORD
        and (not entry.is_file() or _sha256(entry) != record.get(entry.name))
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
