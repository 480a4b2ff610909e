"""Samples: prompts continued at every validation, for TensorBoard and samples.jsonl."""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, pairwise, product
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gpt2_lightning.data.prompts import encode_prompt
from gpt2_lightning.data.token_text import TextAssembler, decoder, passage
from gpt2_lightning.fit.checkpoints import typed
from gpt2_lightning.fit.run_folder import current_run
from gpt2_lightning.fit.sharding import whole_model
from gpt2_lightning.model.decoding import generate
from gpt2_lightning.model.gpt2 import positions_of
from gpt2_lightning.model.module import GPT2Module
from gpt2_lightning.run_folder import Run
from gpt2_lightning.storage import append_text

if TYPE_CHECKING:
    from gpt2_lightning.evaluate.quality import Quality

log = logging.getLogger(__name__)

DEFAULT_PROMPTS = 3  # where none are given

PROMPT_TOKENS = 16  # of each, at most


class Samples(Callback):
    """Continues prompts at every validation, for TensorBoard's text page and ``samples.jsonl``.

    Logs what can be counted of them, too: ``samples/distinct_2``, ``samples/repeated_4`` and
    ``samples/ended`` are shares, ``samples/longest_copy`` is in tokens (see `Quality`).
    Every sample has a seed of its own, so training is the same with and without this callback.

    Args:
        prompts: What to continue; null takes the first words of the first three validation blocks,
            16 tokens at most.
        enabled: Whether to sample at all.
    """

    def __init__(self, prompts: list[str] | None = None, enabled: bool = True) -> None:
        self.prompts = prompts
        self.enabled = enabled

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample, in one process."""
        run = current_run(trainer)
        if not self.enabled or trainer.state.fn != "fit" or run is None:
            return
        module = cast(GPT2Module, pl_module)
        model = whole_model(module)
        if model is None or not trainer.is_global_zero:
            return  # the raw model is used below: no rank waits for another
        # here, since parsing the flags of fit, which are this class' too, needs no evaluation
        from gpt2_lightning.evaluate.quality import measure

        data = typed(trainer).datamodule
        tokenizer: PreTrainedTokenizerBase = data.tokenizer
        longest_prompt = positions_of(model) - 1
        prompts = [ids[:longest_prompt] for ids in self._prompts(data)]
        longest = max(len(ids) for ids in prompts)
        sampling = replace(
            module.sampling,
            max_new_tokens=min(module.sampling.max_new_tokens, longest_prompt + 1 - longest),
        )
        end_of_text = int(cast(int, tokenizer.eos_token_id))

        def assemble(prompt: list[int]) -> TextAssembler:
            return TextAssembler(tokenizer, sampling.stop, after=prompt)

        drawn = generate(model, prompts, sampling, end_of_text=end_of_text, assemble=assemble)
        samples = [ids for continuations in drawn for ids in continuations]
        assemblers = [assemble(prompt.tolist()) for prompt in prompts for _ in sampling.seeds]
        texts = [text.add_all(ids) for text, ids in zip(assemblers, samples, strict=True)]
        ended = [
            text.stopped or len(ids) < sampling.max_new_tokens
            for text, ids in zip(assemblers, samples, strict=True)
        ]
        store = data.stores["train"]
        quality = measure(samples, ended, store.ids if store.at_hand else None)
        copies: Sequence[int | None] = quality.longest_copies or [None] * len(samples)
        step = trainer.global_step  # 0 before training
        rows = [
            {
                "step": step,
                "prompt": decoder(tokenizer)(prompt.tolist()),
                "seed": seed,
                "text": text,
                "ended": by_itself,
                "longest_copy": copied,
            }
            for (prompt, seed), text, by_itself, copied in zip(
                product(prompts, sampling.seeds),
                texts,
                ended,
                copies,
                strict=True,
            )
        ]
        self._write(run, rows)
        scalars = _as_scalars(quality)
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=step)
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("samples", as_markdown(rows), step)

    def _prompts(self, data: Any) -> list[Tensor]:
        if self.prompts:
            return [encode_prompt(data.tokenizer, prompt) for prompt in self.prompts]
        store, most = data.stores["validation"], min(PROMPT_TOKENS, data.block_size)
        texts = [(store.ids, number * data.block_size) for number in range(DEFAULT_PROMPTS)]
        if data.blocks == "pad":
            rows = pairwise(store.starts[: DEFAULT_PROMPTS + 1].tolist())
            texts = [(store.ids[begins:ends], 0) for begins, ends in rows]
        places = [(ids, passage(data.tokenizer, ids, begins, most=most)) for ids, begins in texts]
        found = [ids[place] for ids, place in places if place is not None]
        prompts = {tuple(ids.tolist()): ids for ids in found}  # each once
        return [torch.from_numpy(ids.astype(np.int64)) for ids in prompts.values()]

    @staticmethod
    def _write(run: Run, rows: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        append_text(run.samples_file, lines)


def _as_scalars(quality: "Quality") -> dict[str, float]:
    """Return what is drawn as a curve; a number that samples are too short for is left out."""
    numbers = {
        "samples/distinct_2": quality.distinct_2,
        "samples/repeated_4": quality.repeated_4,
        "samples/ended": quality.ended,
        "samples/longest_copy": quality.longest_copy,
    }
    return {name: number for name, number in numbers.items() if number is not None}


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """Return samples for TensorBoard's text page, fenced: text is no markup, and none is lost."""
    parts = []
    for prompt, samples in groupby(rows, key=lambda row: str(row["prompt"])):
        parts.append(f"**Prompt**\n\n{_fenced(prompt)}")
        parts += [f"*seed {row['seed']}*\n\n{_fenced(row['text'])}" for row in samples]
    return "\n\n".join(parts)


def _fenced(text: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"
