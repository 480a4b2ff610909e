"""How often a file of text is opened; each time, it is read from its start."""

import os
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gpt2_lightning.cli import main
from gpt2_lightning.data.datamodule import WikiTextDataModule
from tests.command_line import SMALL, fine_tuning, fit
from tests.corpus import wiki_rows

_opened: list[Path] | None = None


def _on_event(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None and isinstance(arguments[0], str):
        _opened.append(Path(arguments[0]))


sys.addaudithook(_on_event)  # it sees every way to open a file, and cannot be taken away again


@contextmanager
def opens() -> Iterator[list[Path]]:
    """Give the files that are opened meanwhile."""
    global _opened
    _opened = []
    try:
        yield _opened
    finally:
        _opened = None


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A file of 40 articles, out of which the held-out splits are taken."""
    file = tmp_path / "book.txt"
    file.write_text("".join(wiki_rows(articles=40)), encoding="utf-8")
    return file


def test_fit_reads_a_cached_text_for_its_digest_alone(book: Path, tiny_model: Path) -> None:
    words = (*fine_tuning(book, tiny_model), "--trainer.max_steps=1")
    with opens() as cold:
        fit(*words)
    with opens() as cached:
        fit(*words)
    # its digest, the choice of the held-out articles, the tokens of either split
    assert (cold.count(book), cached.count(book)) == (4, 1)


@pytest.mark.slow
def test_fit_from_scratch_reads_the_text_once_more_for_its_tokenizer(book: Path) -> None:
    shape = (f"--model.architecture.{flag}" for flag in ("layers=1", "heads=2", "width=32"))
    text = (f"--data.source={book}", "--data.vocab_size=300")
    words = (*text, "--trainer.max_steps=1", *SMALL, *shape)
    with opens() as cold:
        fit(*words)
    with opens() as cached:
        fit(*words)
    assert (cold.count(book), cached.count(book)) == (5, 1)


@pytest.mark.parametrize(
    ("protocol", "split", "reads"),
    [
        # the digest, and the text: counted and tokenized as it is read
        ("sliding", "all", 2),
        ("disjoint", "all", 2),
        ("articles", "all", 2),
        # and the choice of the held-out articles
        ("articles", "validation", 3),
        # counted after it was tokenized, as fit tokenizes it
        ("training", "validation", 4),
    ],
)
def test_evaluate(book: Path, tiny_model: Path, protocol: str, split: str, reads: int) -> None:
    words = [f"--model={tiny_model}", f"--data.source={book}", f"--split={split}"]
    words += [f"--protocol={protocol}"]
    if protocol == "training":
        words += ["--data.block_size=16"]
    with opens() as cold:
        main(["evaluate", *words])
    with opens() as cached:
        main(["evaluate", *words])
    assert (cold.count(book), cached.count(book)) == (reads, 1)


def test_inspect(book: Path, tiny_model: Path) -> None:
    words = [f"--model.pretrained={tiny_model}", f"--data.source={book}", "--data.block_size=16"]
    with opens() as cold:
        main(["inspect", *words])
    with opens() as cached:
        main(["inspect", *words])
    # its digest, the choice of the held-out articles, the tokens of each split, and its figures
    assert (cold.count(book), cached.count(book)) == (6, 2)
    main(["inspect", *words, "--compare"])
    with opens() as compared:
        main(["inspect", *words, "--compare"])
    assert compared.count(book) == 2  # under three cleaners


def test_files_of_several_splits(wiki_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "wiki.zip", "w") as archive:
        for file in wiki_folder.iterdir():
            archive.write(file, file.name)
    for source in (wiki_folder, tmp_path / "wiki.zip"):
        for _ in range(2):
            with opens() as cached:
                data = WikiTextDataModule(str(source), tokenizer=str(tiny_model), block_size=16)
                data.prepare(["train", "validation", "test"])
        if source == wiki_folder:
            assert [cached.count(file) for file in source.iterdir()] == [1, 1, 1]
        else:
            assert cached.count(source) == 2  # its list of contents, and its digest


def test_kept_shares_are_of_the_content(book: Path, tiny_model: Path, tmp_path: Path) -> None:
    def texts() -> dict[str, str]:
        data = WikiTextDataModule(str(book), tokenizer=str(tiny_model))
        return {name: "".join(row.text for row in rows) for name, rows in data.splits([]).items()}

    first = texts()
    assert texts() == first
    lines = book.read_bytes()
    stamp = book.stat()
    book.write_bytes(lines.replace(b"stone =", b"straw ="))  # as long as before
    os.utime(book, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert "straw" in texts()["train"] + texts()["test"]
    assert texts() != first
    for kept in tmp_path.glob("cache/*/splits/*.json"):
        kept.write_text("{}")
    book.write_bytes(lines)
    assert texts() == first
