"""What a run is about to do, said at its start in plain numbers."""

import logging
import os
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from gpt2_lightning.data.token_text import sampled_vocabulary
from gpt2_lightning.model.causal_lm import count_parameters
from gpt2_lightning.model.module import GPT2Module

log = logging.getLogger(__name__)


class Totals(Callback):
    """Says parameters, tokens per optimizer step and steps, and where the schedule ends."""

    def __init__(self) -> None:
        self._trains = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say it."""
        module = cast(GPT2Module, pl_module)
        data = cast(Any, trainer).datamodule
        batches = data.train_dataloader()
        blocks = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        total = module.total_steps()
        log.info(
            "Training %s on %s.", module.hparams["pretrained"] or "from scratch", data.described
        )
        log.info(
            "%s parameters; %s tokens to predict in %s blocks of %d; a step takes %s blocks (%s "
            "tokens), an epoch %s steps, the schedule %s.",
            f"{count_parameters(module.model):,}",
            f"{int(batches.blocks.target_counts.sum()):,}",
            f"{len(batches.blocks):,}",
            data.block_size,
            f"{blocks:,}",
            f"{blocks * data.block_size:,}",
            f"{batches.steps_taken:,}",
            f"{total:,}",
        )
        store = data.stores["train"]
        if store.manifest.lost:
            log.info(
                "The tokenizer does not give back all of the text: %s are lost for good, in "
                "training and in what the model writes.",
                ", ".join(store.manifest.lost),
            )
        trained = data.tokenizer_name is None
        if (note := sampled_vocabulary(data.tokenizer, store.ids, trained=trained)) is not None:
            log.warning("%s", note)
        here, cores = trainer.world_size // trainer.num_nodes, os.cpu_count() or 1
        if trainer.strategy.root_device.type == "cpu" and here > cores:
            log.warning(
                "--trainer.devices %d: so many processes share %d cores. --trainer.devices 1 is "
                "likely to be faster.",
                here,
                cores,
            )
        if 0 < trainer.max_steps < total:
            log.info(
                "--trainer.max_steps %d ends the run before the learning rate's schedule; "
                "--model.schedule_steps %d would end both together.",
                trainer.max_steps,
                trainer.max_steps,
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where a run goes on."""
        self._trains = True
        if trainer.global_step > 0:
            log.info("Going on after step %s.", f"{trainer.global_step:,}")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that there was nothing to do."""
        if not self._trains:
            log.info("Nothing is left to train after step %s.", f"{trainer.global_step:,}")
