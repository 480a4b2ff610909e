"""What a folder is, whether it is complete, and which flags use it."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

from gpt2_lightning.errors import UsageError
from gpt2_lightning.fetching.data_check import check_data, looks_like_data
from gpt2_lightning.fetching.model_check import check_model, looks_like_model
from gpt2_lightning.untrusted import is_inside

DEEPEST = 4  # folders below the one that was named: a cache's models--X/snapshots/COMMIT, and one


@dataclass
class Finding:
    """What a folder was found to be.

    Attributes:
        kind: A model, or data.
        lines: What it is, to be shown.
        warnings: What its user should know although it can be used.
        flags: Those that use it, an alternative in each.
    """

    kind: str
    lines: list[str]
    flags: list[str]
    warnings: list[str] = field(default_factory=list)


def check_folder(name: str) -> Finding:
    """Find out what a folder is, however it was obtained.

    Known are model folders, data as files or in the Hub's layout, the Hub's cache, folders that a
    client, git or an archive left, and the same with another folder around them.

    Raises:
        UsageError: If it cannot be used; the message says why, and what would help.
    """
    folder = Path(name).expanduser()
    if not folder.exists():
        raise UsageError(f"--check {name}: there is no such folder.")
    if not folder.is_dir():
        if zipfile.is_zipfile(folder):
            raise UsageError(
                f"--check {name}: it is an archive. Unpack it first: "
                f"python -m zipfile -e {name} {folder.stem}"
            )
        raise UsageError(
            f"--check {name}: it is a file. Give a folder; a file of text needs no check: "
            f"--data.source {name}."
        )
    if models := _find(folder, looks_like_model):
        return _model(folder, models)
    if data := _find(folder, looks_like_data):
        return _data(folder, data)
    names = sorted(path.name for path in folder.iterdir())
    held = ", ".join(names[:8]) + (" and more" if len(names) > 8 else "") if names else "nothing"
    raise UsageError(
        f"--check {name}: neither a model (config.json, model.safetensors, tokenizer.json) nor "
        f"data (parquet, txt, jsonl, csv, wiki.train.raw). It holds: {held}."
    )


def _model(folder: Path, found: list[Path]) -> Finding:
    if len(found) > 1:
        raise UsageError(
            f"--check {folder}: there are several models in it. Check one: "
            + " or ".join(f"--check {place}" for place in found[:5])
            + "."
        )
    (place,) = found
    lines, warnings = check_model(place)
    return Finding("model", lines, [f"--model.pretrained {quote(str(place))}"], warnings)


def _data(folder: Path, found: list[Path]) -> Finding:
    lines: list[str] = []
    warnings: list[str] = []
    flags: list[str] = []
    for place in found:
        root = next(it for it in (place, *place.parents) if it == folder or _is_snapshot(it))
        told, worries = check_data(place, root)
        lines += told
        warnings += worries
        inside = place != root
        flags.append(
            f"--data.source {quote(str(place.parent))} --data.subset {quote(place.name)}"
            if inside
            else f"--data.source {quote(str(place))}"
        )
    first = f"{folder}: data{'' if warnings else ', complete'}."
    return Finding("data", [first, *lines], flags, warnings)


def _find(folder: Path, looks_like_it: Callable[[Path], bool]) -> list[Path]:
    """Return the folders nearest below that look like it, all of the same depth."""
    level = [folder]
    for _ in range(DEEPEST + 1):
        if found := [place for place in level if looks_like_it(place)]:
            return found
        level = [inner for place in level for inner in _folders(place)]
    return []


def _folders(place: Path) -> list[Path]:
    if (place / "snapshots").is_dir():
        return [_current(place)]
    return [
        path for path in sorted(place.iterdir()) if path.is_dir() and not path.name.startswith(".")
    ]


def _current(repository: Path) -> Path:
    """Return the snapshot that a cached repository's main branch stands for, else the newest."""
    for branch in ("main", "master"):
        ref = repository / "refs" / branch
        if ref.is_file():
            name = ref.read_text(encoding="utf-8", errors="replace").strip()
            commit = repository / "snapshots" / name
            if is_inside(repository / "snapshots", name) and commit.is_dir():
                return commit
    snapshots = [path for path in (repository / "snapshots").iterdir() if path.is_dir()]
    return max(snapshots, key=lambda path: path.stat().st_mtime, default=repository / "refs")


def _is_snapshot(folder: Path) -> bool:
    return folder.parent.name == "snapshots"
