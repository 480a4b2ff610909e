"""Sampling: the options, and generation in batches with a seed for every row."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gpt2_lightning.errors import UsageError
from gpt2_lightning.model.causal_lm import positions_of


@dataclass
class SamplingOptions:
    """How text is drawn; the defaults are the tutorial's.

    Attributes:
        max_new_tokens: Tokens to write at most.
        do_sample: Draw at random; otherwise always take the likeliest token.
        temperature: Below 1 sharpens the distribution, above 1 flattens it.
        top_k: Draw from the k likeliest tokens; 0 for all.
        top_p: Draw from the likeliest tokens that make up this probability.
        num_return_sequences: Samples for each prompt.
        seed: Seed of a prompt's first sample; the next ones have the next seeds.
    """

    max_new_tokens: int = 100
    do_sample: bool = True
    temperature: float = 0.7
    top_k: int = 50
    top_p: float = 0.95
    num_return_sequences: int = 3
    seed: int = 0

    def check(self) -> None:
        """See that the options make sense.

        Raises:
            UsageError: If one is out of its range.
        """
        rules = {
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
            "temperature": (self.temperature > 0, "above 0 (--do_sample false for greedy)"),
            "top_k": (self.top_k >= 0, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "num_return_sequences": (self.num_return_sequences >= 1, "1 or more"),
            "seed": (self.seed >= 0, "0 or more"),
        }
        for name, (holds, range_) in rules.items():
            if not holds:
                raise UsageError(f"--{name} {getattr(self, name)}: it has to be {range_}.")
        if not self.do_sample and self.num_return_sequences > 1:
            raise UsageError(
                f"--num_return_sequences {self.num_return_sequences}: without --do_sample all "
                "samples are the same; ask for 1."
            )

    @property
    def seeds(self) -> list[int]:
        """The seeds of one prompt's samples."""
        return list(range(self.seed, self.seed + self.num_return_sequences))


class RowNoise(LogitsProcessor):
    """Adds Gumbel noise, each row from its own generator: the largest score is then a draw.

    A row's text depends on its seed alone, whatever else is in the batch.

    Reference: Maddison et al., "A* Sampling", https://arxiv.org/abs/1411.0030, section 2.

    Args:
        seeds: One for every row.
    """

    def __init__(self, seeds: list[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores with noise, both of shape ``(rows, vocabulary)``."""
        # drawn on the CPU, so that a seed means the same on every device
        exponential = torch.stack(
            [torch.empty(scores.shape[-1]).exponential_(generator=g) for g in self.generators]
        )
        return scores.float() - exponential.log().to(scores.device)


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    prompts: list[Tensor],
    options: SamplingOptions,
    *,
    end_of_text: int,
) -> list[list[list[int]]]:
    """Continue prompts, all in one batch.

    Args:
        model: The language model; it is in eval mode while this runs.
        prompts: Ids of each prompt, shape ``(tokens,)``.
        options: How to draw.
        end_of_text: Id at which a sample ends by itself.

    Returns:
        For each prompt, for each of its samples, the new ids, without the end-of-text.

    Raises:
        UsageError: If a prompt and its continuation exceed the model's positions.
    """
    room = positions_of(model)
    longest = max(len(prompt) for prompt in prompts)
    if longest + options.max_new_tokens > room:
        raise UsageError(
            f"--max_new_tokens {options.max_new_tokens}: with a prompt of {longest} tokens this "
            f"exceeds the model's {room} positions. "
            + (
                f"--max_new_tokens {room - longest} would work."
                if longest < room
                else f"Shorten the prompt to less than {room} tokens."
            )
        )
    copies = options.num_return_sequences
    rows = [prompt for prompt in prompts for _ in range(copies)]
    ids = torch.full((len(rows), longest), end_of_text)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(rows):  # on the left, so that all go on from the same column
        ids[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    was_training, own_settings = model.training, model.generation_config
    model.eval()
    # what is not asked for would be filled in from the model's own: a repetition penalty, say
    model.generation_config = GenerationConfig()
    try:
        output = cast(GenerationMixin, model).generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=GenerationConfig(
                max_new_tokens=options.max_new_tokens,
                do_sample=False,  # the noise makes the largest score a draw
                eos_token_id=end_of_text,
                pad_token_id=end_of_text,
            ),
            logits_processor=_processors(options, len(prompts)),
        )
    finally:
        model.train(was_training)
        model.generation_config = own_settings
    new = [_until(row, end_of_text) for row in output[:, longest:].tolist()]
    return [new[start : start + copies] for start in range(0, len(new), copies)]


def _processors(options: SamplingOptions, prompts: int) -> LogitsProcessorList:
    processors = LogitsProcessorList()
    if not options.do_sample:
        return processors
    if options.temperature != 1:
        processors.append(TemperatureLogitsWarper(options.temperature))
    if options.top_k:
        processors.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        processors.append(TopPLogitsWarper(options.top_p))
    processors.append(RowNoise(options.seeds * prompts))
    return processors


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
