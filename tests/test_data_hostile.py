"""Files of data that mean harm: nothing is read outside, and a small file stays small."""

import bz2
import gzip
import json
import lzma
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from gpt2_lightning.data.sources import open_source
from gpt2_lightning.errors import UsageError
from tests.command_line import Mistake


@pytest.mark.parametrize("name", ["../outside.arrow", "/etc/passwd"])
def test_a_saved_data_set_opens_no_file_outside(mistake: Mistake, name: str) -> None:
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk("saved")
    Path("saved/data-00000-of-00001.arrow").rename("outside.arrow")
    state = json.loads(Path("saved/state.json").read_text())
    state["_data_files"] = [{"filename": name}]
    Path("saved/state.json").write_text(json.dumps(state))
    assert f"names {name!r}, which is no file of the folder" in mistake(
        "inspect", "--data.source=saved"
    )


@pytest.mark.parametrize("damage", ["type", "depth", "arrow"])
def test_a_saved_data_set_that_is_damaged(mistake: Mistake, damage: str) -> None:
    datasets.Dataset.from_dict({"text": ["a b c"] * 40}).save_to_disk("saved")
    if damage == "type":
        info = json.loads(Path("saved/dataset_info.json").read_text())
        info["features"] = {"text": {"_type": "os.system"}}
        Path("saved/dataset_info.json").write_text(json.dumps(info))
    elif damage == "depth":
        Path("saved/dataset_info.json").write_text("[" * 100_000, encoding="utf-8")
    else:
        Path("saved/data-00000-of-00001.arrow").write_bytes(bytes(range(256)) * 9)
    for words in (("inspect", "--data.source=saved"), ("fetch", "--check=saved")):
        assert "saved: it cannot be read as a saved data set" in mistake(*words)


@pytest.mark.parametrize("name", ["../a.txt", "a/../../b.txt", "/etc/a.txt", "..\\a.txt"])
@pytest.mark.parametrize("in_folder", [False, True])
def test_an_archive_that_leads_out_of_itself(
    mistake: Mistake, tmp_path: Path, name: str, in_folder: bool
) -> None:
    file = tmp_path / "corpus" / "book.zip"
    file.parent.mkdir()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("whole.txt", "some text\n")
        archive.writestr(name, "some other text\n")
    message = mistake("inspect", f"--data.source={file.parent if in_folder else file}")
    assert f"--data.source {file}: the archive holds {name!r}, a path that leads out of" in message
    assert "Nothing of it was read. If you trust it, unpack it and give the folder." in message


def repeated(file: Path, value: str | None, rows: int) -> None:
    """Write a table in which one value stands so many times, in a few bytes."""
    column = pyarrow.DictionaryArray.from_arrays(np.zeros(rows, np.int8), pyarrow.array([value]))
    table = pyarrow.table({"text": column if value else pyarrow.nulls(rows, pyarrow.string())})
    pyarrow.parquet.write_table(table, file, store_schema=False)


def test_a_small_parquet_does_not_grow(tmp_path: Path) -> None:
    file = tmp_path / "bomb.parquet"
    repeated(file, "all work and no play " * 50_000, 10_000)  # a thousand rows are a gigabyte
    assert file.stat().st_size < 100_000
    pool = pyarrow.proxy_memory_pool(pyarrow.default_memory_pool())
    before = pyarrow.default_memory_pool()
    pyarrow.set_memory_pool(pool)
    try:
        with pytest.raises(UsageError, match=r"bomb\.parquet: .* bytes unpack to more than 2\d\d "):
            for _ in open_source(str(file))["train"]:
                pass
    finally:
        pyarrow.set_memory_pool(before)
    assert pool.max_memory() < 100e6


def signed(value: int) -> bytes:
    """Return a number as parquet's headers have it: zigzag, seven bits a byte."""
    value <<= 1
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


@pytest.mark.parametrize("lie", ["rows", "values", "page", "group"])
def test_a_parquet_that_lies_about_its_sizes(tmp_path: Path, lie: str) -> None:
    file = tmp_path / "lie.parquet"
    table = pyarrow.table({"text": [f"row {number}" for number in range(300)]})
    pyarrow.parquet.write_table(table, file, use_dictionary=False)
    assert len(list(open_source(str(file))["train"])) == 300
    content = file.read_bytes()
    size = struct.unpack("<I", content[-8:-4])[0]
    pages, footer = content[: -size - 8], content[-size - 8 : -8]
    column = pyarrow.parquet.read_metadata(file).row_group(0).column(0)
    start = column.data_page_offset
    assert pages[start : start + 3] == b"\x15\0\x15"  # a data page; next is its size
    rows, unpacked = signed(300), column.total_uncompressed_size
    of_page = pages.index(b"\x15", start + 3)
    match lie:
        case "rows":
            footer = footer.replace(rows, signed(1 << 40))
        case "values":
            footer = footer.replace(rows, signed((1 << 31) - 1))
            pages = pages[:start] + pages[start:].replace(rows, signed((1 << 31) - 1), 1)
        case "page":
            pages = pages[: start + 3] + signed((1 << 31) - 1) + pages[of_page:]
        case "group":
            assert signed(unpacked) in footer
            footer = footer.replace(signed(unpacked), signed(1 << 60))
    file.write_bytes(pages + footer + struct.pack("<I", len(footer)) + b"PAR1")
    pool = pyarrow.default_memory_pool()
    if lie == "group":  # how much is read at once is all that goes by it
        assert len(list(open_source(str(file))["train"])) == 300
        return
    message = "its header says 1,099,511,627,776 rows, it has 300" if lie == "rows" else ""
    with pytest.raises(UsageError, match=rf"lie\.parquet: cannot be read as parquet \({message}"):
        list(open_source(str(file))["train"])
    assert pool.bytes_allocated() < 100e6


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.bz2", "a.csv.xz", "a.parquet"])
def test_what_unpacks_without_end_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt2_lightning.data.readers.LARGEST_BOMB", 1 << 20)
    file = tmp_path / name
    line = b'{"text": "again"}\n' if "jsonl" in name else b"again\n"
    packers: dict[str, Callable[[bytes], bytes]] = {
        "gz": gzip.compress,
        "bz2": bz2.compress,
        "xz": lzma.compress,
    }
    if name == "a.parquet":
        repeated(file, None, 1_000_000)  # rows without text cost time, too
    else:
        file.write_bytes(packers[name.split(".")[2]](b"text\n" * ("csv" in name) + line * 100_000))
    with pytest.raises(UsageError, match=r"bytes unpack to more than 1 MiB, as only the same text"):
        list(open_source(str(file))["train"])
    with pytest.raises(UsageError):
        list(open_source(str(tmp_path))["train"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bytes(5000), r"100 % of line 1 are NUL characters, .* It is not a text file"),
        (b"well begun\n" + bytes(300), r"100 % of line 2 are NUL"),  # as a power cut leaves it
        ("in two bytes\n".encode("utf-16-le"), r"line 1 .* It looks like UTF-16: .*UTF-16LE"),
    ],
)
def test_nuls_are_no_text(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content))
    with pytest.raises(UsageError, match=message):
        list(open_source(str(tmp_path))["train"])
