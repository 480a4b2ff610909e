"""What a run writes for later: facts.json, surprisal.jsonl, predictions.jsonl."""

import json
import logging
import os
import platform
import time
from contextlib import nullcontext, suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor
from transformers import PreTrainedModel

from gpt2_lightning.checkpoint import FACTS_KEY
from gpt2_lightning.data.articles import SplitName
from gpt2_lightning.data.batches import PaddedBlocks
from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.data.token_text import passage, whole_characters
from gpt2_lightning.data.tokenizer import tokenizer_digest
from gpt2_lightning.fit.checkpoints import typed
from gpt2_lightning.fit.finish import RunSummary, best_of, ended_by
from gpt2_lightning.fit.run_folder import current_run, tracked
from gpt2_lightning.fit.sharding import whole_model
from gpt2_lightning.model.gpt2 import count_parameters, positions_of
from gpt2_lightning.model.lora import adapter_of
from gpt2_lightning.model.loss import token_nats
from gpt2_lightning.model.module import GPT2Module
from gpt2_lightning.model.nonfinite import NotFinite
from gpt2_lightning.run_folder import Run
from gpt2_lightning.storage import append_text, flush_folder, flush_tree, refusal_of, write_text

log = logging.getLogger(__name__)

LIBRARIES = ("gpt2-lightning", "lightning", "torch", "transformers", "tokenizers", "datasets")


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
                "data.source": typed(trainer).datamodule.source,
                "model.pretrained": pl_module.hparams["pretrained"],
            }
            self.local = [
                flag for flag, name in named.items() if name and Path(name).expanduser().exists()
            ]
        self._parameters = count_parameters(cast(GPT2Module, pl_module).model)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is known; earlier, a mistake could still leave no run at all."""
        run = current_run(trainer)
        if not trainer.is_global_zero or run is None:
            return
        data = typed(trainer).datamodule
        module = cast(GPT2Module, pl_module)
        going_on = trainer.global_step > 0 and run.facts_file.is_file()
        earlier = Run(run.folder).known("facts") if going_on else {}
        if going_on and not earlier:
            log.warning("%s begins anew.", run.facts_file)
        self._seconds_before = earlier.get("seconds") or 0.0
        self.facts = {
            "started": earlier.get("started")
            or datetime.now().astimezone().isoformat("T", "seconds"),
            "seconds": self._seconds_before,
            "ended": None,
            "ended_by": None,
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
            "trackers": tracked(trainer.loggers),
            "outcome": earlier.get("outcome"),
            "best": best_of(trainer),
        }
        self._write(run)
        flush_tree(run.folder)  # its checkpoints need the settings that others have written there
        flush_folder(run.folder.parent)

    @property
    def state_key(self) -> str:
        """Name the state in a checkpoint."""
        return FACTS_KEY

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
        if self.facts and self.facts["no_bits_per_byte"] is None:
            data = typed(trainer).datamodule
            self.facts["xz_bits_per_byte"] = _summary(trainer).xz_bits_per_byte(data)
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
        run = current_run(trainer)
        if not self.facts or run is None:  # training has not begun, or another process writes
            return
        module = cast(GPT2Module, trainer.lightning_module)
        self.facts["seconds"] = self._seconds_before + time.perf_counter() - self._begun
        self.facts["steps"]["schedule"] = module.total_steps() or 0  # a time limit may change it
        self.facts["steps"]["trained"] = trainer.global_step
        self.facts["steps"]["skipped"] = module.nonfinite.skipped
        self.facts["ended"] = ended
        self.facts["ended_by"] = ended_by(trainer)[0] if ended == "finished" else None
        self.facts["outcome"] = _summary(trainer).state_dict()
        self.facts["best"] = best_of(trainer)
        self._write(run)

    def _write(self, run: Run) -> None:
        text = json.dumps(self.facts, indent=2, ensure_ascii=False)
        write_text(run.facts_file, text + "\n")


def _summary(trainer: Trainer) -> RunSummary:
    return next(it for it in typed(trainer).callbacks if isinstance(it, RunSummary))


def split_facts(data: WikiTextDataModule, split: SplitName) -> dict[str, Any]:
    """Return what a split holds, and what of it the model sees.

    Returns:
        Counts of the original text (``articles``, ``rows``, ``words``, ``bytes``), ``tokens``,
        ``blocks`` and ``targets`` of an epoch, and three shares from 0 to 1: positions ``padded``,
        tokens ``cut_off`` and bytes ``cleaned_away``.
    """
    manifest, blocks = data.stores[split].manifest, data.split_blocks(split)
    padded = isinstance(blocks, PaddedBlocks)
    held = blocks.tokens if isinstance(blocks, PaddedBlocks) else blocks.targets
    return {
        "articles": manifest.articles,
        "rows": manifest.rows,
        "words": manifest.words,
        "bytes": manifest.bytes,
        "tokens": manifest.tokens,
        "blocks": len(blocks),
        "targets": blocks.targets,
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
    adapter = sum(it.numel() for it in adapter_of(module.model).values())
    return {
        "type": config.model_type,
        "parameters": parameters - adapter,  # of hf/, to whose weights it is added
        "adapter": adapter,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "width": config.hidden_size,
        "positions": positions_of(module.model),
        "vocabulary": config.vocab_size,
    }


def _steps(trainer: Trainer, module: GPT2Module, data: WikiTextDataModule) -> dict[str, int]:
    blocks = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
    return {
        "schedule": module.total_steps() or 0,
        "epoch": data.train_dataloader().num_steps,
        "blocks": blocks,
        "tokens": blocks * data.block_size,
    }


PASSAGE = 200  # tokens, of an article that has so many

UNITS_LOOKED_AT = 32  # articles or rows


class Surprisal(Callback):
    """Writes ``surprisal.jsonl``: a line for each validation, with ``tokens`` and their ``nats``.

    One process computes it, in the model's own precision, and draws no random number.
    """

    def __init__(self) -> None:
        self._fresh = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find whether the file begins anew."""
        self._fresh = trainer.ckpt_path is None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the passage, in one process."""
        run = current_run(trainer)
        if trainer.state.fn != "fit" or run is None:
            return
        model = whole_model(cast(GPT2Module, pl_module))
        if model is None or not trainer.is_global_zero:
            return
        data = typed(trainer).datamodule
        inputs, targets = passage_of(data)
        nats = iter(nats_of(model, inputs, targets))
        pieces = whole_characters(data.tokenizer, targets.tolist(), after=inputs[:1].tolist())
        row = {
            "step": trainer.global_step,
            "tokens": [text for text, _ in pieces],
            # of tokens that only together make up whole characters, the sum
            "nats": [round(sum(islice(nats, tokens)), 4) for _, tokens in pieces],
        }
        line = json.dumps(row, ensure_ascii=False) + "\n"
        # of another run in the same folder nothing is left
        (write_text if self._fresh else append_text)(run.surprisal, line)
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


INTERVAL: Literal["batch"] = "batch"


class Predictions(BasePredictionWriter):
    """Writes ``predictions.jsonl``: index, prompt and samples, each with its seed.

    Every rank writes its own part; at the end one process puts the parts in order.

    Attributes:
        file: Where the predictions were written, once they are.
    """

    def __init__(self) -> None:
        super().__init__(write_interval=INTERVAL)
        self.file: Path | None = None
        self.part: Path | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with an empty part."""
        if (run := current_run(trainer)) is None:  # with fast_dev_run
            return
        run.folder.mkdir(parents=True, exist_ok=True)
        self.part = run.predictions.with_suffix(f".jsonl.{trainer.global_rank}")
        self.part.write_text("")

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Add a batch to this rank's part."""
        if self.part is None:
            return
        assemble = typed(trainer).datamodule.assembler
        sampling = cast(GPT2Module, pl_module).sampling
        lines = []
        for index, prompt, read, samples in zip(
            batch["index"], batch["prompts"], batch["input_ids"], prediction, strict=True
        ):
            texts = [
                {"seed": seed, "text": assemble(read.tolist(), sampling.stop).add_all(ids)}
                for seed, ids in zip(sampling.seeds, samples, strict=True)
            ]
            row = {"index": index, "prompt": prompt, "samples": texts}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        append_text(self.part, "".join(lines))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the parts of all ranks in order."""
        if self.part is None:
            return
        trainer.strategy.barrier("predictions")
        self.file = self.part.with_suffix("")
        if trainer.is_global_zero:
            parts = [self.part.with_suffix(f".{rank}") for rank in range(trainer.world_size)]
            lines = [line for part in parts for line in part.read_text("utf-8").split("\n") if line]
            lines.sort(key=lambda line: int(json.loads(line)["index"]))
            write_text(self.file, "".join(line + "\n" for line in lines))
            for part in parts:
                part.unlink()
            print(f"{len(lines)} prompts continued: {self.file}")
