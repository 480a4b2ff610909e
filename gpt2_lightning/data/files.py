"""Local files and folders: parquet in the Hub's layout, WikiText's archives, txt, jsonl, csv."""

import codecs
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet

from gpt2_lightning.data.arrow import ROWS_PER_READ, open_saved, rows_of_column
from gpt2_lightning.data.rows import SPLIT_NAMES, Row, Rows, SplitName
from gpt2_lightning.errors import UsageError

TEXT_SUFFIXES = {".txt", ".raw", ".tokens"}  # .raw and .tokens: the original WikiText archives
# what people take for text; words are inside, but not as plain text
OTHER_DOCUMENTS = {".pdf", ".doc", ".docx", ".odt", ".rtf", ".epub", ".html", ".htm"}
TABLE_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
READ_AT_ONCE = 1 << 20  # bytes of a parquet file; its columns, unless told, are read whole
SHARD = re.compile(r"(?P<split>[\w.]+?)-(?P<index>\d+)-of-(?P<total>\d+)\.parquet")


log = logging.getLogger(__name__)


def open_path(path: Path, subset: str | None, text_column: str) -> dict[SplitName, Rows]:
    """Find the splits of a file, or of a folder in any layout that is known.

    Args:
        path: The file or folder.
        subset: A folder inside ``path``; said to be unused where ``path`` itself holds data.
        text_column: The column that holds the text, in parquet, jsonl and csv files.

    Raises:
        UsageError: If there is nothing that can be read.
    """
    if subset is not None:
        if (path / subset).is_dir():
            return open_path(path / subset, None, text_column)
        if path.is_dir() and not _holds_data(path):
            raise UsageError(
                f"--data.subset {subset}: there is no folder of that name in {path}, which "
                f"holds: {_listing(path)}."
            )
        log.info("%s holds its data itself: --data.subset %s is not used.", path, subset)
    if path.is_file():
        return {"train": _rows_of_files((path,), text_column)}
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return open_saved(path, text_column)
    if files := _files_by_split(path):
        _tell_of_others(path)
        return {split: _rows_of_files(found, text_column) for split, found in files.items()}
    subsets = [inner.name for inner in sorted(path.iterdir()) if _holds_data(inner)]
    if len(subsets) == 1:
        return open_path(path / subsets[0], None, text_column)
    if subsets:
        raise UsageError(
            f"--data.source {path}: this folder has several subsets. "
            f"Choose one: {' or '.join(f'--data.subset {name}' for name in subsets)}."
        )
    raise UsageError(
        f"--data.source {path}: no data files in this folder. It holds: {_listing(path)}. Files "
        "that can be read: *.parquet, *.txt, *.jsonl, *.csv, wiki.train.raw or wiki.train.tokens, "
        "or a folder written by datasets' save_to_disk."
    )


def _tell_of_others(folder: Path) -> None:
    """Say which documents of a folder are none of the formats that are read."""
    others = [
        file.name for file in sorted(folder.iterdir()) if file.suffix.lower() in OTHER_DOCUMENTS
    ]
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        log.warning(
            "%s: not read, since they hold no plain text: %s%s.",
            folder,
            ", ".join(others[:3]),
            more,
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
                    f"(0x{line[error.start]:02x}). {_remedy(file)}"
                ) from error
            if offset == 0:
                text = text.removeprefix("\ufeff")
            if text.endswith("\r\n"):
                text = text[:-2] + "\n"
            yield Row(text, begins=offset == 0)
            offset += len(line)


def _remedy(file: Path) -> str:
    with file.open("rb") as stream:
        beginning = stream.read(512)
    if beginning.startswith(b"%PDF"):
        return "It is a PDF: take the text out of it, for example with pdftotext."
    if beginning[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "It is UTF-16: convert it, for example with iconv -f UTF-16 -t UTF-8."
    if b"\0" in beginning:
        return "It is no text file."
    return (
        "Convert the file, for example with iconv -f GB18030 -t UTF-8, or iconv -f LATIN1 -t UTF-8."
    )


def _read_table(file: Path, text_column: str) -> Iterator[Row]:
    """Yield a column's values; every row is a document."""
    with _naming_damage(file):
        for values in _columns(file, text_column):
            yield from rows_of_column(values, text_column, file)


def _columns(file: Path, text_column: str) -> Iterator[list[Any]]:
    """Yield a column's values, some at a time."""
    if file.suffix == ".parquet":
        # not through datasets, which holds a row group at a time: often that is the whole file
        options = {"pre_buffer": False, "buffer_size": READ_AT_ONCE}
        with pyarrow.parquet.ParquetFile(file, **options) as table:
            for batch in table.iter_batches(ROWS_PER_READ, columns=[text_column]):
                yield batch.column(0).to_pylist()
        return
    for batch in _stream(file).iter(batch_size=ROWS_PER_READ):
        yield batch[text_column]


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
                names = _column_names(file)
            if names and text_column not in names:
                raise UsageError(
                    f"--data.text_column {text_column}: {file} has no such column. "
                    f"It has: {', '.join(names)}."
                )


def _column_names(file: Path) -> list[str]:
    """Return a table's columns; none where it has no rows to tell them."""
    if file.suffix == ".parquet":
        names: list[str] = pyarrow.parquet.read_schema(file).names
        return names
    return list(next(iter(_stream(file)), ()))


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
