"""The tutorial's recipe, step by step against the tutorial's own means."""

import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

from gpt2_lightning.data.datamodule import WikiTextDataModule
from tests.command_line import curves, fit
from tests.corpus import hub_rows, wiki_rows

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
LENGTH = 48  # tokens; the tiny model has 64 positions, the tutorial's length is 128


def write_source(folder: Path, rows: list[str]) -> None:
    folder.mkdir()
    for split in ("train", "validation", "test"):
        file = folder / f"{split}-00000-of-00001.parquet"
        Dataset.from_dict({"text": rows}).to_parquet(file)


def tutorial_dataset(rows: list[str], tokenizer: Any, length: int) -> Dataset:
    """Clean, filter and tokenize the way the tutorial's script does."""

    def clean(example: dict[str, str]) -> dict[str, str]:
        return {"text": re.sub(r"[^\w\s\u4e00-\u9fff]+", " ", example["text"]).strip()}

    dataset = Dataset.from_dict({"text": rows}).map(clean)
    dataset = dataset.filter(lambda example: len(example["text"]) > 0)
    return dataset.map(
        lambda batch: tokenizer(
            batch["text"], padding="max_length", truncation=True, max_length=length
        ),
        batched=True,
        remove_columns=["text"],
    )


@pytest.mark.parametrize("length", [LENGTH, 128])
def test_ids_and_masks_are_the_tutorials(tmp_path: Path, tiny_model: Path, length: int) -> None:
    rows = hub_rows(wiki_rows(articles=110, paragraphs=3))
    rows += ["全部是中文，带标点。\n", " mixed 中文 & “quotes” @,@ \n", "...\n", "x\n"]
    kept = [row for row in rows if re.sub(r"[^\w\s\u4e00-\u9fff]+", " ", row).strip()]
    assert len(kept) >= 440
    assert len(rows) >= 500
    write_source(tmp_path / "wiki", rows)
    data = WikiTextDataModule(
        str(tmp_path / "wiki"),
        tokenizer=str(tiny_model),
        cleaning="tutorial",
        blocks="pad",
        block_size=length,
    )
    data.prepare(["train"])
    data.setup("fit")
    blocks = data.split_blocks("train")
    ours = blocks.batch(np.arange(len(blocks)))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.pad_token = tokenizer.eos_token
    theirs = tutorial_dataset(rows, tokenizer, length)
    assert ours["input_ids"].tolist() == theirs["input_ids"][:]
    assert ours["attention_mask"].tolist() == theirs["attention_mask"][:]
    # the collator's labels, shifted: what the tutorial's model has to predict
    collator = DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm=False)
    labels = collator(list(theirs))["labels"]
    assert torch.equal(ours["targets"][:, :-1], labels[:, 1:])
    assert (ours["targets"][:, -1] == -100).all()


class InOrder(Trainer):
    """A Trainer that takes the rows as they come."""

    def _get_train_sampler(self, *args: Any) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(cast(Dataset, self.train_dataset))


def trainers_losses(model_folder: Path, dataset: Dataset, *, corrected: bool) -> list[float]:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.pad_token = tokenizer.eos_token
    off = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32, **off)
    if corrected:
        model.loss_type = "ForCausalLM"
    arguments = TrainingArguments(
        output_dir="trainer",
        per_device_train_batch_size=2,
        num_train_epochs=1,
        learning_rate=1e-4,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = InOrder(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm=False),
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture
def both_sides(tmp_path: Path, tiny_model: Path) -> tuple[list[float], Dataset, list[int], Path]:
    """Our losses of tutorial.yaml, and the same rows in the same order for the Trainer."""
    rows = [row for row in wiki_rows(articles=40) if row.strip()][:100]
    write_source(tmp_path / "wiki", rows)
    run = fit(
        f"--config={ROOT / 'configs/tutorial.yaml'}",
        f"--model.pretrained={tiny_model}",
        "--model.dropout=0.0",
        "--model.attention_dropout=0.0",
        f"--data.source={tmp_path / 'wiki'}",
        "--data.subset=null",
        f"--data.block_size={LENGTH}",
        "--trainer.log_every_n_steps=1",
        "--samples.enabled=false",
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.pad_token = tokenizer.eos_token
    dataset = tutorial_dataset(rows, tokenizer, LENGTH)
    order = np.random.default_rng([42, 0]).permutation(len(dataset))
    dataset = dataset.select(order.tolist())
    targets = [sum(mask) - 1 for mask in dataset["attention_mask"]]
    return curves(run)["train/loss"], dataset, targets, tiny_model


def test_fifty_losses_follow_the_trainers(
    both_sides: tuple[list[float], Dataset, list[int], Path],
) -> None:
    ours, dataset, targets, model = both_sides
    assert len(ours) == 50
    theirs = trainers_losses(model, dataset, corrected=True)
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours[-1] < ours[0] - 0.05
    # As it comes, the Trainer divides by labels that count each row's first token, which nothing
    # predicts; its gradients are smaller by the same share, and the two part slowly.
    stock = trainers_losses(model, dataset, corrected=False)
    for step in range(5):
        count = targets[2 * step] + targets[2 * step + 1]
        assert stock[step] == pytest.approx(ours[step] * count / (count + 2), rel=1e-3)
    assert stock[0] == pytest.approx(ours[0] * sum(targets[:2]) / (sum(targets[:2]) + 2), rel=1e-6)
