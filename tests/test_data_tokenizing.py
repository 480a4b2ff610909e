"""A preparation that was killed goes on, and writes what it would have written."""

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from gpt2_lightning import storage
from gpt2_lightning.data import tokenizing
from gpt2_lightning.data.articles import Row
from gpt2_lightning.data.cleaning import get_cleaner
from gpt2_lightning.data.encoding import Encoder, Ids
from gpt2_lightning.data.token_store import TokenStore
from gpt2_lightning.data.tokenizer import load_tokenizer
from gpt2_lightning.data.tokenizing import PROGRESS, write_token_store
from tests.corpus import wiki_rows

ROWS = [Row(text, text.startswith(" = ")) for text in wiki_rows(articles=30)]
LONG = "river bridge stone " * 300  # longer than what is held back
TEXTS = {
    "articles": ROWS,
    "one article": [Row(row.text, number == 0) for number, row in enumerate(ROWS)],
    "a long line": [*ROWS[:40], Row(LONG, True), *ROWS[40:]],
    "empty documents": [Row("x" * 700, True), *[Row("", True), Row("y" * 700, True)] * 60],
    "no words": [Row("\x00\n", True), *ROWS, Row("", True), Row(" ", False)],
}


@pytest.fixture
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(tiny_model))


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "CHARACTERS_PER_PIECE", 200)
    monkeypatch.setattr(tokenizing, "CHARACTERS_PER_BATCH", 600)
    monkeypatch.setattr(tokenizing, "BATCHES_PER_SHARD", 2)


def prepare(
    folder: Path,
    rows: list[Row],
    tokenizer: PreTrainedTokenizerBase,
    unit: tokenizing.Unit = "article",
    cleaning: str = "none",
    *,
    ends_after: int | None = None,
) -> list[int]:
    """Write a store; return the bytes that were reported, and end like a kill after some rows."""

    def read() -> Iterator[Row]:
        for number, row in enumerate(rows):
            if number == ends_after:
                raise KeyboardInterrupt
            yield row

    told: list[int] = []
    write_token_store(
        folder,
        read(),
        cleaner=get_cleaner(cleaning),  # type: ignore[arg-type] # parametrised by name
        tokenizer=tokenizer,
        unit=unit,
        shaped_by={"unit": unit},
        advance=told.append,
    )
    return told


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize(
    ("unit", "cleaning"), [("article", "none"), ("article", "tutorial"), ("row", "tutorial")]
)
def test_it_goes_on_to_the_same_bytes(
    name: str,
    unit: tokenizing.Unit,
    cleaning: str,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    rows = TEXTS[name]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    told = prepare(whole, rows, tokenizer, unit, cleaning)
    assert sum(told) == sum(len(row.text.encode()) for row in rows)
    for ends_after in (0, 20, 25, 60, 100):  # each goes on from the one before
        with pytest.raises(KeyboardInterrupt):
            prepare(killed, rows, tokenizer, unit, cleaning, ends_after=ends_after)
        (unfinished,) = tmp_path.glob(".killed*.unfinished")
        with (unfinished / "ids.bin").open("ab") as ids:
            ids.write(b"half a shard")
        (unfinished / f".{PROGRESS}-01234567.partial").write_bytes(b'{"rows": 1')
    told = prepare(killed, rows, tokenizer, unit, cleaning)
    assert sum(told) == sum(len(row.text.encode()) for row in rows)
    assert content(killed) == content(whole)
    assert sorted(content(killed)) == ["ids.bin", "manifest.json", "starts.bin"]
    assert not unfinished.exists()
    assert TokenStore.open(killed).manifest.rows == len(rows)


def test_at_most_a_shard_is_tokenized_again(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    encode = Encoder.__call__

    def count(self: Encoder, texts: list[str]) -> list[Ids]:
        seen.append(sum(map(len, texts)))
        return encode(self, texts)

    monkeypatch.setattr(Encoder, "__call__", count)
    prepare(tmp_path / "whole", ROWS, tokenizer)
    whole = sum(seen)
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "killed", ROWS, tokenizer, ends_after=len(ROWS) // 2)
    (unfinished,) = tmp_path.glob(".killed*.unfinished")
    rows = json.loads((unfinished / PROGRESS).read_text())["rows"]
    assert len(ROWS) // 4 < rows < len(ROWS) // 2
    prepare(tmp_path / "killed", ROWS, tokenizer)
    a_batch = 600 + 200  # which may end with a whole piece
    # the shard that was cut off, what was read ahead of it, and none before
    assert sum(seen) <= whole + (2 + tokenizing.BATCHES_AHEAD + 1) * a_batch
    assert sum(seen) < 1.7 * whole


def test_what_nobody_went_on_with_for_a_week_is_removed(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    for name in ("old", "new"):
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path / name, ROWS, tokenizer, ends_after=60)
    (old,) = tmp_path.glob(".old*.unfinished")
    eight_days_ago = time.time() - 8 * 24 * 3600
    for path in (*old.iterdir(), old):
        os.utime(path, (eight_days_ago, eight_days_ago))
    prepare(tmp_path / "other", ROWS[:9], tokenizer)
    assert not old.exists()
    assert list(tmp_path.glob(".new*.unfinished"))


def test_damaged_progress_begins_anew(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "store", ROWS, tokenizer, ends_after=60)
    (unfinished,) = tmp_path.glob(".store*.unfinished")
    (unfinished / PROGRESS).write_text('{"rows": 1')
    prepare(tmp_path / "store", ROWS, tokenizer)
    prepare(tmp_path / "whole", ROWS, tokenizer)
    assert content(tmp_path / "store") == content(tmp_path / "whole")


def test_a_process_waits_for_another_that_prepares_the_same_text(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with storage.resumable_folder(tmp_path / "store") as writing:
        assert writing is not None
        waiting = threading.Thread(target=prepare, args=(tmp_path / "store", ROWS, tokenizer))
        waiting.start()
        while not caplog.text:
            assert waiting.is_alive()
            time.sleep(0.01)
        (writing / "mine").touch()
    waiting.join()
    assert "Another process is writing" in caplog.text
    assert list(content(tmp_path / "store")) == ["mine"]  # and does not write it again


def test_a_file_system_without_locks_will_do(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_locked", lambda path, *, wait: None)
    prepare(tmp_path / "store", ROWS[:20], tokenizer)
    assert TokenStore.open(tmp_path / "store").manifest.rows == 20


def test_a_store_that_another_process_has_finished_is_kept(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    prepare(tmp_path / "store", ROWS[:20], tokenizer)
    before = content(tmp_path / "store")
    assert prepare(tmp_path / "store", ROWS, tokenizer) == []
    assert content(tmp_path / "store") == before
