import csv
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from gpt2_lightning.data.articles import Rows
from gpt2_lightning.data.sources import open_source
from gpt2_lightning.errors import UsageError

TEXTS = ["first row\n", "", "third, “quoted” 中文\n"]


def texts(rows: Rows) -> list[str]:
    return [row.text for row in rows]


def write_parquet(file: Path, values: list[str], column: str = "text") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict({column: values}).to_parquet(file)


def test_builtin_has_three_splits() -> None:
    splits = open_source("builtin")
    assert list(splits) == ["train", "validation", "test"]
    assert all(len(texts(rows)) > 100 for rows in splits.values())


def test_builtin_without_the_reference_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(UsageError, match=r"--data.source builtin: this Python has no"):
        open_source("builtin")


def test_parquet_in_the_hubs_layout(tmp_path: Path) -> None:
    for split, part in (("train", TEXTS), ("validation", TEXTS[:1]), ("test", TEXTS[2:])):
        write_parquet(tmp_path / f"d/wikitext-2-raw-v1/{split}-00000-of-00001.parquet", part)
    inside = open_source(str(tmp_path / "d/wikitext-2-raw-v1"))
    by_subset = open_source(str(tmp_path / "d"), subset="wikitext-2-raw-v1")
    for splits in (inside, by_subset):
        assert {name: texts(rows) for name, rows in splits.items()} == {
            "train": TEXTS,
            "validation": TEXTS[:1],
            "test": TEXTS[2:],
        }
    assert inside["train"].digest() == by_subset["train"].digest()
    assert inside["train"].digest() != inside["test"].digest()


def test_a_subset_where_the_data_itself_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("gpt2_lightning"), "propagate", True)
    caplog.set_level(logging.INFO)
    write_parquet(tmp_path / "d/wikitext-2-v1/train-00000-of-00001.parquet", TEXTS)
    (tmp_path / "book.txt").write_text("text", encoding="utf-8")
    inside = open_source(str(tmp_path / "d/wikitext-2-v1"), subset="wikitext-2-raw-v1")
    assert texts(inside["train"]) == TEXTS
    assert "--data.subset wikitext-2-raw-v1 is not used" in caplog.text
    caplog.clear()
    book = open_source(str(tmp_path / "book.txt"), subset="wikitext-2-raw-v1")
    assert texts(book["train"]) == ["text"]
    assert "--data.subset wikitext-2-raw-v1 is not used" in caplog.text
    caplog.clear()
    # the only subset needs not be named
    assert texts(open_source(str(tmp_path / "d"))["train"]) == TEXTS
    assert "not used" not in caplog.text


def test_shards_come_in_order_and_all_are_needed(tmp_path: Path) -> None:
    for index in (1, 0, 2):
        write_parquet(tmp_path / f"train-{index:05}-of-00003.parquet", [f"row {index}"])
    assert texts(open_source(str(tmp_path))["train"]) == ["row 0", "row 1", "row 2"]
    (tmp_path / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(
        UsageError,
        match=r"of 3 parquet files of the train split\. Missing: train-00001-of-00003\.parquet",
    ):
        open_source(str(tmp_path))


def test_several_subsets_are_listed(tmp_path: Path) -> None:
    for subset in ("wikitext-2-raw-v1", "wikitext-2-v1"):
        write_parquet(tmp_path / subset / "train-00000-of-00001.parquet", TEXTS)
    with pytest.raises(
        UsageError, match=r"--data\.subset wikitext-2-raw-v1 or --data\.subset wikitext-2-v1"
    ):
        open_source(str(tmp_path))
    with pytest.raises(UsageError, match=r"--data\.subset nope: there is no folder.*wikitext-2-v1"):
        open_source(str(tmp_path), subset="nope")


@pytest.mark.parametrize("ending", ["raw", "tokens"])
def test_original_wikitext_files(tmp_path: Path, ending: str) -> None:
    for name in ("train", "valid", "test"):
        (tmp_path / f"wiki.{name}.{ending}").write_text(f" = {name} = \n \n", encoding="utf-8")
    splits = open_source(str(tmp_path))
    assert set(splits) == {"train", "validation", "test"}
    assert texts(splits["validation"]) == [" = valid = \n", " \n"]


def test_jsonl_and_csv_and_other_columns(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "one"}\n{"body": null}\n', encoding="utf-8")
    (tmp_path / "a.csv").write_text('id,text\n1,"two, with comma"\n', encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"id": 1}\n', encoding="utf-8")
    assert texts(open_source(str(tmp_path / "a.jsonl"), text_column="body")["train"]) == ["one", ""]
    assert texts(open_source(str(tmp_path / "a.csv"))["train"]) == ["two, with comma"]
    with pytest.raises(
        UsageError, match=r"--data\.text_column text: .*a\.jsonl has no such column"
    ):
        open_source(str(tmp_path / "a.jsonl"))
    with pytest.raises(UsageError, match=r"--data\.text_column id: the column holds int"):
        texts(open_source(str(tmp_path / "b.jsonl"), text_column="id")["train"])
    # a cell is text, whatever it looks like
    assert texts(open_source(str(tmp_path / "a.csv"), text_column="id")["train"]) == ["1"]


def test_text_files_one_document_each(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    (tmp_path / "b.txt").write_bytes(b"three\n")
    rows = list(open_source(str(tmp_path))["train"])
    assert rows == [("one\n", True), ("two", False), ("three\n", True)]


def test_text_files_named_by_split(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        (tmp_path / f"{name}.txt").write_text(name, encoding="utf-8")
    assert {name: texts(rows) for name, rows in open_source(str(tmp_path)).items()} == {
        "train": ["train"],
        "validation": ["val"],
        "test": ["test"],
    }


def test_invalid_utf8_names_file_and_byte(tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes(b"good\n" * 3 + "caf\xe9\n".encode("latin-1"))
    with pytest.raises(UsageError, match=r"latin\.txt: not UTF-8 at byte 18 \(0xe9\)"):
        texts(open_source(str(file))["train"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"%PDF-1.7\n\xe2\xe3", "It is a PDF"),
        ("Die Brücke".encode("utf-16"), "It is UTF-16"),
        (b"\x89PNG\r\n\x1a\n\0\0", "It is not a text file"),
        ("Die Brücke".encode("latin-1"), "iconv -f LATIN1"),
    ],
)
def test_what_is_no_utf8_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "book.txt").write_bytes(content)
    with pytest.raises(UsageError, match=said):
        list(open_source(str(tmp_path / "book.txt"))["train"])


def test_documents_that_are_not_read_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("gpt2_lightning"), "propagate", True)
    caplog.set_level(logging.INFO)
    (tmp_path / "a.txt").write_text("The old bridge.\n", encoding="utf-8")
    (tmp_path / "b.PDF").write_bytes(b"%PDF")
    assert len(open_source(str(tmp_path))) == 1
    assert "train: a.txt; left out, no plain text: b.PDF." in caplog.text


@pytest.mark.parametrize("name", ["a.pdf", "a.tar"])
def test_a_held_out_file_that_is_not_read_is_named_with_its_flag(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"%PDF")
    (tmp_path / "a.txt").write_text("text")
    for source in (str(tmp_path / "a.txt"), "builtin"):
        with pytest.raises(UsageError) as refused:
            open_source(source, validation_source=str(tmp_path / name))
        assert str(refused.value).startswith(f"--data.validation_source {tmp_path / name}: ")
        assert "--data.source" not in str(refused.value)


def test_a_cell_may_be_a_book_where_c_counts_in_32_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = csv.field_size_limit

    def of_windows(most: int) -> int:
        if most >= 1 << 31:
            raise OverflowError("Python int too large to convert to C long")
        return limit(most)

    monkeypatch.setattr(csv, "field_size_limit", of_windows)
    (tmp_path / "a.csv").write_text("text\n" + 200_000 * "a" + "\n")
    assert texts(open_source(str(tmp_path / "a.csv"))["train"]) == [200_000 * "a"]


def test_saved_to_disk(tmp_path: Path) -> None:
    both = DatasetDict(
        {"train": Dataset.from_dict({"text": TEXTS}), "test": Dataset.from_dict({"text": ["t"]})}
    )
    both.save_to_disk(str(tmp_path / "both"))
    splits = open_source(str(tmp_path / "both"))
    assert texts(splits["train"]) == TEXTS
    assert texts(splits["test"]) == ["t"]
    with pytest.raises(UsageError, match=r"--data\.text_column body: .*It has: text"):
        open_source(str(tmp_path / "both"), text_column="body")


@pytest.mark.parametrize("damage", ["footer", "inside"])
def test_damaged_parquet_is_named(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "train-00000-of-00001.parquet"
    write_parquet(file, [f"row {index} of some length" for index in range(5000)])
    content = bytearray(file.read_bytes())
    if damage == "footer":
        content = content[:-20]
    else:
        content[100:4000] = bytes(3900)
    file.write_bytes(bytes(content))
    with pytest.raises(UsageError, match=r"train-00000-of-00001\.parquet: cannot be read as parq"):
        texts(open_source(str(tmp_path))["train"])


def test_missing_and_empty(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.txt: there is no such file or folder"):
        open_source("nowhere.txt")
    (tmp_path / "notes.pdf").write_bytes(b"")
    with pytest.raises(UsageError, match=r"there are no data files in it\. It holds: notes\.pdf"):
        open_source(str(tmp_path))


def test_what_is_which_split_is_said_of_every_kind_of_source(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("gpt2_lightning"), "propagate", True)
    caplog.set_level(logging.INFO)
    splits = {name: Dataset.from_dict({"text": TEXTS}) for name in ("train", "dev", "unsupervised")}
    saved = str(tmp_path / "saved")
    DatasetDict(splits | {"validation": splits["dev"]}).save_to_disk(saved)
    caplog.clear()
    assert list(open_source(saved)) == ["train", "validation"]
    assert (
        f"{saved}: train: 3 rows; validation: 3 rows (dev); left out, a second validation split: "
        "validation; left out, not called train, validation or test: unsupervised." in caplog.text
    )
    assert list(open_source(saved, validation_source="none")) == ["train"]
    assert "left out, --data.validation_source is given: 2 splits (dev, valid" in caplog.text
    caplog.clear()
    builtin = open_source("builtin", test_source="none")
    assert list(builtin) == ["train", "validation"]
    count = len(list(builtin["train"]))
    assert f"builtin, the language reference of this Python: train: {count:,} rows;" in caplog.text
    assert "left out, --data.test_source is given: its own test split." in caplog.text


@pytest.mark.parametrize(
    ("source", "flags", "said"),
    [
        (
            "book.txt",
            {"revision": "v1"},
            "--data.revision v1 is not used: book.txt is a local path",
        ),
        ("builtin", {"revision": "v1"}, "--data.revision v1 is not used: the built-in text has"),
        ("builtin", {"subset": "a"}, "--data.subset a is not used: the built-in text has none"),
        ("builtin", {"documents": "line"}, "--data.documents line is not used: the built-in"),
        ("builtin", {"documents": "file"}, None),
        ("builtin", {"text_column": "body"}, "--data.text_column body is not used: the built-in"),
        ("book.txt", {"text_column": "body"}, "--data.text_column body is not used: book.txt hol"),
        ("book.txt", {"text_column": "text", "documents": "line"}, None),
        ("rows.csv", {"documents": "line"}, "--data.documents line is not used: rows.csv holds"),
    ],
)
def test_flags_that_say_nothing_of_a_source_are_said(
    source: str,
    flags: dict[str, Any],
    said: str | None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("gpt2_lightning"), "propagate", True)
    Path("book.txt").write_text("text", encoding="utf-8")
    Path("rows.csv").write_text("text\nhere\n", encoding="utf-8")
    open_source(source, **flags)
    assert (said or "") in caplog.text
    assert ("is not used" in caplog.text) == (said is not None)
