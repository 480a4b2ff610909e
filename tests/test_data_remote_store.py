import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from gpt2_lightning.data import remote_store
from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.data.remote_store import RemoteStores
from gpt2_lightning.data.token_store import TokenStore
from gpt2_lightning.errors import UsageError

SHARD = 1000  # bytes: a text of some thousand tokens has several
URL = "memory://tokens"


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    files = fsspec.filesystem("memory")
    yield files
    if files.exists("/tokens"):
        files.rm("/tokens", recursive=True)


@pytest.fixture
def store(wiki_folder: Path, tiny_model: Path, tmp_path: Path) -> TokenStore:
    data = WikiTextDataModule(
        str(wiki_folder), tokenizer=str(tiny_model), cache_dir=str(tmp_path / "here")
    )
    data.prepare(["train"])
    data.setup("fit")
    return data.stores["train"]


def stores(tmp_path: Path, url: str = URL, limit: int = 4 * SHARD) -> RemoteStores:
    return RemoteStores(url, tmp_path / "kept", limit_gb=limit / 1e9, shard_bytes=SHARD)


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_shards_hold_the_same_ids(
    memory: fsspec.AbstractFileSystem, store: TokenStore, tmp_path: Path, scheme: str
) -> None:
    remote = stores(tmp_path, URL if scheme == "memory" else f"file://{tmp_path}/tokens")
    assert not remote.has("a")
    remote.publish("a", store)
    assert remote.has("a")
    opened = remote.open("a")
    assert opened.manifest == store.manifest
    assert len(opened.ids) == len(store.ids) > 6 * SHARD // 2
    assert np.array_equal(opened.starts, store.starts)
    for part in (slice(0, 7), slice(490, 1510), slice(1999, 2001), slice(-5, None), slice(9, 3)):
        assert opened.ids[part].tolist() == store.ids[part].tolist()
    assert np.concatenate(list(opened.each_piece())).tolist() == store.ids.tolist()
    assert remote.fetch("a", tmp_path / "whole").ids.tolist() == store.ids.tolist()


def test_no_more_than_the_limit_is_kept(
    memory: fsspec.AbstractFileSystem, store: TokenStore, tmp_path: Path
) -> None:
    remote = stores(tmp_path, limit=3 * SHARD)
    remote.publish("a", store)
    opened = remote.open("a")
    assert not opened.at_hand
    for start in np.random.default_rng(1).integers(0, len(store.ids), 50).tolist():
        assert opened.ids[start : start + 3].tolist() == store.ids[start : start + 3].tolist()
        kept = [file.stat().st_size for file in (tmp_path / "kept").rglob("ids-*")]
        assert sum(kept) <= 3 * SHARD
    first = next((tmp_path / "kept" / "a").glob("ids-*"))
    first.unlink()  # by another process
    assert opened.ids[:].tolist() == store.ids.tolist()


def test_a_damaged_shard_is_not_trained_on(
    memory: fsspec.AbstractFileSystem,
    store: TokenStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote_store, "PAUSE", 0)
    remote = stores(tmp_path)
    remote.publish("a", store)
    memory.pipe_file("/tokens/a/ids-000001.bin", b"x" * SHARD)
    opened = remote.open("a")
    with pytest.raises(UsageError, match=r"--data.remote_cache memory:.* another sha256"):
        opened.ids[490:510]
    memory.rm("/tokens/a/ids-000001.bin")
    with pytest.raises(UsageError, match="FileNotFoundError"):
        opened.ids[490:510]


def test_another_machine_trains_on_what_one_has_prepared(
    memory: fsspec.AbstractFileSystem,
    wiki_folder: Path,
    tiny_model: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def machine(name: str) -> WikiTextDataModule:
        data = WikiTextDataModule(
            str(wiki_folder),
            tokenizer=str(tiny_model),
            block_size=16,
            batch_size=2,
            cache_dir=str(tmp_path / name),
            remote_cache=URL,
        )
        data.prepare(["train", "validation"])
        data.setup("fit")
        return data

    caplog.set_level(logging.INFO, "gpt2_lightning")
    one = machine("one")
    assert len([line for line in caplog.messages if "Publishing" in line]) == 2
    caplog.clear()
    other = machine("other")
    assert not [line for line in caplog.messages if "Publishing" in line]
    kept = {file.name for file in (tmp_path / "other" / "remote").rglob("*.bin")}
    assert kept == {"ids-000000.bin", "starts.bin"}
    for name in ("train_dataloader", "val_dataloader"):
        batches = zip(getattr(one, name)(), getattr(other, name)(), strict=True)
        for left, right in batches:
            assert left["input_ids"].equal(right["input_ids"])
    shutil.rmtree(tmp_path / "one" / "tokens")  # the first goes on from there, too
    assert machine("one").stores["train"].ids[:9].tolist() == one.stores["train"].ids[:9].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remote_cache": "nope://a"}, "--data.remote_cache nope://a: Protocol not known"),
        (
            {"remote_cache": URL, "remote_cache_gb": 0.1},
            "--data.remote_cache_gb 0.1: must be at least 0.134218, two shards.",
        ),
        ({"remote_cache": URL, "remote_cache_gb": float("inf")}, "--data.remote_cache_gb inf"),
    ],
)
def test_what_cannot_be_used_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        WikiTextDataModule(**options)  # type: ignore[arg-type] # any of them
