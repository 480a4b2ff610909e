"""What only the run itself knows, kept for its report: ``facts.json``."""

import json
import logging
import os
import platform
import time
from contextlib import nullcontext, suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from gpt2_lightning.callbacks.outcome import Outcome, best_of
from gpt2_lightning.callbacks.run_folder import run_folder
from gpt2_lightning.data.blocks import PaddedBlocks
from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.data.rows import SplitName
from gpt2_lightning.data.tokenizer import tokenizer_digest
from gpt2_lightning.data.yardstick import xz_bits_per_byte
from gpt2_lightning.inference.checkpoint import facts_of
from gpt2_lightning.model.causal_lm import count_parameters, positions_of
from gpt2_lightning.model.module import GPT2Module, NotFinite
from gpt2_lightning.storage import flush_folder, flush_tree, refusal_of, write_text

LIBRARIES = ("gpt2-lightning", "lightning", "torch", "transformers", "tokenizers", "datasets")

log = logging.getLogger(__name__)


class Facts(Callback):
    """Writes ``facts.json`` when training begins, and what came of it at the end.

    A run that goes on keeps its beginning, and adds to its duration and commands. The file holds
    neither the machine's name nor a path that was not typed.

    Args:
        words: The words of the command line, verb first.
    """

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.facts: dict[str, Any] = {}
        self.local: list[str] | None = None
        self._parameters = 0
        self._begun = 0.0
        self._seconds_before = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and count the parameters while each process has them whole."""
        self._begun = time.perf_counter()
        if self.local is None:
            named = {
                "data.source": cast(Any, trainer).datamodule.source,
                "model.pretrained": cast(Any, pl_module).hparams.pretrained,
            }
            self.local = [
                flag for flag, name in named.items() if name and Path(name).expanduser().exists()
            ]
        self._parameters = count_parameters(cast(GPT2Module, pl_module).model)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is known; earlier, a mistake could still leave no run at all."""
        folder = run_folder(trainer)
        if not trainer.is_global_zero or folder is None:
            return
        data: WikiTextDataModule = cast(Any, trainer).datamodule
        module = cast(GPT2Module, pl_module)
        going_on = trainer.global_step > 0 and (folder / "facts.json").is_file()
        earlier = facts_of(folder) if going_on else {}
        if going_on and not earlier:
            log.warning("%s begins anew.", folder / "facts.json")
        self._seconds_before = earlier.get("seconds") or 0.0
        self.facts = {
            "started": earlier.get("started")
            or datetime.now().astimezone().isoformat("T", "seconds"),
            "seconds": self._seconds_before,
            "ended": None,
            "commands": [
                *(earlier.get("commands") or []),
                ["python", "-m", "gpt2_lightning", *self.words],
            ],
            "versions": {"python": platform.python_version()} | _versions(),
            "machine": _machine(trainer),
            "trainer": _trainer(trainer),
            "model": _model(module, self._parameters),
            "steps": _steps(trainer, module, data),
            "data": {split: split_facts(data, split) for split in data.stores},
            "local": self.local,
            "tokenizer": tokenizer_digest(data.tokenizer),
            "cleaning": {"name": data.cleaner.name, "lossless": data.cleaner.lossless},
            "no_bits_per_byte": data.original_bytes("validation")[1] or None,
            "xz_bits_per_byte": earlier.get("xz_bits_per_byte"),
            "outcome": earlier.get("outcome"),
            "best": best_of(trainer),
        }
        self._write(folder)
        flush_tree(folder)  # its checkpoints need the settings that others have written there
        flush_folder(folder.parent)

    def state_dict(self) -> dict[str, Any]:
        """Tell every checkpoint which names are paths: from elsewhere it could not be seen."""
        return {"local": self.local}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was seen where the run began."""
        self.local = state_dict["local"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the duration up to here, should the run be killed."""
        self._go_on(trainer, None)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what came of it."""
        data: WikiTextDataModule = cast(Any, trainer).datamodule
        if self.facts and self.facts["no_bits_per_byte"] is None:
            splits = data.stores["train"], data.stores["validation"]
            self.facts["xz_bits_per_byte"] = xz_bits_per_byte(*splits, data.tokenizer)
        self._go_on(trainer, "finished")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write that it ended early."""
        stopped = isinstance(exception, KeyboardInterrupt | SystemExit)
        # a disk that has refused is not asked to speak twice
        with suppress(OSError) if refusal_of(exception) else nullcontext():
            failed = "not finite" if isinstance(exception, NotFinite) else "failed"
            self._go_on(trainer, "stopped" if stopped else failed)

    def _go_on(self, trainer: Trainer, ended: str | None) -> None:
        folder = run_folder(trainer)
        if not self.facts or folder is None:  # training has not begun, or another process writes
            return
        self.facts["seconds"] = self._seconds_before + time.perf_counter() - self._begun
        self.facts["steps"]["trained"] = trainer.global_step
        self.facts["steps"]["skipped"] = cast(GPT2Module, trainer.lightning_module).skipped_steps
        self.facts["ended"] = ended
        for callback in cast(Any, trainer).callbacks:
            if isinstance(callback, Outcome):
                self.facts["outcome"] = callback.state_dict()
        self.facts["best"] = best_of(trainer)
        self._write(folder)

    def _write(self, folder: Path) -> None:
        text = json.dumps(self.facts, indent=2, ensure_ascii=False)
        write_text(folder / "facts.json", text + "\n")


def split_facts(data: WikiTextDataModule, split: SplitName) -> dict[str, Any]:
    """Return what a split holds, and what of it the model sees.

    Returns:
        Counts of the original text (``articles``, ``rows``, ``words``, ``bytes``), ``tokens``,
        ``blocks`` and ``targets`` of an epoch, and three shares from 0 to 1: positions ``padded``,
        tokens ``cut_off`` and bytes ``cleaned_away``.
    """
    manifest, blocks = data.stores[split].manifest, data.split_blocks(split)
    padded = isinstance(blocks, PaddedBlocks)
    held = int(np.sum(blocks.lengths if isinstance(blocks, PaddedBlocks) else blocks.target_counts))
    return {
        "articles": manifest.articles,
        "rows": manifest.rows,
        "words": manifest.words,
        "bytes": manifest.bytes,
        "tokens": manifest.tokens,
        "blocks": len(blocks),
        "targets": int(blocks.target_counts.sum()),
        "padded": 1 - held / (len(blocks) * data.block_size),
        "cut_off": 1 - held / manifest.tokens if padded else 0.0,
        "cleaned_away": 1 - manifest.cleaned_bytes / manifest.bytes,
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from its folder, not installed
            continue
    return found


def _machine(trainer: Trainer) -> dict[str, Any]:
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS and Windows
    on_cuda = trainer.strategy.root_device.type == "cuda"
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count(),
        "gpus": [
            torch.cuda.get_device_name(number)
            for number in range(torch.cuda.device_count() if on_cuda else 0)
        ],
    }


def _trainer(trainer: Trainer) -> dict[str, Any]:
    return {
        "accelerator": trainer.strategy.root_device.type,
        "devices": trainer.num_devices,
        "nodes": trainer.num_nodes,
        "processes": trainer.world_size,
        "strategy": type(trainer.strategy).__name__,
        "precision": trainer.precision,
    }


def _model(module: GPT2Module, parameters: int) -> dict[str, Any]:
    config = module.model.config
    return {
        "type": config.model_type,
        "parameters": parameters,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "width": config.hidden_size,
        "positions": positions_of(module.model),
        "vocabulary": config.vocab_size,
    }


def _steps(trainer: Trainer, module: GPT2Module, data: WikiTextDataModule) -> dict[str, int]:
    blocks = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
    return {
        "schedule": module.total_steps(),
        "epoch": data.train_dataloader().steps_taken,
        "blocks": blocks,
        "tokens": blocks * data.block_size,
    }
