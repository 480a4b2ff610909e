"""How a file is read: text, jsonl, json, csv, tsv, parquet, plain or compressed."""

import bz2
import codecs
import csv
import gzip
import json
import logging
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, cast

import pyarrow
import pyarrow.compute
import pyarrow.parquet

from gpt2_lightning.data.articles import DocumentsName, Row
from gpt2_lightning.errors import UsageError, one_line

log = logging.getLogger(__name__)

Format = Literal["text", "jsonl", "json", "csv", "tsv", "parquet"]

FORMATS: dict[str, Format] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".raw": "text",  # .raw and .tokens: the original WikiText archives
    ".tokens": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}

COMPRESSIONS = {".gz", ".bz2", ".xz", ".zst"}

# documents whose text is not stored as plain text
OTHER_DOCUMENTS = {".pdf", ".doc", ".docx", ".odt", ".rtf", ".epub", ".html", ".htm", ".xlsx"}

ARCHIVES = {".tar", ".tgz", ".7z", ".rar"}

# files beside a corpus that are no part of it
ABOUT = re.compile(
    r"(readme|licen[cs]e|copying|changelog|citation|notice|requirements)([._-].*)?|"
    r"dataset_infos?\.json|state\.json|dataset_dict\.json",
    re.IGNORECASE,
)

TABLE_VERSION = 2  # of how cells become text; raised when the text changes

ROWS_PER_READ = 1000

LONGEST_LINE = 1 << 28  # bytes; a line is held whole, and a small archive may hold an endless one

READ_AT_ONCE = 1 << 20  # bytes of a parquet file; by default pyarrow reads its columns whole

VALUES_AT_ONCE = 1 << 24  # bytes of a parquet column as text; a small file may hold terabytes

# Content beyond both bounds is one piece repeated; logs are compressed 100 to 1, at most.
LARGEST_BOMB = 1 << 28  # bytes

MOST_EXPANDED = 250  # times the file's size

ROW_COSTS = 16  # bytes counted for a row beside its text: there may be billions of empty ones

MOST_NULS = 0.1  # share of a line

LONGEST_FIELD = 2**31 - 1  # bytes of a cell, which may hold a book; the limit on Windows


@dataclass(frozen=True)
class DataFile:
    """A text file or a table, on disk or inside a zip archive.

    Attributes:
        path: Of the file, or of the archive.
        name: Relative to the folder that is read, with slashes; the path inside an archive follows.
        member: Path inside the archive; None for a file on disk.
    """

    path: Path
    name: str
    member: str | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.member}" if self.member else str(self.path)

    @cached_property  # needed at each reading, and there may be 20,000 files
    def suffixes(self) -> str:
        """The suffixes that say how it is read, in lower case: ``.txt``, ``.jsonl.gz``."""
        return suffixes_of(self.member or self.path.name)

    @property
    def format(self) -> Format:
        """Its format; a file of unknown suffix, which then was named itself, is text."""
        return FORMATS.get("." + self.suffixes.split(".")[1] if self.suffixes else "", "text")

    def identity(self, text_column: str, documents: DocumentsName) -> str:
        """Return what determines its rows beside its content."""
        if self.format == "text":
            return f"{self.suffixes or self.path.suffix} {text_column}" + (
                " lines" if documents == "line" else ""
            )
        return f"{self.suffixes} {text_column} {TABLE_VERSION}"


def suffixes_of(name: str) -> str:
    """Return a data file's suffixes, such as ``.txt.gz``; empty for other files."""
    path = PurePosixPath(name.lower())
    inner = PurePosixPath(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix
    if inner not in FORMATS or (inner == ".parquet" and path.suffix != inner):
        return ""
    return inner + (path.suffix if path.suffix in COMPRESSIONS else "")


def is_data(name: str) -> bool:
    """Return whether a file can be read, by its name, and is no README or the like."""
    if ABOUT.fullmatch(PurePosixPath(name).name):
        return False
    return bool(suffixes_of(name)) or name.lower().endswith(".zip")


def read_file(file: DataFile, text_column: str, documents: DocumentsName) -> Iterator[Row]:
    """Yield a file's rows.

    Args:
        file: The file.
        text_column: The column that holds the text, in tables.
        documents: Whether a text file, or each of its lines, is a document.

    Raises:
        UsageError: If it cannot be read; the message names the file and the place in it.
    """
    if file.format == "text":
        yield from _read_text(file, documents)
        return
    missing = rows = size = 0
    packed = file.path.stat().st_size
    with naming_damage(file):
        for value in _values(file, text_column):
            rows += 1
            missing += value is None
            for row in rows_of_column([value], text_column, file):
                size += len(row.text) + ROW_COSTS
                _check_expansion(file, packed, size)
                yield row
    if missing:
        log.warning(
            "%s: %s of %s rows have no value in --data.text_column %s; they are empty.",
            file,
            f"{missing:,}",
            f"{rows:,}",
            text_column,
        )


def check_column(file: DataFile, text_column: str) -> None:
    """Raise UsageError if a table has rows but not the column."""
    if file.format == "text":
        return
    with naming_damage(file):
        names = column_names(file)
    if names and text_column not in names:
        raise UsageError(
            f"--data.text_column {text_column}: {file} has no such column. "
            f"It has: {', '.join(names)}."
        )


def column_names(file: DataFile) -> list[str]:
    """Return a table's columns; none if it has no rows and its format no header."""
    match file.format:
        case "parquet":
            names: list[str] = pyarrow.parquet.read_schema(file.path).names
            return names
        case "csv" | "tsv":
            return next((cells for _, cells in _cells(file)), [])
        case "jsonl":
            return list(next((value for _, value in _json_lines(file)), {}))
        case "json":
            return list(next((value for _, value in _json_values(file)), {}))
        case "text":
            return []


def rows_of_column(values: Any, text_column: str, file: object) -> Iterator[Row]:
    r"""Yield a column's values as documents; null is an empty one, ``\r\n`` becomes ``\n``."""
    for value in values:
        if value is None:
            value = ""
        if not isinstance(value, str):
            raise UsageError(
                f"--data.text_column {text_column}: the column holds {type(value).__name__} "
                f"in {file}, not text."
            )
        yield Row(value.replace("\r\n", "\n"), begins=True)


def _values(file: DataFile, text_column: str) -> Iterator[Any]:
    """Yield a column's values; None where a row lacks it."""
    match file.format:
        case "parquet":
            yield from _parquet_values(file, text_column)
        case "csv" | "tsv":
            yield from _cells_of_column(file, text_column)
        case "jsonl":
            for _, value in _json_lines(file):
                yield value.get(text_column)
        case "json":
            for _, value in _json_values(file):
                yield value.get(text_column)


def _parquet_values(file: DataFile, text_column: str) -> Iterator[Any]:
    """Yield a column's values, reading a few megabytes of text at a time.

    `datasets` would hold a row group at a time, which often is the whole file.
    """
    options = {"pre_buffer": False, "buffer_size": READ_AT_ONCE}
    columns = [text_column]
    with (
        pyarrow.parquet.ParquetFile(file.path, **options) as table,
        # batches with their dictionary, which gives the length of the longest repeated value
        pyarrow.parquet.ParquetFile(file.path, **options, read_dictionary=columns) as peeked,
    ):
        read = 0
        for group in range(table.num_row_groups):
            first = next(peeked.iter_batches(1, [group], columns), None)
            if first is None:
                continue
            at_once = _rows_at_once(table.metadata.row_group(group), text_column, first.column(0))
            for batch in table.iter_batches(at_once, [group], columns):
                read += len(batch)
                yield from batch.column(0).to_pylist()
        if read != table.metadata.num_rows:
            raise ValueError(f"its header says {table.metadata.num_rows:,} rows, it has {read:,}")


def _rows_at_once(group: Any, text_column: str, first: pyarrow.Array) -> int:
    """Return how many rows of a row group to read at once.

    Args:
        group: The row group's metadata.
        text_column: The column that is read.
        first: Its first value, with the dictionary of repeated values, if it has one.
    """
    columns = (group.column(index) for index in range(group.num_columns))
    size = next(
        (it.total_uncompressed_size for it in columns if it.path_in_schema == text_column), 0
    )
    longest: int = size // max(group.num_rows, 1)  # the mean of values that do not repeat
    if pyarrow.types.is_dictionary(first.type):
        lengths = pyarrow.compute.binary_length(first.dictionary)
        longest = max(longest, pyarrow.compute.max(lengths).as_py() or 0)
    return max(1, min(ROWS_PER_READ, VALUES_AT_ONCE // max(longest, 1)))


def _check_expansion(file: DataFile, packed: int, size: int) -> None:
    """Raise UsageError if no real text is compressed so far: it would fill memory and disk.

    Args:
        file: The file.
        packed: Its size in bytes, or that of the archive that holds it.
        size: Bytes of text read from it so far.
    """
    if size > LARGEST_BOMB and size > MOST_EXPANDED * packed:
        raise UsageError(
            f"{file}: {packed:,} bytes unpack to more than {size >> 20:,} MiB, as only the same "
            "text over and over does. Nothing more of it is read. If this is intended, unpack it "
            "first."
        )


@contextmanager
def _opened(file: DataFile) -> Iterator[IO[bytes]]:
    """Open a file for reading; it is decompressed on the way."""
    with file.path.open("rb") as raw:
        if file.member is not None:
            with zipfile.ZipFile(raw) as archive, archive.open(file.member) as inner:
                yield inner
            return
        match "." + file.suffixes.rpartition(".")[2]:
            case ".gz":
                with gzip.open(raw) as stream:
                    yield cast(IO[bytes], stream)
            case ".bz2":
                with bz2.open(raw) as stream:
                    yield stream
            case ".xz":
                with lzma.open(raw) as stream:
                    yield stream
            case ".zst":
                import io

                with pyarrow.CompressedInputStream(raw, "zstd") as stream:
                    yield io.BufferedReader(stream, READ_AT_ONCE)
            case _:
                yield raw


def _lines(file: DataFile) -> Iterator[tuple[int, str]]:
    """Yield line numbers from 1 and lines with their ends, without a byte-order mark."""
    offset = 0
    packed = file.path.stat().st_size
    with naming_damage(file), _opened(file) as stream:
        for number, line in enumerate(iter(lambda: stream.readline(LONGEST_LINE + 1), b""), 1):
            if b"\0" in line and line.count(0) > MOST_NULS * len(line):
                raise UsageError(
                    f"{file}: {100 * line.count(0) / len(line):.0f} % of line {number} are NUL "
                    f"characters, so it is not text. {_remedy(file)}"
                )
            if len(line) > LONGEST_LINE:
                raise UsageError(
                    f"{file}: line {number} is longer than {LONGEST_LINE >> 20} MiB, and a line is "
                    "read at once. Break it into lines; save a table as .jsonl."
                )
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UsageError(
                    f"{file}: not UTF-8 at byte {offset + error.start} "
                    f"(0x{line[error.start]:02x}). {_remedy(file)}"
                ) from error
            yield number, text.removeprefix("\ufeff") if offset == 0 else text
            offset += len(line)
            _check_expansion(file, packed, offset + number * ROW_COSTS)


def _read_text(file: DataFile, documents: DocumentsName) -> Iterator[Row]:
    """Yield a file's lines; line ends of Windows become newlines.

    The file is one document, or every line that is not blank begins one.
    """
    for number, text in _lines(file):
        if text.endswith("\r\n"):
            text = text[:-2] + "\n"
        yield Row(text, begins=number == 1 or (documents == "line" and not text.isspace()))


def _remedy(file: DataFile) -> str:
    with _opened(file) as stream:
        beginning = stream.read(512)
    if beginning.startswith(b"%PDF"):
        return "It is a PDF: extract its text, for example with pdftotext."
    if beginning[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "It is UTF-16: convert it, for example with iconv -f UTF-16 -t UTF-8."
    if beginning[1::2].count(0) > len(beginning) / 4 > beginning[::2].count(0):
        return "It looks like UTF-16: convert it, for example with iconv -f UTF-16LE -t UTF-8."
    if b"\0" in beginning or beginning[:2] in (b"PK", b"\x1f\x8b"):
        return "It is not a text file."
    return (
        "Convert the file, for example with iconv -f GB18030 -t UTF-8, or iconv -f LATIN1 -t UTF-8."
    )


def _cells(file: DataFile) -> Iterator[tuple[int, list[str]]]:
    """Yield the line on which each row of a table ends, and its cells.

    The cells of a .csv are parted by commas; or by semicolons, if the header has those alone: where
    a comma is the decimal point, spreadsheets write it so.
    """
    csv.field_size_limit(LONGEST_FIELD)
    lines = (text for _, text in _lines(file))
    header = next(lines, "")
    comma = ";" if ";" in header and "," not in header else ","
    reader = csv.reader(
        chain([header], lines),
        delimiter="\t" if file.format == "tsv" else comma,
        strict=True,  # otherwise a quote that is not closed swallows the rest of the file
    )
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise UsageError(
            f"{file}: line {reader.line_num} cannot be read as {file.format} ({error}). Look for a "
            "quotation mark that is not doubled or not closed."
        ) from error


def _cells_of_column(file: DataFile, text_column: str) -> Iterator[str | None]:
    rows = _cells(file)
    _, header = next(rows, (0, [text_column]))
    column = header.index(text_column)
    for line, cells in rows:
        if len(cells) > len(header):
            raise UsageError(
                f"{file}: the row that ends on line {line} has {len(cells)} cells, the header "
                f"{len(header)}. A text that holds the separator must be in quotation marks."
            )
        yield cells[column] if column < len(cells) else None


def _json_lines(file: DataFile) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(file):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{file}: line {number} is not JSON ({error}).") from error
            yield number, _object(value, f"{file}: line {number}")


def _json_values(file: DataFile) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a list, or objects that follow each other, whatever the line ends."""
    decode = json.JSONDecoder().raw_decode
    between = re.compile(r"[\s,\[\]]*")
    held, number, tried = "", 0, 0
    for last, text in _with_end(file):
        held += text
        if len(held) > LONGEST_LINE:
            raise UsageError(
                f"{file}: object {number + 1} is longer than {LONGEST_LINE >> 20} MiB, or not "
                "closed, and an object is read at once. Split it, or save the text as .jsonl."
            )
        if not last and len(held) < 2 * tried:
            continue  # an object longer than what is held: read twice as much before trying again
        place = 0
        while (start := between.match(held, place).end()) < len(held):  # type: ignore[union-attr] # it matches nothing, too
            try:
                value, place = decode(held, start)
            except (ValueError, RecursionError) as error:
                if last or isinstance(error, RecursionError):
                    raise UsageError(
                        f"{file}: object {number + 1} is not JSON ({error})."
                    ) from error
                break
            number += 1
            yield number, _object(value, f"{file}: value {number}")
        held = held[start:]
        tried = len(held)


def _with_end(file: DataFile) -> Iterator[tuple[bool, str]]:
    for _, text in _lines(file):
        yield False, text
    yield True, ""


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f'{name} is {type(value).__name__}, not an object such as {{"text": ""}}.')
    return value


@contextmanager
def naming_damage(file: DataFile) -> Iterator[None]:
    """Turn a reader's error into a UsageError that names the file and the cause."""
    try:
        yield
    except UsageError:
        raise
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"{file}: cannot be read as {file.suffixes[1:] or 'text'} ({one_line(error)}). "
            "The file may be damaged or cut short: fetch it again."
        ) from error
    except (pyarrow.ArrowException, RuntimeError, NotImplementedError) as error:
        raise UsageError(
            f"{file}: cannot be read as {file.suffixes[1:] or 'text'} ({one_line(error)}). "
            "It may be damaged, encrypted, or compressed in an unsupported way."
        ) from error
