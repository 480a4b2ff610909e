import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.errors import UsageError
from tests.corpus import hub_rows, wiki_rows


def ready(source: Path | str, tokenizer: Path, **options: object) -> WikiTextDataModule:
    data = WikiTextDataModule(
        str(source),
        tokenizer=str(tokenizer),
        **{"block_size": 16, "batch_size": 2, **options},  # type: ignore[arg-type] # any of them
    )
    data.prepare(["train", "validation", "test"])
    data.setup("fit")
    return data


def test_the_loaders_of_packed_text(wiki_folder: Path, tiny_model: Path) -> None:
    data = ready(wiki_folder, tiny_model)
    text = (wiki_folder / "wiki.test.raw").read_text(encoding="utf-8")
    ids = [
        t for batch in data.test_dataloader() for t in batch["targets"].flatten().tolist() if t >= 0
    ]
    eos = data.tokenizer.eos_token_id
    assert data.tokenizer.decode([t for t in ids if t != eos]) == text
    assert ids.count(eos) == 5
    assert data.original_bytes("test") == (len(text.encode()), "")
    ids_of_batch = next(iter(data.train_dataloader()))["input_ids"]
    assert isinstance(ids_of_batch, Tensor)
    assert ids_of_batch.shape == (2, 16)


def test_hub_layout_and_original_files_give_the_same_ids(
    tmp_path: Path, wiki_folder: Path, tiny_model: Path
) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    for name, split in (("train", "train"), ("valid", "validation"), ("test", "test")):
        lines = (wiki_folder / f"wiki.{name}.raw").read_text(encoding="utf-8")
        rows = hub_rows(lines.splitlines(keepends=True))
        (folder / f"{split}.jsonl").write_text(
            "".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8"
        )
    one, other = ready(wiki_folder, tiny_model), ready(folder, tiny_model)
    assert list(one.stores) == ["train", "validation", "test"]
    for split, store in one.stores.items():
        assert store.ids.tolist() == other.stores[split].ids.tolist()
        assert store.manifest.bytes == other.stores[split].manifest.bytes


def test_a_store_is_reused_and_a_stale_one_is_not(wiki_folder: Path, tiny_model: Path) -> None:
    first = ready(wiki_folder, tiny_model).stores["train"].folder
    stamp = (first / "manifest.json").stat().st_mtime_ns
    again = ready(wiki_folder, tiny_model, block_size=8).stores["train"].folder
    assert again == first
    assert (again / "manifest.json").stat().st_mtime_ns == stamp
    assert ready(wiki_folder, tiny_model, cleaning="detokenize").stores["train"].folder != first
    with (wiki_folder / "wiki.train.raw").open("a", encoding="utf-8") as stream:
        stream.write(" one more row \n")
    assert ready(wiki_folder, tiny_model).stores["train"].folder != first


def test_the_same_text_elsewhere_is_the_same_store(
    tmp_path: Path, wiki_folder: Path, tiny_model: Path
) -> None:
    first = ready(wiki_folder, tiny_model).stores["train"].folder
    shutil.move(wiki_folder, tmp_path / "moved")
    assert ready(tmp_path / "moved", tiny_model).stores["train"].folder == first


def test_a_source_with_one_split_gets_the_others(
    tmp_path: Path,
    tiny_model: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("gpt2_lightning"), "propagate", True)
    caplog.set_level(logging.INFO)
    file = tmp_path / "corpus.txt"
    file.write_text("".join(wiki_rows(articles=60)), encoding="utf-8")
    data = ready(file, tiny_model)
    assert re.search(
        r"holding out about 5 % of the text each, \d+ and \d+ of 60 articles", caplog.text
    )
    assert sum(store.manifest.articles for store in data.stores.values()) == 60
    assert sum(store.manifest.bytes for store in data.stores.values()) == file.stat().st_size


def test_padded_rows_have_no_bits_per_byte(wiki_folder: Path, tiny_model: Path) -> None:
    padded = ready(wiki_folder, tiny_model, blocks="pad")
    assert padded.original_bytes("validation")[0] is None
    assert "cuts off" in padded.original_bytes("validation")[1]
    cleaned = ready(wiki_folder, tiny_model, cleaning="tutorial")
    assert cleaned.original_bytes("validation") == (None, "--data.cleaning tutorial loses text")
    assert torch.is_tensor(next(iter(padded.val_dataloader()))["attention_mask"])


def test_detokenize_is_lossless_for_wikitext_alone(
    tmp_path: Path, wiki_folder: Path, tiny_model: Path
) -> None:
    wiki = ready(wiki_folder, tiny_model, cleaning="detokenize")
    assert wiki.original_bytes("validation")[0] == (wiki_folder / "wiki.valid.raw").stat().st_size
    (tmp_path / "code.txt").write_text("if a :\n    b = ( 1 )\n" * 400, encoding="utf-8")
    code = ready(tmp_path / "code.txt", tiny_model, cleaning="detokenize")
    assert code.original_bytes("validation")[0] is None
    assert "loses nothing of WikiText" in code.original_bytes("validation")[1]


def test_from_scratch_a_tokenizer_is_trained_once(wiki_folder: Path) -> None:
    names = []
    for _ in range(2):
        data = WikiTextDataModule(str(wiki_folder), vocab_size=300, block_size=16, batch_size=2)
        data.prepare(["train"])
        data.setup("fit")
        names.append(data.stores["train"].folder)
        assert len(data.tokenizer) <= 300
    assert names[0] == names[1]


def test_nothing_left_after_cleaning(tmp_path: Path, tiny_model: Path) -> None:
    for name in ("train", "valid", "test"):
        (tmp_path / f"wiki.{name}.raw").write_text(" ... \n ; \n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"nothing is left of the train split \(2 rows\) after"):
        ready(tmp_path, tiny_model, cleaning="tutorial")


def test_a_missing_split_is_named(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "test.txt").write_text("text", encoding="utf-8")
    data = WikiTextDataModule(str(tmp_path), tokenizer=str(tiny_model))
    with pytest.raises(UsageError, match=r"no train split.*It has: test"):
        data.prepare(["train"])


@pytest.mark.parametrize("flag", ["block_size", "batch_size"])
def test_sizes_below_one(flag: str) -> None:
    with pytest.raises(UsageError, match=rf"--data\.{flag} 0: must be >= 1"):
        WikiTextDataModule(**{flag: 0})  # type: ignore[arg-type] # one of two whole numbers


def test_batches_go_to_a_gpu_by_way_of_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []

    def move(self: WikiTextDataModule, batch: dict[str, Any], *place: object) -> None:
        moved.append(batch)

    monkeypatch.setattr(Tensor, "pin_memory", lambda it: it + 1)
    monkeypatch.setattr("lightning.pytorch.LightningDataModule.transfer_batch_to_device", move)
    data = WikiTextDataModule("builtin")
    batch = {"input_ids": torch.zeros(2, dtype=torch.long), "step_targets": 2}
    data.transfer_batch_to_device(batch, torch.device("cuda"), 0)
    data.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    assert moved[0]["input_ids"].tolist() == [1, 1]
    assert moved[0]["step_targets"] == 2
    assert moved[1] is batch


def test_the_checkpoint_state_is_plain(wiki_folder: Path, tiny_model: Path) -> None:
    state = ready(wiki_folder, tiny_model).state_dict()
    assert json.loads(json.dumps(state)) == state
    assert "tokenizer.json" in state["tokenizer_files"]
