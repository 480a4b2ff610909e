"""How much each token of a held-out passage surprises the model, at every validation."""

import json
import logging
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gpt2_lightning.callbacks.run_folder import run_folder
from gpt2_lightning.callbacks.sharding import is_sharded
from gpt2_lightning.data.blocks import Blocks
from gpt2_lightning.model.loss import token_nats
from gpt2_lightning.model.module import GPT2Module
from gpt2_lightning.storage import append_text, write_text

PASSAGE = 200  # tokens, of a block that has so many
LONGEST_GROUP = 16  # tokens that are held back for a whole character
CUT_CHARACTER = "\ufffd"  # what stands in a text for bytes that make no character

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
        if is_sharded(trainer) or cast(Any, trainer).fast_dev_run:
            return
        data = cast(Any, trainer).datamodule
        inputs, targets = passage_of(data.split_blocks("validation"))
        nats = nats_of(cast(GPT2Module, pl_module).model, inputs, targets)
        tokens = whole_characters(data.tokenizer, int(inputs[0]), targets.tolist(), nats)
        row = {
            "step": trainer.global_step,
            "tokens": [text for text, _ in tokens],
            "nats": [round(value, 4) for _, value in tokens],
        }
        line = json.dumps(row, ensure_ascii=False) + "\n"
        # of another run in the same folder nothing is left
        (write_text if self._fresh else append_text)(folder / "surprisal.jsonl", line)
        self._fresh = False


def passage_of(blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Return the beginning of the first block that is long enough, else of the longest.

    Returns:
        Inputs and targets, both of shape ``(tokens,)``.
    """
    wanted = min(PASSAGE, int(blocks.target_counts.max()))
    first = int(np.argmax(blocks.target_counts >= wanted))
    batch = blocks.batch(np.array([first]))
    return batch["input_ids"][0, :wanted], batch["targets"][0, :wanted]


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


def whole_characters(
    tokenizer: PreTrainedTokenizerBase, before: int, ids: list[int], nats: list[float]
) -> list[tuple[str, float]]:
    """Turn ids into text, joining those that only together make up whole characters.

    Args:
        tokenizer: What made the ids.
        before: The id before the first, which decides whether a space precedes it.
        ids: The ids.
        nats: Nats of each.

    Returns:
        Text and nats of each token or group of tokens; the nats of a group are summed.
    """

    def decode(some: list[int]) -> str:
        # tidied-up spaces would change what was decoded before
        return cast(str, tokenizer.decode(some, clean_up_tokenization_spaces=False))

    pieces: list[tuple[str, float]] = []
    said, held, held_nats = decode([before]), 0, 0.0
    for count, value in enumerate(nats, start=1):
        text = decode([before, *ids[:count]])
        held, held_nats = held + 1, held_nats + value
        piece = text[len(said) :]
        broken = not piece or piece.endswith(CUT_CHARACTER)
        if broken and held < LONGEST_GROUP and count < len(ids):
            continue
        pieces.append((piece, held_nats))
        said, held, held_nats = text, 0, 0.0
    return pieces
