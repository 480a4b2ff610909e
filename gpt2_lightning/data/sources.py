"""Where rows come from: the built-in corpus, local files and folders, or the Hub."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from gpt2_lightning.data.builtin import BUILTIN_VERSION, builtin_rows
from gpt2_lightning.errors import UsageError

SplitName = Literal["train", "validation", "test"]

# What people call their splits -> what we call them.
SPLIT_NAMES: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
TEXT_SUFFIXES = {".txt", ".raw", ".tokens"}  # .raw and .tokens: the original WikiText archives
TABLE_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
SHARD = re.compile(r"(?P<split>[\w.]+?)-(?P<index>\d+)-of-(?P<total>\d+)\.parquet")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
ROWS_PER_READ = 1000


class Row(NamedTuple):
    """One row of text, and whether a document begins with it."""

    text: str
    begins: bool


@dataclass(frozen=True)
class Rows:
    """The rows of one split: read from the start at each iteration, never held in memory.

    Attributes:
        read: Yields the rows in order.
        files: The files the rows are read from; their content identifies the split.
        identity: Whatever else shapes the rows (a column's name, a version).
    """

    read: Callable[[], Iterator[Row]]
    files: tuple[Path, ...] = ()
    identity: str = ""

    def __iter__(self) -> Iterator[Row]:
        return self.read()

    def digest(self) -> str:
        """Return the SHA-256 of the files' content and the identity, in hexadecimal."""
        total = hashlib.sha256(self.identity.encode())
        for file in self.files:
            with file.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
        return total.hexdigest()


def open_source(
    source: str,
    *,
    subset: str | None = None,
    revision: str | None = None,
    text_column: str = "text",
) -> dict[SplitName, Rows]:
    """Find the splits of a source.

    Args:
        source: ``builtin``, the path of a file or folder, or a Hub id such as
            ``Salesforce/wikitext``.
        subset: Folder below ``source``, or configuration on the Hub.
        revision: Branch, tag or commit on the Hub.
        text_column: The column that holds the text, in parquet, jsonl and csv files.

    Returns:
        The rows of every split that the source has.

    Raises:
        UsageError: If there is no such source, or nothing in it that can be read.
    """
    if source == "builtin":
        try:
            rows = builtin_rows()
        except ValueError as error:
            raise UsageError(f"--data.source builtin: {error}") from error
        return {SPLIT_NAMES[name]: _rows_in_memory(text) for name, text in rows.items()}
    path = Path(source).expanduser()
    if path.exists():
        return _open_local(path / subset if subset else path, text_column)
    if HUB_ID.fullmatch(source) and path.suffix not in TEXT_SUFFIXES | TABLE_BUILDERS.keys():
        return _open_hub(source, subset, revision, text_column)
    raise UsageError(
        f"--data.source {source}: there is no such file or folder. Give a path that exists, "
        "a Hub id such as Salesforce/wikitext, or builtin."
    )


def _rows_in_memory(texts: list[str]) -> Rows:
    identity = f"builtin {BUILTIN_VERSION} " + hashlib.sha256("".join(texts).encode()).hexdigest()
    return Rows(lambda: (Row(text, index == 0) for index, text in enumerate(texts)), (), identity)


def _open_local(path: Path, text_column: str) -> dict[SplitName, Rows]:
    if path.is_file():
        return {"train": _rows_of_files((path,), text_column)}
    if not path.is_dir():
        raise UsageError(
            f"--data.subset {path.name}: there is no folder of that name in {path.parent}, "
            f"which holds: {_listing(path.parent)}."
        )
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _open_saved(path, text_column)
    if files := _files_by_split(path):
        return {split: _rows_of_files(found, text_column) for split, found in files.items()}
    if subsets := [inner.name for inner in sorted(path.iterdir()) if _holds_data(inner)]:
        raise UsageError(
            f"--data.source {path}: this folder has several subsets. "
            f"Choose one: {' or '.join(f'--data.subset {name}' for name in subsets)}."
        )
    raise UsageError(
        f"--data.source {path}: no data files in this folder. It holds: {_listing(path)}. Files "
        "that can be read: *.parquet, *.txt, *.jsonl, *.csv, wiki.train.raw or wiki.train.tokens, "
        "or a folder written by datasets' save_to_disk."
    )


def _listing(folder: Path, most: int = 8) -> str:
    names = sorted(inner.name for inner in folder.iterdir() if not inner.name.startswith("."))
    if not names:
        return "nothing"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _holds_data(path: Path) -> bool:
    return path.is_dir() and (
        (path / "dataset_dict.json").is_file()
        or (path / "state.json").is_file()
        or bool(_files_by_split(path))
    )


def _files_by_split(folder: Path) -> dict[SplitName, tuple[Path, ...]]:
    """Sort a folder's data files by split: by their names, and by ``train`` where they tell none.

    Raises:
        UsageError: If one of a split's N parquet shards is missing.
    """
    found: dict[SplitName, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        if not file.is_file() or file.name.startswith("."):
            continue
        if file.suffix in TEXT_SUFFIXES | TABLE_BUILDERS.keys():
            words = re.split(r"[._-]", file.name)
            # wiki.train.raw, train.txt, train-00000-of-00001.parquet
            named = words[1] if words[0] == "wiki" else words[0]
            found.setdefault(SPLIT_NAMES.get(named, "train"), []).append(file)
    for files in found.values():
        _check_shards(files)
    return {split: tuple(files) for split, files in found.items()}


def _check_shards(files: list[Path]) -> None:
    shards = [match for file in files if (match := SHARD.fullmatch(file.name))]
    if not shards:
        return
    split, total = shards[0]["split"], int(shards[0]["total"])
    missing = set(range(total)) - {int(shard["index"]) for shard in shards}
    if missing or any(int(shard["total"]) != total for shard in shards):
        names = ", ".join(f"{split}-{index:05}-of-{total:05}.parquet" for index in sorted(missing))
        raise UsageError(
            f"--data.source {files[0].parent}: {len(shards)} parquet files of the {split} split, "
            f"which has {total}. " + (f"Missing: {names}." if missing else "Their totals differ.")
        )


def _rows_of_files(files: tuple[Path, ...], text_column: str) -> Rows:
    def read() -> Iterator[Row]:
        for file in files:
            if file.suffix in TABLE_BUILDERS:
                yield from _read_table(file, text_column)
            else:
                yield from _read_text(file)

    if any(file.suffix in TABLE_BUILDERS for file in files):
        _check_column(files, text_column)
    identity = " ".join(f"{file.suffix} {text_column}" for file in files)
    return Rows(read, files, identity)


def _read_text(file: Path) -> Iterator[Row]:
    """Yield a file's lines; the file is one document.

    Line ends of Windows become newlines and a byte-order mark is dropped.
    """
    offset = 0
    with file.open("rb") as stream:
        for line in stream:
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UsageError(
                    f"{file}: not UTF-8 at byte {offset + error.start} "
                    f"(0x{line[error.start]:02x}). Convert the file, for example with "
                    f"iconv -f GB18030 -t UTF-8, or iconv -f LATIN1 -t UTF-8."
                ) from error
            if offset == 0:
                text = text.removeprefix("\ufeff")
            if text.endswith("\r\n"):
                text = text[:-2] + "\n"
            yield Row(text, begins=offset == 0)
            offset += len(line)


def _read_table(file: Path, text_column: str) -> Iterator[Row]:
    """Yield a column's values; every row is a document."""
    with _naming_damage(file):
        for batch in _stream(file).iter(batch_size=ROWS_PER_READ):
            yield from _rows_of_column(batch[text_column], text_column, file)


def _rows_of_column(values: Iterable[Any], text_column: str, file: Path) -> Iterator[Row]:
    for value in values:
        if value is None:
            value = ""
        if not isinstance(value, str):
            raise UsageError(
                f"--data.text_column {text_column}: the column holds {type(value).__name__} "
                f"in {file}, not text."
            )
        yield Row(value, begins=True)


def _stream(file: Path) -> Any:
    """Open one file as a stream of `datasets`, which reads it piece by piece."""
    from datasets import load_dataset

    return load_dataset(
        TABLE_BUILDERS[file.suffix], data_files=str(file), split="train", streaming=True
    )


def _check_column(files: tuple[Path, ...], text_column: str) -> None:
    for file in files:
        if file.suffix in TABLE_BUILDERS:
            with _naming_damage(file):
                first = next(iter(_stream(file)), None)
            if first is not None and text_column not in first:
                raise UsageError(
                    f"--data.text_column {text_column}: {file} has no such column. "
                    f"It has: {', '.join(first)}."
                )


@contextmanager
def _naming_damage(file: Path) -> Iterator[None]:
    """Turn a reader's error into one message that names the file and the root cause."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        root: BaseException = error
        # datasets says only "error occurred while generating"; what happened is in the cause
        while (deeper := root.__cause__ or root.__context__) is not None:
            root = deeper
        reason = " ".join(str(root).split()) or type(root).__name__
        raise UsageError(
            f"{file}: cannot be read as {file.suffix[1:]} ({reason}). "
            "The file may be damaged or cut short: fetch it again."
        ) from error


def _open_saved(path: Path, text_column: str) -> dict[SplitName, Rows]:
    """Open a folder written by ``save_to_disk`` of `datasets`."""
    from datasets import Dataset, DatasetDict, load_from_disk

    loaded = load_from_disk(str(path))
    splits = loaded if isinstance(loaded, DatasetDict) else {"train": cast(Dataset, loaded)}
    return _rows_of_datasets(splits, text_column, path)


def _open_hub(
    source: str, subset: str | None, revision: str | None, text_column: str
) -> dict[SplitName, Rows]:
    from datasets import DatasetDict, load_dataset

    try:
        loaded = load_dataset(source, subset, revision=revision)
    except Exception as error:
        text = str(error)
        if "Config name is missing" in text or "BuilderConfig" in text:
            advice = "Choose one with --data.subset."
        else:
            advice = (
                "Check the name; behind a slow or filtered network set the environment variable "
                "HF_ENDPOINT to a mirror (https://hf-mirror.com, say), or give the path of a "
                "local folder. With HF_HUB_OFFLINE=1 only what is cached is found."
            )
        raise UsageError(
            f"--data.source {source}: not a local path, and the Hub did not give it: "
            f"{' '.join(text.split())} {advice}"
        ) from error
    assert isinstance(loaded, DatasetDict)  # no split was asked for, so all come
    return _rows_of_datasets(loaded, text_column, Path(source))


def _rows_of_datasets(
    splits: dict[str, Any], text_column: str, path: Path
) -> dict[SplitName, Rows]:
    found: dict[SplitName, Rows] = {}
    for name, dataset in splits.items():
        if name not in SPLIT_NAMES:
            continue
        if text_column not in dataset.column_names:
            raise UsageError(
                f"--data.text_column {text_column}: {path} has no such column. "
                f"It has: {', '.join(dataset.column_names)}."
            )

        def read(dataset: Any = dataset) -> Iterator[Row]:
            for batch in dataset.iter(batch_size=ROWS_PER_READ):
                yield from _rows_of_column(batch[text_column], text_column, path)

        files = tuple(Path(entry["filename"]) for entry in dataset.cache_files)
        found[SPLIT_NAMES[name]] = Rows(read, files, f"arrow {text_column}")
    if not found:
        raise UsageError(
            f"--data.source {path}: splits {', '.join(splits)}, none of which is called train, "
            "validation or test."
        )
    return found
