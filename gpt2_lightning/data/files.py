"""Local files and folders: which files are read, which split each belongs to, what is left out."""

import difflib
import glob
import logging
import os
import re
import shlex
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from gpt2_lightning.data.arrow import open_saved
from gpt2_lightning.data.articles import (
    SPLIT_NAMES,
    DocumentsName,
    Row,
    Rows,
    SourceFile,
    SplitName,
    counted,
    log_splits,
)
from gpt2_lightning.data.readers import (
    ABOUT,
    ARCHIVES,
    COMPRESSIONS,
    OTHER_DOCUMENTS,
    DataFile,
    check_column,
    is_data,
    naming_damage,
    read_file,
    suffixes_of,
)
from gpt2_lightning.errors import UsageError

log = logging.getLogger(__name__)

SHARD = re.compile(r"(?P<split>[\w.-]+?)-(?P<index>\d+)-of-(?P<total>\d+)\.parquet", re.IGNORECASE)

PART = re.compile(r"\d*|(part|shard|split|set|v)\d*|of|[0-9a-f]{16,}")  # of a name, without meaning

ORDER: tuple[SplitName, ...] = ("train", "validation", "test")


@dataclass
class FolderContent:
    """What a folder holds.

    Attributes:
        files: Files that can be read, in the order of their names.
        left_out: The names of all others, by the reason.
    """

    files: list[DataFile] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, name: str, reason: str) -> None:
        """Note a file that is not read."""
        self.left_out.setdefault(reason, []).append(name)


def open_path(
    path: Path,
    subset: str | None,
    text_column: str,
    *,
    documents: DocumentsName = "file",
    held_out: dict[SplitName, str] | None = None,
) -> dict[SplitName, Rows]:
    """Find the splits of a file, or of a folder in any layout that is known.

    Folders called train, valid (validation, val, dev) and test are the splits. Elsewhere the file
    names decide, in lower case and cut at ``. _ -`` and blanks: the first or last word names the
    split, parts and shards (``part1``, ``00000-of-00002``) ignored. This holds if all names have
    a split, and the rest of a held-out name is empty or is also the rest of a training name
    (``poems_train.txt``, ``poems_test.txt``). If no name says validation or test, all is training
    text. Anything else is refused, with the flags that decide.

    Args:
        path: The file or folder.
        subset: A folder inside ``path``; not used, with a note, if ``path`` itself holds data.
        text_column: The column that holds the text, in parquet, jsonl, json, csv and tsv files.
        documents: Whether a text file, or each of its lines, is a document.
        held_out: Paths of splits that flags give, whatever their names; ``none`` for a split to
            be held out of the training text.

    Raises:
        UsageError: If nothing can be read, or the names are ambiguous.
    """
    held_out = held_out or {}
    if subset is not None:
        if (path / subset).is_dir():
            return open_path(
                path / subset, None, text_column, documents=documents, held_out=held_out
            )
        if path.is_dir() and not _holds_data(path):
            raise UsageError(
                f"--data.subset {subset}: there is no folder of that name in {path}, which "
                f"holds: {_content(path)}."
            )
        log.info("%s holds its data itself: --data.subset %s is not used.", path, subset)
    if path.is_dir() and _is_saved(path):
        return open_saved(path, text_column, held_out)
    if path.is_dir() and not _holds_data(path) and (subsets := _subsets(path)):
        if len(subsets) > 1:
            raise UsageError(
                f"--data.source {path}: this folder has several subsets. "
                f"Choose one: {' or '.join(f'--data.subset {name}' for name in subsets)}."
            )
        return open_path(
            path / subsets[0], None, text_column, documents=documents, held_out=held_out
        )
    found = _find(path, "--data.source")
    given = {flag_of(split): name for split, name in held_out.items() if name != "none"}
    own = {_key(file) for flag, name in given.items() for file in _files_of(flag, name)}
    files = [file for file in found.files if _key(file) not in own]
    if not found.files:
        raise UsageError(
            f"--data.source {path}: there are no data files in it. It holds: {_content(path)}. "
            "Files that can be read: *.txt, *.md, *.jsonl, *.json, *.csv, *.tsv, also compressed "
            "(.gz, .bz2, .xz, .zst, .zip), *.parquet, wiki.train.raw or wiki.train.tokens, "
            "or a folder written by datasets' save_to_disk."
        )
    if not files:
        raise UsageError(
            f"--data.source {path}: all of it is held out by --data.validation_source or "
            "--data.test_source. Give training text."
        )
    if all(file.path.stat().st_size == 0 for file in files):
        what = "the file is" if path.is_file() else "all its files are"
        raise UsageError(f"--data.source {path}: {what} empty. Give training text.")
    whole = (
        path.is_file() and not found.files[0].member
    )  # one file has one split, whatever its name
    splits: dict[SplitName, list[DataFile]]
    splits = {"train": files} if whole else _by_split(path, files, found, held_out)
    for of_split in splits.values():
        _check_shards(of_split)
    described = {name: counted([file.name for file in of], "file") for name, of in splits.items()}
    log_splits(path, described, found.left_out)
    formats = {file.format for of in splits.values() for file in of}
    if formats == {"text"}:
        warn_unused("text_column", text_column, f"{path} holds no table")
    elif "text" not in formats:
        warn_unused("documents", documents, f"{path} holds tables, each row a document")
    return {
        name: rows_of_files(splits[name], text_column, documents)
        for name in ORDER
        if name in splits
    }


def warn_unused(flag: str, value: str | None, reason: str) -> None:
    """Say of a setting of the text, unless it is its default, that it is not used.

    Args:
        flag: Its name.
        value: What it is.
        reason: Why.
    """
    if value not in (None, "file", "text"):  # of --data.documents, --data.text_column
        log.warning("--data.%s %s is not used: %s.", flag, value, reason)


def open_held_out(
    flag: str, name: str, text_column: str, documents: DocumentsName = "file"
) -> Rows:
    """Open all files of a path or pattern as the rows of one split.

    Args:
        flag: The flag that named it, for messages.
        name: A file, a folder, or a pattern such as ``data/*_test.txt``.
        text_column: The column that holds the text, in tables.
        documents: Whether a text file, or each of its lines, is a document.

    Raises:
        UsageError: If it does not exist, or nothing in it can be read.
    """
    files = _files_of(flag, name)
    if not files:
        raise _no_text(flag, name)
    log.info("%s %s: %s.", flag, name, counted([file.name for file in files], "file"))
    return rows_of_files(files, text_column, documents)


def rows_of_files(
    files: Iterable[DataFile], text_column: str, documents: DocumentsName = "file"
) -> Rows:
    """Return the rows of all files, in order; raise UsageError if a table lacks the column."""
    files = tuple(files)
    for file in files:
        check_column(file, text_column)

    def read() -> Iterator[Row]:
        for file in files:
            yield from read_file(file, text_column, documents)

    identity = " ".join(file.identity(text_column, documents) for file in files)
    return Rows(read, tuple(dict.fromkeys(SourceFile(file.path) for file in files)), identity)


def flag_of(split: SplitName) -> str:
    """Return the flag that names a held-out split's file."""
    return f"--data.{split}_source"


def locate_held_out(flag: str, name: str, source: str, subset: str | None = None) -> str:
    """Return the path of a held-out split: as it is given, or inside the source's folder.

    Args:
        flag: The flag that named it, for messages.
        name: A file, a folder, or a pattern; ``none`` stays as it is.
        source: The training text.
        subset: A folder inside it, which is searched first.

    Raises:
        UsageError: If nothing has that name.
    """
    given = Path(name).expanduser()
    if name == "none" or given.exists() or glob.glob(str(given), recursive=True):
        return name
    folder = Path(source).expanduser()
    for place in dict.fromkeys((folder / (subset or ""), folder)):
        if (place / name).exists():
            return str(place / name)
        pattern = str(Path(glob.escape(str(place)), name))
        if place.is_dir() and glob.glob(pattern, recursive=True):
            return pattern
    nor = f", nor in --data.source {source}" if folder.is_dir() else ""
    raise _no_text(flag, name, nor, _closest_name(given.name, folder))


def _closest_name(name: str, source: Path) -> Path | None:
    """Return the file of the source, or beside it, with the most similar name."""
    if not source.exists():  # on the Hub, or built in
        return None
    places = source.rglob("*") if source.is_dir() else source.parent.glob("*")
    files = {file.name: file for file in sorted(places) if file.is_file() and file != source}
    close = difflib.get_close_matches(name, files, n=1)
    return files[close[0]] if close else None


def _no_text(flag: str, name: str, nor: str = "", meant: Path | None = None) -> UsageError:
    hint = f"Did you mean {flag} {shlex.quote(str(meant))}? " if meant else ""
    return UsageError(
        f"{flag} {name}: no text file was found there{nor}. {hint}Give a file, a folder or a "
        "pattern, or none to hold out a part of the training text."
    )


def _files_of(flag: str, name: str) -> list[DataFile]:
    """Return the files of a path or, if it does not exist, of a pattern."""
    path = Path(name).expanduser()
    paths = [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))
    return [file for one in paths for file in _find(one, flag).files]


def _key(file: DataFile) -> tuple[Path, str | None]:
    return file.path.resolve(), file.member


def _find(path: Path, flag: str) -> FolderContent:
    """Find the files below a path, in the same order on every machine.

    Hidden files are skipped. Links are followed, to each folder once. Folders of runs, models and
    token caches are left out: their samples and lists are no corpus.
    """
    found = FolderContent()
    if path.is_file():
        _add(path, path.name, found, flag, named=True)
        return found
    seen = {path.resolve()}
    for folder, inner, names in os.walk(path, followlinks=True):
        kept = []
        for name in sorted(inner):
            real = Path(folder, name).resolve()
            if name.startswith("."):
                continue
            if real in seen:
                found.leave_out(
                    Path(folder, name).relative_to(path).as_posix(), "links to a folder read before"
                )
                continue
            seen.add(real)
            if made_by_us := _kind_of_output(real):
                found.leave_out(Path(folder, name).relative_to(path).as_posix(), made_by_us)
                continue
            kept.append(name)
        inner[:] = kept
        for name in names:
            if not name.startswith("."):
                file = Path(folder, name)
                name_inside = file.relative_to(path).as_posix()
                _add(file, name_inside, found, flag, named=False)
    found.files.sort(key=lambda file: file.name)
    about = {file.name for file in found.files if ABOUT.fullmatch(PurePosixPath(file.name).name)}
    if len(about) < len(found.files):  # a README is text only if there is no other
        for name in sorted(about):
            found.leave_out(name, "about the text")
        found.files = [file for file in found.files if file.name not in about]
    return found


def _kind_of_output(folder: Path) -> str:
    """Return the kind of a folder whose files are no corpus; empty for any other folder."""

    def holds(*names: str) -> bool:
        return all((folder / name).exists() for name in names)

    if folder.name == "lightning_logs" or holds("config.yaml", "facts.json"):
        return "runs"
    if holds("config.yaml", "checkpoints") or holds("config.yaml", "hf"):
        return "runs"
    if holds("tokenizer_config.json") or holds("config.json", "vocab.json"):
        return "models"
    return "token cache" if holds("manifest.json", "ids.bin") else ""


def _add(file: Path, name: str, found: FolderContent, flag: str, *, named: bool) -> None:
    """Add a file to those that are read, or to those that are left out.

    Args:
        file: The file.
        name: Below the folder that is read.
        found: Where it is added.
        flag: Which gave the file or its folder, for messages.
        named: Whether it gave the file itself, which then is text whatever its suffix.

    Raises:
        UsageError: If a file that was named cannot be read, or an archive is damaged or unsafe.
    """
    suffix = file.suffix.lower()
    inner = PurePosixPath(file.stem.lower()).suffix
    if not file.is_file():
        found.leave_out(name, "a link to nowhere" if file.is_symlink() else "no file")
    elif suffix == ".zip":
        _add_archive(file, name, found, flag)
    elif suffixes_of(file.name):
        found.files.append(DataFile(file, name))
    elif suffix in ARCHIVES or inner == ".tar" or suffix in COMPRESSIONS:
        if named:
            raise UsageError(
                f"{flag} {file}: archives of this kind are not read. Unpack it first; .txt.gz, "
                ".jsonl.zst, .zip and the like are read as they are."
            )
        found.leave_out(name, "unpack it first")
    elif named:
        if suffix in OTHER_DOCUMENTS - {".html", ".htm"}:
            raise UsageError(
                f"{flag} {file}: {suffix} holds no plain text. Save it as .txt or .csv."
            )
        found.files.append(DataFile(file, name))
    elif suffix in OTHER_DOCUMENTS:
        found.leave_out(name, "no plain text")
    else:
        found.leave_out(
            name, "about the text" if ABOUT.fullmatch(file.name) else "not known as text"
        )


def _add_archive(file: Path, name: str, found: FolderContent, flag: str) -> None:
    with naming_damage(DataFile(file, name)), zipfile.ZipFile(file) as archive:
        members = [inner for inner in archive.namelist() if not inner.endswith("/")]
    for inner in members:
        parts = PurePosixPath(inner.replace("\\", "/")).parts
        if ".." in parts or inner.startswith(("/", "\\")):
            raise UsageError(
                f"{flag} {file}: the archive holds {inner!r}, a path that leads out of it, as no "
                "honest archive does. Nothing of it was read. If you trust it, unpack it and give "
                "the folder."
            )
    before = len(found.files)
    for inner in sorted(members):
        parts = PurePosixPath(inner).parts
        if not parts or any(part.startswith(".") for part in parts) or parts[0] == "__MACOSX":
            continue
        if suffixes_of(inner) and not inner.lower().endswith(".parquet"):
            # an archive of one file is that file; one of several is like a folder
            found.files.append(
                DataFile(file, f"{name}/{inner}" if len(members) > 1 else name, inner)
            )
        else:
            found.leave_out(f"{name}/{inner}", "unpack the archive to read it")
    if len(found.files) == before:
        raise UsageError(
            f"{flag} {file}: no file in this archive can be read. Unpack it, and give the folder."
        )


def _is_saved(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _holds_data(folder: Path) -> bool:
    """Return whether a folder has data of its own, not counting subsets inside."""
    if not folder.is_dir():
        return folder.is_file()
    return _is_saved(folder) or any(
        is_data(file.name) and not file.name.startswith(".")
        for file in folder.iterdir()
        if file.is_file()
    )


def _subsets(folder: Path) -> list[str]:
    """Return the folders inside that have splits of their own, as the Hub's subsets do."""
    inner = [it for it in sorted(folder.iterdir()) if it.is_dir() and not it.name.startswith(".")]
    if any(it.name.lower() in SPLIT_NAMES for it in inner):
        return []
    return [it.name for it in inner if _is_saved(it) or _has_splits(it)]


def _has_splits(folder: Path) -> bool:
    for inner in folder.iterdir():
        known = inner.name.lower() in SPLIT_NAMES if inner.is_dir() else is_data(inner.name)
        if known and (inner.is_dir() or _split_of(inner.name)[0] is not None):
            return True
    return False


def _split_of(name: str) -> tuple[SplitName | None, str]:
    """Return the split in a file's name, None if there is none, and the rest of the name."""
    stem = PurePosixPath(name).name.lower()
    stem = stem.removesuffix(".zip")
    stem = stem.removesuffix(suffixes_of(stem))
    words = [word for word in re.split(r"[\W_]+", stem) if not PART.fullmatch(word)]
    bare = [re.sub(r"\d+$", "", word) for word in words]
    for place in (0, len(words) - 1) if words else ():
        if bare[place] in SPLIT_NAMES:
            return SPLIT_NAMES[bare[place]], " ".join(words[:place] + words[place + 1 :])
    return None, " ".join(words)


def _by_split(
    path: Path, files: list[DataFile], found: FolderContent, held_out: dict[SplitName, str]
) -> dict[SplitName, list[DataFile]]:
    """Sort files by split: by the names of their folders, or else by their own.

    Raises:
        UsageError: If the names are ambiguous.
    """
    splits: dict[SplitName, list[DataFile]] = {}
    tops = [SPLIT_NAMES.get(_top_folder(file)) for file in files]
    said = [(split, "") for split in tops]
    by_folder = "train" in tops or (any(tops) and None not in tops)
    if not by_folder:
        said = [
            (SPLIT_NAMES[_top_folder(file)], "a folder") if top else _split_of(file.name)
            for file, top in zip(files, tops, strict=True)
        ]
    free = {name for name, given in held_out.items() if given == "none"}
    if not by_folder:
        free |= held_out.keys() if not _names_agree(said) else set()
        said = [(None, rest) if split in free else (split, rest) for split, rest in said]
        if any(split not in (None, "train") for split, _ in said) and not _names_agree(said):
            raise _ambiguous(path, files, said)
    for file, (split, _) in zip(files, said, strict=True):
        if by_folder and split is None:
            found.leave_out(file.name, "beside the folders of the splits")
        elif split in held_out and split not in free:
            found.leave_out(file.name, f"--data.{split}_source is given")
        else:
            name = "train" if split is None or split in free else split
            splits.setdefault(name, []).append(file)
    return splits


def _ambiguous(
    path: Path, files: list[DataFile], said: list[tuple[SplitName | None, str]]
) -> UsageError:
    """Return the error for files that may be a held-out split or training text, with both flags."""
    apart: dict[SplitName, list[DataFile]] = {}
    trained_on = {rest for split, rest in said if split == "train"}
    others = []
    for file, (split, rest) in zip(files, said, strict=True):
        if split in ("validation", "test"):
            apart.setdefault(split, []).append(file)
        elif split is None or rest not in trained_on:
            others.append(file.name)
    named = [file.name for of in apart.values() for file in of]
    one, both = len(named) == 1, len(apart) > 1
    like = f"{' and '.join(apart)} text" if both else f"{next(iter(apart))} text"
    why = "no file is named like training text of the same kind"
    if others and trained_on:
        why = f"{counted(others, 'file')} {'is' if len(others) == 1 else 'are'} named otherwise"
    paths = {
        split: shlex.quote(str(of[0].path)) if len(of) == 1 and not of[0].member else "PATH"
        for split, of in apart.items()
    }
    hold_out = " ".join(f"{flag_of(split)} {where}" for split, where in paths.items())
    none = " ".join(f"{flag_of(split)} none" for split in apart)
    return UsageError(
        f"--data.source {path}: {'is' if one else 'are'} {counted(named, 'file')} training text, "
        f"or held out? {'It is' if one else 'They are'} named like {like}, but {why}. To hold "
        f"{'it' if one else 'them'} out: {hold_out} (a file, a folder or a pattern). To train on "
        f"{'it' if one else 'them'}: {none} (a part of all the text is held out instead)."
    )


def _top_folder(file: DataFile) -> str:
    parts = PurePosixPath(file.name).parts
    if file.member and len(parts) > 2 and parts[0].lower().endswith(".zip"):
        parts = parts[1:]
    return parts[0].lower() if len(parts) > 1 else ""


def _names_agree(said: list[tuple[SplitName | None, str]]) -> bool:
    """Return whether all names have a split, and held-out ones have a training text's name."""
    train = {rest for split, rest in said if split == "train"}
    others = {rest for split, rest in said if split not in (None, "train")}
    alike = others <= train | {""} if train else len(others) == 1
    return all(split is not None for split, _ in said) and alike


def _check_shards(files: list[DataFile]) -> None:
    """Raise UsageError if a parquet shard is missing."""
    by_name: dict[tuple[Path, str], list[re.Match[str]]] = {}
    for file in files:
        if shard := SHARD.fullmatch(file.path.name):
            by_name.setdefault((file.path.parent, shard["split"]), []).append(shard)
    for (folder, split), shards in by_name.items():
        total = int(shards[0]["total"])
        missing = set(range(total)) - {int(shard["index"]) for shard in shards}
        if missing or any(int(shard["total"]) != total for shard in shards):
            names = ", ".join(
                f"{split}-{index:05}-of-{total:05}.parquet" for index in sorted(missing)
            )
            raise UsageError(
                f"--data.source {folder}: there are {len(shards)} of {total} parquet files of the "
                f"{split} split. " + (f"Missing: {names}." if missing else "Their totals differ.")
            )


def first_names(names: Iterable[str], most: int = 8) -> str:
    """Return the first of some names, sorted, and the number of the others."""
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more or "nothing"


def _content(folder: Path) -> str:
    return first_names(inner.name for inner in folder.iterdir() if not inner.name.startswith("."))
