"""Checks what a folder is, whether its model or data is complete, and which flags use it."""

import hashlib
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

from gpt2_lightning.data.articles import RAW_SHA256, ROWS, Rows, SplitName, as_articles
from gpt2_lightning.data.files import first_names, open_path
from gpt2_lightning.data.readers import is_data
from gpt2_lightning.errors import UsageError
from gpt2_lightning.fetch.download import read_manifest
from gpt2_lightning.fetch.transfer import git_sha1_of, megabytes, sha256_of
from gpt2_lightning.fetch.wanted import TOKENIZER
from gpt2_lightning.pretrained import (
    ADAPTER,
    AGAIN,
    INDEX,
    PICKLED,
    WHOLE,
    check_files,
    check_weights,
    weight_files,
    what_tokenizer_lacks,
)
from gpt2_lightning.untrusted import is_inside

POINTER = b"version https://git-lfs.github.com/spec/"

LONGEST_POINTER = 1024  # bytes, as git LFS has it

SHA256, SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")

RAW, TOKENIZED = "wikitext-2-raw-v1", "wikitext-2-v1"  # the subsets' names on the Hub
ORDER: tuple[SplitName, ...] = ("train", "validation", "test")
SAVED = ("dataset_dict.json", "state.json")  # of a folder that save_to_disk wrote
DEEPEST = 4  # folders below the one that was named: a cache's models--X/snapshots/COMMIT, and one


@dataclass
class Finding:
    """The result of a check.

    Attributes:
        kind: ``model`` or ``data``.
        lines: The description to print.
        flags: Flags that use the folder; each entry is an alternative.
        warnings: Problems that do not prevent its use.
    """

    kind: str
    lines: list[str]
    flags: list[str]
    warnings: list[str] = field(default_factory=list)


def check_folder(name: str) -> Finding:
    """Check a folder, however it was obtained.

    Supported are model folders, data as files or in the Hub's layout, the Hub's cache, folders made
    by a client, git or an archive, and the same inside another folder.

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
    raise UsageError(
        f"--check {name}: neither a model (config.json, model.safetensors, tokenizer.json) nor "
        f"data (parquet, txt, jsonl, csv, wiki.train.raw). It holds: "
        f"{first_names(path.name for path in folder.iterdir())}."
    )


def _model(folder: Path, found: list[Path]) -> Finding:
    if len(found) > 1:
        raise UsageError(
            f"--check {folder}: it contains several models. Check one: "
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
        found_lines, found_warnings = check_data(place, root)
        lines += found_lines
        warnings += found_warnings
        inside = place != root
        flags.append(
            f"--data.source {quote(str(place.parent))} --data.subset {quote(place.name)}"
            if inside
            else f"--data.source {quote(str(place))}"
        )
    first = f"{folder}: data{'' if warnings else ', complete'}."
    return Finding("data", [first, *lines], flags, warnings)


def _find(folder: Path, looks_like_it: Callable[[Path], bool]) -> list[Path]:
    """Return the matching folders of the least depth."""
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
    """Return the snapshot of a cached repository's main branch, else the newest one."""
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


def looks_like_model(folder: Path) -> bool:
    """Return whether a folder holds a model, or a part of one."""
    names = {"config.json", WHOLE, WHOLE + INDEX, PICKLED, PICKLED + INDEX, "tokenizer.json"}
    names.add(ADAPTER)
    return any((folder / name).is_file() or (folder / name).is_symlink() for name in names)


def check_model(folder: Path) -> tuple[list[str], list[str]]:
    """Check that a folder is a complete model.

    Args:
        folder: The folder.

    Returns:
        Lines that describe it, and warnings.

    Raises:
        UsageError: If something is missing, cut short, damaged, or does not fit the rest.
    """
    from gpt2_lightning.data.tokenizer import load_tokenizer
    from gpt2_lightning.model.gpt2 import count_parameters, positions_of

    said = f"--check {folder}"
    files = [
        path
        for path in sorted(folder.iterdir())
        if (path.is_file() or path.is_symlink()) and not path.name.startswith(".")
    ]
    verified = check_content(folder, files)
    check_files(folder, said)
    model = check_weights(folder, said)
    if not any((folder / name).is_file() for name in TOKENIZER if name != "tokenizer_config.json"):
        raise UsageError(
            f"{said}: the tokenizer is missing: there is no tokenizer.json, nor vocab.json and "
            f"merges.txt. {AGAIN} The weights can be used with another tokenizer: "
            "--data.tokenizer openai-community/gpt2, say."
        )
    tokenizer = load_tokenizer(str(folder), flag="--check")
    tokens, vocabulary = len(tokenizer), int(model.config.vocab_size)
    if tokens > vocabulary:
        raise UsageError(
            f"{said}: the tokenizer has {tokens:,} tokens and the model {vocabulary:,}: it belongs "
            f"to another model. {AGAIN}"
        )
    lacking = what_tokenizer_lacks(tokenizer, model.config)
    weights = weight_files(folder, said)
    hashed = all(file.name in verified for file in weights)
    size = megabytes(sum(file.stat().st_size for file in weights))
    lines = [
        f"{folder}: a model{'' if lacking else ', complete'}.",
        f"  type        {model.config.model_type}, {count_parameters(model):,} parameters, "
        f"{positions_of(model):,} positions",
        f"  weights     {len(weights)} file{'s' * (len(weights) > 1)}, {size}"
        + (", hashes as when downloaded" if hashed else ""),
        f"  tokenizer   {tokens:,} tokens",
    ]
    return lines, [f"{folder}: {lacking}. {AGAIN}"] if lacking else []


def looks_like_data(folder: Path) -> bool:
    """Return whether a folder holds data files, not counting those in its subfolders."""
    return any((folder / name).is_file() for name in SAVED) or any(
        is_data(path.name) and not path.name.startswith(".")
        for path in folder.iterdir()
        if path.is_file() or path.is_symlink()
    )


def check_data(folder: Path, root: Path) -> tuple[list[str], list[str]]:
    """Read a folder's data to its end.

    Args:
        folder: The data.
        root: The fetched folder that contains it, or the same.

    Returns:
        Lines that describe it, and warnings.

    Raises:
        UsageError: If something is missing, cut short or damaged.
    """
    inside = [path for path in visible_files(root) if path.is_relative_to(folder)]
    verified = check_content(root, inside)
    try:
        found = open_path(folder, None, "text")
        splits = {name: read_split(found[name]) for name in ORDER if name in found}
    except UsageError as error:
        raise UsageError(f"--check {folder}: {error}") from error
    counts = ", ".join(f"{name} {text.rows:,} rows" for name, text in splits.items())
    verdict, wrong = compare_with_wikitext2(splits, folder.name)
    lines = [f"  {folder.name}: {counts}"]
    if verdict:
        lines.append(f"    {verdict}")
    if verified and len(verified) == len(inside):
        lines.append("    hashes as when downloaded")
    warnings = [f"{folder.name}: {verdict}."] if verdict and wrong else []
    if "train" not in splits:
        warnings.append(
            f"{folder.name}: there is no train split. It can be used to evaluate, not to train."
        )
    if not any(text.rows for text in splits.values()):
        raise UsageError(f"--check {folder}: its files hold no text. Fetch it again.")
    return lines, warnings


@dataclass(frozen=True)
class SplitText:
    """A split's text.

    Attributes:
        rows: Number of rows.
        sha256: Of the original text in UTF-8, blank rows restored, in hexadecimal.
    """

    rows: int
    sha256: str


def read_split(rows: Rows) -> SplitText:
    """Read a split to its end, as articles."""
    total, count = hashlib.sha256(), 0
    for row in as_articles(rows):
        total.update(row.text.encode())
        count += 1
    return SplitText(count, total.hexdigest())


def compare_with_wikitext2(
    splits: Mapping[SplitName, SplitText], subset: str | None
) -> tuple[str | None, bool]:
    """Compare a text with WikiText-2 as it was published.

    Args:
        splits: Its splits.
        subset: The text's name, if it has one.

    Returns:
        The verdict in words, None if there is nothing to compare; and whether the text is another
        than its name says.
    """
    raw = [name for name, text in splits.items() if text.sha256 == RAW_SHA256[name]]
    if raw and len(raw) == len(splits):
        return "the official WikiText-2, raw, by the SHA-256 of each split", False
    if subset == RAW:
        wrong = next(name for name in splits if name not in raw)
        return (
            f"NOT the official {RAW}: {_rows(wrong, splits[wrong])}its text differs. Its "
            "figures cannot be compared with published ones",
            True,
        )
    if subset == TOKENIZED:
        for name, text in splits.items():
            if text.rows != ROWS[name]:
                return f"NOT the official {TOKENIZED}: {_rows(name, text).rstrip('; ')}", True
        return "as many rows as the official WikiText-2, rare words as <unk>", False
    return None, False


def _rows(name: SplitName, text: SplitText) -> str:
    if text.rows == ROWS[name]:
        return f"{name} has the right {text.rows:,} rows, but "
    return f"{name} has {text.rows:,} rows of {ROWS[name]:,}; "


def visible_files(folder: Path) -> list[Path]:
    """Return the files at any depth, broken links included, without hidden ones."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if (path.is_file() or path.is_symlink())
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def check_content(folder: Path, files: list[Path]) -> list[str]:
    """Check that files have their content, and the hash of their download if that is known.

    Returns:
        The names of those whose hash is known, and right.

    Raises:
        UsageError: If one is a pointer of git LFS or a broken link, or has another hash.
    """
    pointers = [file for file in files if is_pointer(file)]
    if pointers:
        raise UsageError(
            f"--check {folder}: {_names(folder, pointers)} {_is(pointers)} of git LFS instead of "
            "content: it was cloned without LFS, or downloaded as a raw page. Run git lfs pull "
            "there, or download it with: python -m gpt2_lightning fetch."
        )
    lost = [file for file in files if file.is_symlink() and not file.exists()]
    if lost:
        raise UsageError(
            f"--check {folder}: {_names(folder, lost)} is a link to {lost[0].readlink()}, which "
            "does not exist: only the links of a cache were copied. Copy the whole models--... or "
            "datasets--... folder, or follow the links: cp -rL."
        )
    known = [name for file in files if (name := _verified(folder, file))]
    return known


def is_pointer(file: Path) -> bool:
    """Return whether a file is a pointer of git LFS to content that is elsewhere."""
    if not file.is_file() or file.stat().st_size > LONGEST_POINTER:
        return False
    return file.read_bytes().startswith(POINTER)


def _verified(folder: Path, file: Path) -> str | None:
    """Return a file's name if its hash is known from its download, and right."""
    wanted = _expected_hash(folder, file)
    if wanted is None:
        return None
    if (SHA1.fullmatch(wanted) and git_sha1_of(file) != wanted) or (
        SHA256.fullmatch(wanted) and sha256_of(file) != wanted
    ):
        raise UsageError(
            f"--check {folder}: {file.relative_to(folder)} is damaged or was changed: its hash is "
            "not the one recorded when it was downloaded. Fetch it again."
        )
    return file.relative_to(folder).as_posix()


def _expected_hash(folder: Path, file: Path) -> str | None:
    """Return the hash that a file had when it was downloaded; None if that is not known.

    `fetch` writes a manifest. The Hub's client leaves a note below .cache/huggingface in a folder;
    in its cache, files are links to content that is named by its hash.
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
    return first_names((str(file.relative_to(folder)) for file in files), most=3)


def _is(files: list[Path]) -> str:
    return "is a pointer" if len(files) == 1 else "are pointers"
