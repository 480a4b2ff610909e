"""How much each token of a held-out passage surprises the model, at every validation."""

import json
import logging
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from transformers import PreTrainedModel

from gpt2_lightning.callbacks.run_folder import run_folder
from gpt2_lightning.callbacks.sharding import is_sharded
from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.data.token_text import passage, whole_characters
from gpt2_lightning.model.loss import token_nats
from gpt2_lightning.model.module import GPT2Module
from gpt2_lightning.storage import append_text, write_text

PASSAGE = 200  # tokens, of an article that has so many
UNITS_LOOKED_AT = 32  # articles or rows

log = logging.getLogger(__name__)


class Surprisal(Callback):
    """Writes ``surprisal.jsonl``: a line for each validation, with ``tokens`` and their ``nats``.

    One process computes it, in the model's own precision, and draws no random number.
    """

    def __init__(self) -> None:
        self._fresh = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say why there will be none, where that is so."""
        self._fresh = trainer.ckpt_path is None
        if is_sharded(trainer):
            log.info("surprisal.jsonl is not written: no process has the whole model.")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the passage, in one process."""
        folder = run_folder(trainer)
        if trainer.state.fn != "fit" or not trainer.is_global_zero or folder is None:
            return
        if is_sharded(trainer):
            return
        data = cast(Any, trainer).datamodule
        inputs, targets = passage_of(data)
        nats = iter(nats_of(cast(GPT2Module, pl_module).model, inputs, targets))
        pieces = whole_characters(data.tokenizer, targets.tolist(), after=inputs[:1].tolist())
        row = {
            "step": trainer.global_step,
            "tokens": [text for text, _ in pieces],
            # of tokens that only together make up whole characters, the sum
            "nats": [round(sum(islice(nats, tokens)), 4) for _, tokens in pieces],
        }
        line = json.dumps(row, ensure_ascii=False) + "\n"
        # of another run in the same folder nothing is left
        (write_text if self._fresh else append_text)(folder / "surprisal.jsonl", line)
        self._fresh = False


def passage_of(data: WikiTextDataModule) -> tuple[Tensor, Tensor]:
    """Choose the beginning of an article or row of the validation split, up to a word's end.

    It is the first that is long enough among the first, else the longest of these.

    Args:
        data: Set up.

    Returns:
        Inputs and targets, both of shape ``(tokens,)``.
    """
    store = data.stores["validation"]
    lead = 1 if data.blocks == "pack" else 0  # an article follows an end-of-text, a row nothing
    most = min(PASSAGE, data.block_size)
    found = np.empty(0, np.int64)
    for begins in store.starts[: min(UNITS_LOOKED_AT, store.manifest.units)].tolist():
        ends = store.starts[np.searchsorted(store.starts, begins, "right")]
        unit = store.ids[begins - lead : ends]
        if (place := passage(data.tokenizer, unit, 0, most=most)) is None:
            continue
        if place.stop > len(found):
            found = unit[: place.stop].astype(np.int64)
        if len(found) > most // 2:
            break
    ids = torch.from_numpy(found)
    return ids[:-1], ids[1:]


@torch.no_grad()
def nats_of(model: PreTrainedModel, inputs: Tensor, targets: Tensor) -> list[float]:
    """Return the nats of each target, shape ``(tokens,)``, as plain numbers."""
    device = model.device
    was_training = model.training
    model.eval()
    try:
        with torch.autocast(device.type, enabled=False):
            hidden = model.base_model(inputs[None].to(device), use_cache=False).last_hidden_state
            weight = model.get_output_embeddings().weight
            nats = token_nats(hidden[0].to(weight.dtype), weight, targets.to(device))
    finally:
        model.train(was_training)
    return [float(value) for value in nats.tolist()]
