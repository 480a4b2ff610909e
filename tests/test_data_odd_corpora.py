"""Corpora of odd shape: which files are which split, what is left out, and every byte kept."""

import bz2
import gzip
import json
import logging
import lzma
import zipfile
from pathlib import Path

import pyarrow
import pytest

from gpt2_lightning.data.articles import Row, Rows
from gpt2_lightning.data.cleaning import get_cleaner
from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.data.prompts import read_prompts
from gpt2_lightning.data.sources import open_source
from gpt2_lightning.data.tokenizing import _Pieces, _Shard
from gpt2_lightning.errors import UsageError

LINE = "The old bridge, 中文 and “lions”.\n"


def zstd(content: bytes) -> bytes:
    return bytes(pyarrow.compress(content, "zstd", asbytes=True))


def zipped(file: Path, members: dict[str, str]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)


def table(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def read(rows: Rows) -> str:
    return "".join(row.text for row in rows)


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())


CSV = b"text\n" + b'"%s"\n'
# name -> files, what is read of each split, and what is said
CORPORA: dict[str, tuple[dict[str, str | bytes], dict[str, str], str]] = {
    "poems": (
        {"poems_train.txt": "a", "poems_valid.txt": "b", "poems_test.txt": "c"},
        {"train": "a", "validation": "b", "test": "c"},
        "train: poems_train.txt; validation: poems_valid.txt; test: poems_test.txt",
    ),
    "capitals": (
        {"Train.csv": "text\na\n", "Test.csv": "text\nb\n"},
        {"train": "a", "test": "b"},
        "train: Train.csv; test: Test.csv",
    ),
    "parts": (
        {"train_part1.txt": "a", "train_part2.txt": "b", "valid.txt": "c"},
        {"train": "ab", "validation": "c"},
        "train: 2 files (train_part1.txt, train_part2.txt); validation: valid.txt",
    ),
    "kinds of training text": (
        {"train-news.txt": "a", "train-books.txt": "b", "dev.txt": "c"},
        {"train": "ba", "validation": "c"},
        "train: 2 files (train-books.txt, train-news.txt); validation: dev.txt",
    ),
    "wikitext": (
        {"wiki.train.raw": "a\n", "wiki.valid.raw": "b\n", "wiki.test.raw": "c\n"},
        {"train": "a\n", "validation": "b\n", "test": "c\n"},
        "train: wiki.train.raw; validation: wiki.valid.raw; test: wiki.test.raw",
    ),
    "no splits": (
        {"a.txt": "a", "contest.txt": "b", "the-test-of-time.txt": "c", "trainspotting.txt": "d"},
        {"train": "abcd"},
        "train: 4 files (a.txt, contest.txt, the-test-of-time.txt, ...)",
    ),
    "suffixes in capitals": (
        {"DATA.CSV": "text\na\n", "NOTES.TXT": "b"},
        {"train": "ab"},
        "train: 2 files (DATA.CSV, NOTES.TXT)",
    ),
    "many suffixes": (
        {
            "a.md": "a",
            "b.text": "b",
            "c.ndjson": table("c"),
            "d.tsv": "id\ttext\n1\td\n",
            "e.json": '[{"text": "e"},\n {"text": "f"}]',
            "g.json": '{\n "text": "g"\n}\n{"text": "h"}',
        },
        {"train": "abcdefgh"},
        "train: 6 files (a.md, b.text, c.ndjson, ...)",
    ),
    "compressed": (
        {
            "a.txt.gz": gzip.compress(LINE.encode()),
            "b.jsonl.gz": gzip.compress(table("b")),
            "c.txt.bz2": bz2.compress(b"c"),
            "d.csv.xz": lzma.compress(b"text\nd\n"),
            "e.txt.zst": zstd(LINE.encode()),
        },
        {"train": f"{LINE}bcd{LINE}"},
        "train: 5 files (a.txt.gz, b.jsonl.gz, c.txt.bz2, ...)",
    ),
    "what is about the text": (
        {
            "a.txt": "a",
            "README.md": "x",
            "LICENSE": "x",
            "requirements.txt": "x",
            "b.pdf": "x",
            "c.tar.gz": b"x",
            "d.bin": b"x",
            ".hidden.txt": "x",
        },
        {"train": "a"},
        "train: a.txt; left out, about the text: 3 files (LICENSE, README.md, requirements.txt); "
        "left out, no plain text: b.pdf; left out, not known as text: d.bin; "
        "left out, unpack it first: c.tar.gz",
    ),
    "folders of splits": (
        {
            "train/a.txt": "a",
            "Train/deep/b.txt": "b",
            "valid/c.txt": "c",
            "test/d.txt": "d",
            "e.txt": "e",
        },
        {"train": "ba", "validation": "c", "test": "d"},
        "train: 2 files (Train/deep/b.txt, train/a.txt); validation: valid/c.txt; "
        "test: test/d.txt; left out, beside the folders of the splits: e.txt",
    ),
    "a tree": (
        {"z.txt": "z", "one/a.txt": "a", "one/deeper/b.txt": "b"},
        {"train": "abz"},
        "train: 3 files (one/a.txt, one/deeper/b.txt, z.txt)",
    ),
    "only folders": (
        {"one/a.txt": "a", "two/b.txt": "b"},
        {"train": "ab"},
        "train: 2 files (one/a.txt, two/b.txt)",
    ),
    "cells that look like nothing": (
        {"a.csv": "id,text\n1,NA\n2,null\n3,None\n4,nan\n5,\n6,1.50\n"},
        {"train": "NAnullNonenan1.50"},
        "train: a.csv",
    ),
    "semicolons": (
        {"a.csv": b'\xef\xbb\xbfid;text\r\n1;"a, b; c"\r\n2;d\r\n', "b.csv": "text\ne; f\n"},
        {"train": "a, b; cde; f"},
        "train: 2 files (a.csv, b.csv)",
    ),
    "line ends": (
        {
            "a.txt": b"\xef\xbb\xbfa\r\nb",
            "b.csv": b'\xef\xbb\xbftext\r\n"c\r\nd"\r\n',
            "c.jsonl": table("e\r\nf"),
        },
        {"train": "a\nbc\nde\nf"},
        "train: 3 files (a.txt, b.csv, c.jsonl)",
    ),
    "other keys of any type": (
        {
            "a.jsonl": b'{"text": "a", "meta": null}\n' * 3 + b'{"lang": "en", "text": "b"}\n'
            b'\n{"text": "c", "meta": {"x": [1]}}\n{"text": "d", "meta": 3}'
        },
        {"train": "aaabcd"},
        "train: a.jsonl",
    ),
    "empty rows and files": (
        {"a.jsonl": b"", "b.jsonl": table("", "b"), "c.csv": "", "d.txt": ""},
        {"train": "b"},
        "train: 4 files (a.jsonl, b.jsonl, c.csv, ...)",
    ),
    "a pattern's characters": (
        {"book[1].jsonl": table("a"), "book1.jsonl": table("b"), "c*.txt": "c"},
        {"train": "bac"},
        "train: 3 files (book1.jsonl, book[1].jsonl, c*.txt)",
    ),
    "marks": (
        {"a.txt": "<|endoftext|> \u2028 \x0b\x0c\x1c a\rb\x00"},
        {"train": "<|endoftext|> \u2028 \x0b\x0c\x1c a\rb\x00"},
        "train: a.txt",
    ),
    "one long line": (
        {"a.txt": "word, " * 50_000},
        {"train": "word, " * 50_000},
        "train: a.txt",
    ),
    "a long field": (
        {"a.csv": 'text\n"' + "word, \n" * 50_000 + '"\n'},
        {"train": "word, \n" * 50_000},
        "train: a.csv",
    ),
}


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(logging.getLogger("gpt2_lightning"), "propagate", True)
    caplog.set_level(logging.INFO)
    return caplog


@pytest.mark.parametrize("name", CORPORA)
def test_every_byte_is_read_or_left_out_by_name(
    tmp_path: Path, name: str, said: pytest.LogCaptureFixture
) -> None:
    files, wanted, line = CORPORA[name]
    write(tmp_path, files)
    splits = open_source(str(tmp_path))
    assert {split: read(rows) for split, rows in splits.items()} == wanted
    assert f"{tmp_path}: {line}." in said.text
    assert said.text.count("train: ") == 1


@pytest.mark.parametrize(
    "names",
    [
        ["a-long-walk", "bread-and-salt", "dev-diary-3", "test-of-time", "valid-points"],
        ["test-of-time", "valid-points", "train-journeys"],
        ["book", "test"],
        ["train", "poems_test"],
        ["poems_test", "essays_valid"],
    ],
)
def test_names_that_can_be_read_in_two_ways_are_asked_about(
    tmp_path: Path, names: list[str], said: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, {f"{name}.txt": name for name in names})
    with pytest.raises(UsageError, match=r"training text, or held out\?"):
        open_source(str(tmp_path))
    splits = open_source(str(tmp_path), validation_source="none", test_source="none")
    assert {split: read(rows) for split, rows in splits.items()} == {
        "train": "".join(sorted(names, key=lambda name: f"{name}.txt"))
    }


@pytest.mark.parametrize("answer", ["held out", "training text"])
def test_one_file_is_asked_about_as_one_and_both_answers_work(tmp_path: Path, answer: str) -> None:
    write(tmp_path, {"c/poems_train.txt": "p", "c/poems_test.txt": "t"})
    write(tmp_path, {"c/notes.md": "n", "c/letters.csv": "text\nl\n"})
    with pytest.raises(UsageError) as asked:
        open_source(str(tmp_path / "c"))
    assert (
        "is poems_test.txt training text, or held out? It is named like test text, but 2 files "
        "(letters.csv, notes.md) are named otherwise. To hold it out: --data.test_source "
        f"{tmp_path}/c/poems_test.txt (a file, a folder or a pattern). To train on it: "
        "--data.test_source none (a part of all" in str(asked.value)
    )
    choice = f"{tmp_path}/c/poems_test.txt" if answer == "held out" else "none"
    splits = open_source(str(tmp_path / "c"), test_source=choice)
    wanted = {"train": "lnp", "test": "t"} if answer == "held out" else {"train": "lntp"}
    assert {split: read(rows) for split, rows in splits.items()} == wanted


def test_a_split_is_looked_for_inside_the_source_too(tmp_path: Path) -> None:
    write(tmp_path, {"a[1]/poems_train.txt": "p", "a[1]/poems_test.txt": "t", "a[1]/notes.md": "n"})
    for name in ("poems_test.txt", "*_test.txt"):
        splits = open_source(str(tmp_path / "a[1]"), test_source=name)
        assert {split: read(rows) for split, rows in splits.items()} == {"train": "np", "test": "t"}
    write(tmp_path, {"poems_test.txt": "mine"})  # a path comes first, the tests' folder is here
    splits = open_source(str(tmp_path / "a[1]"), test_source="poems_test.txt", subset=None)
    assert read(splits["test"]) == "mine"


def test_a_split_that_is_not_there_is_answered_with_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path, {"c/train.txt": "p", "c/poems.txt": "t"})
    with pytest.raises(
        UsageError, match=r"nor in --data\.source c\. Did you mean .* c/poems\.txt\?"
    ):
        open_source("c", test_source="poem.txt")
    with pytest.raises(UsageError, match=r"found there\. Did you mean --data\.test_source c/poems"):
        open_source("c/train.txt", test_source="poems.txt")


def test_splits_are_given_by_hand(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    write(
        tmp_path,
        {
            "c/a.txt": "a",
            "c/test-of-time.txt": "t",
            "c/v1.txt": "v",
            "c/v2.txt": "w",
            "mine.txt": "m",
        },
    )
    splits = open_source(
        str(tmp_path / "c"),
        validation_source=str(tmp_path / "c/v?.txt"),
        test_source=str(tmp_path / "mine.txt"),
    )
    assert {split: read(rows) for split, rows in splits.items()} == {
        "train": "at",
        "validation": "vw",
        "test": "m",
    }
    assert "--data.validation_source" in said.text
    with pytest.raises(UsageError, match=r"--data\.test_source nowhere: no text file was found"):
        open_source(str(tmp_path / "c"), test_source="nowhere", validation_source="none")
    with pytest.raises(UsageError, match="all of it is held out"):
        open_source(str(tmp_path / "mine.txt"), test_source=str(tmp_path / "mine.txt"))


def test_a_split_given_by_hand_is_instead_of_the_files_called_so(tmp_path: Path) -> None:
    write(tmp_path, {"c/train.txt": "a", "c/test.txt": "t", "mine.txt": "m"})
    splits = open_source(str(tmp_path / "c"), test_source=str(tmp_path / "mine.txt"))
    assert {split: read(rows) for split, rows in splits.items()} == {"train": "a", "test": "m"}


def test_archives(tmp_path: Path) -> None:
    zipped(tmp_path / "book.zip", {"book.txt": LINE})
    assert read(open_source(str(tmp_path / "book.zip"))["train"]) == LINE
    zipped(tmp_path / "c.zip", {"c/train.txt": "a", "c/test.csv": "text\nb\n", "c/README": "x"})
    splits = open_source(str(tmp_path / "c.zip"))
    assert {split: read(rows) for split, rows in splits.items()} == {"train": "a", "test": "b"}
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(UsageError, match=r"a\.tar\.gz: archives of this kind are not read"):
        open_source(str(tmp_path / "a.tar.gz"))


def test_links(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    write(tmp_path, {"c/in/a.txt": "a", "out/b.txt": "b"})
    (tmp_path / "c/in/round").symlink_to(tmp_path / "c")
    (tmp_path / "c/out").symlink_to(tmp_path / "out")
    (tmp_path / "c/gone.txt").symlink_to(tmp_path / "nowhere")
    assert read(open_source(str(tmp_path / "c"))["train"]) == "ab"
    assert "left out, a link to nowhere: gone.txt" in said.text
    assert "links to a folder read before: in/round" in said.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text\ncafé\n".encode("latin-1"), r"not UTF-8 at byte 8 \(0xe9\).*iconv"),
        ("a.jsonl", '{"text": "中"}'.encode("gbk"), r"not UTF-8 at byte 10 .*iconv -f GB18030"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"line 2 is not JSON"),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', r"line 2 is list, not an object"),
        ("a.json", b'[{"text": "a"}, {"text', r"object 2 is not JSON"),
        ("a.csv", b'text\n"a\nb\n', r"line 3 cannot be read as csv .*quotation mark"),
        ("a.csv", b"text\nwell, then\n", r"ends on line 2 has 2 cells, the header 1"),
        ("a.txt.gz", gzip.compress(b"a" * 99, mtime=0)[:-12], r"cannot be read as txt\.gz"),
        ("a.txt.zst", b"text", r"cannot be read as txt\.zst"),
        ("a.zip", b"text", r"cannot be read"),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read(open_source(str(tmp_path))["train"])


def test_missing_values_are_counted(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.jsonl").write_bytes(table("a") + b'{"text": null}\n{"id": 1}\n')
    assert [row.text for row in open_source(str(tmp_path))["train"]] == ["a", "", ""]
    assert "2 of 3 rows have no value in --data.text_column text" in said.text


def test_each_line_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\nthree", encoding="utf-8")
    rows = list(open_source(str(tmp_path), documents="line")["train"])
    assert rows == [("one\n", True), ("\n", False), ("two\n", True), ("three", True)]
    of_files = open_source(str(tmp_path))["train"]
    assert of_files.digest() != open_source(str(tmp_path), documents="line")["train"].digest()


def test_a_source_is_opened_once(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    write(tmp_path, {"a.txt": LINE * 50})
    data = WikiTextDataModule(source=str(tmp_path))
    data.splits(["train"])
    data.splits(["test"])
    assert said.text.count("train: a.txt.") == 1


def test_a_long_line_is_tokenized_in_pieces() -> None:
    rows = [Row("a word, " * 100_000, begins=True)]
    pieces = list(_Pieces(rows, _Shard(), get_cleaner("none"), "article", cuts=True))
    assert "".join(text for text, _ in pieces) == rows[0].text
    assert max(len(text) for text, _ in pieces) <= 1 << 16
    assert [begins for _, begins in pieces] == [True] + [False] * (len(pieces) - 1)
    assert all(text[0] == " " for text, _ in pieces[1:])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.txt.gz",
            gzip.compress(b"short\n" + b"x" * 5000, mtime=0),
            "line 2 is longer than 0 MiB",
        ),
        ("a.jsonl", b"[" * 5000, "line 1 is longer than 0 MiB"),
        ("a.csv", b"text\n" + b"x" * 5000, "line 2 is longer than 0 MiB"),
        ("a.json", b'[{"text": "' + b"x\n" * 3000, "object 1 is longer than 0 MiB, or not closed"),
    ],
)
def test_an_endless_line_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt2_lightning.data.readers.LONGEST_LINE", 4096)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read(open_source(str(tmp_path))["train"])


def test_prompts_in_capitals(tmp_path: Path) -> None:
    (tmp_path / "P.JSONL").write_text('{"prompt": "one"}\n', encoding="utf-8")
    assert read_prompts(str(tmp_path / "P.JSONL")) == ["one"]


def test_what_runs_models_and_caches_hold_is_no_corpus(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    write(
        tmp_path,
        {
            "book.txt": LINE,
            "lightning_logs/version_0/samples.jsonl": table("a sample"),
            "elsewhere/run/config.yaml": "",
            "elsewhere/run/samples.jsonl": table("a sample"),
            "elsewhere/run/checkpoints/last.ckpt": "",
            "cache/tokens/0123/manifest.json": "{}",
            "cache/tokens/0123/ids.bin": "",
            "gpt2/tokenizer_config.json": "{}",
            "gpt2/vocab.json": "{}",
            "gpt2/merges.txt": "a b\n",
        },
    )
    assert read(open_source(str(tmp_path))["train"]) == LINE
    assert (
        "train: book.txt; left out, models: gpt2; "
        "left out, runs: 2 files (elsewhere/run, lightning_logs); "
        "left out, token cache: cache/tokens/0123."
    ) in said.text
