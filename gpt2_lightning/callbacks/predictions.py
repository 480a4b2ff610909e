"""What ``predict`` writes: one line for every prompt, in the prompts' order."""

import json
from pathlib import Path
from typing import Any, Literal, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from gpt2_lightning.callbacks.run_folder import run_folder
from gpt2_lightning.data.token_text import decoder
from gpt2_lightning.model.module import GPT2Module
from gpt2_lightning.storage import append_text, write_text

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
        if (folder := run_folder(trainer)) is None:  # with fast_dev_run
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.part = folder / f"predictions.jsonl.{trainer.global_rank}"
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
        tokenizer = cast(Any, trainer).datamodule.tokenizer
        sampling = cast(GPT2Module, pl_module).sampling
        lines = []
        for index, prompt, read, samples in zip(
            batch["index"], batch["prompts"], batch["input_ids"], prediction, strict=True
        ):
            decode = decoder(tokenizer, after=read.tolist())
            texts = [
                {"seed": seed, "text": sampling.before_stop(decode(ids))}
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
