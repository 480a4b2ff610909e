"""From a model's logits to the next token: transformers' processors, in its order, and noise."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import FloatTensor, LongTensor, Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from gpt2_lightning.model.sampling import SamplingOptions


class RowNoise(LogitsProcessor):
    """Adds Gumbel noise, each row from its own generator: the largest score is then a draw.

    A row's text depends on its seed alone, whatever else is in the batch.

    Reference: Maddison et al., "A* Sampling", https://arxiv.org/abs/1411.0030, section 2.

    Args:
        seeds: One for every row.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores with noise, both of shape ``(rows, vocabulary)``."""
        return scores.float() - torch.stack(self.draw(scores.shape[-1])).log().to(scores.device)

    def draw(self, vocabulary: int) -> list[Tensor]:
        """Draw from the exponential distribution for every row, ``(vocabulary,)`` each."""
        # on the CPU, so that a seed means the same on every device
        return [torch.empty(vocabulary).exponential_(generator=g) for g in self.generators]


class Shortlist(LogitsProcessor):
    """Top-k, after which only its k scores go on: warpers would sort the whole vocabulary.

    It changes no draw: what top-k leaves out has no chance, and the noise is drawn for all.

    Args:
        top_k: The scores that go on; as transformers has it, equals of the last go on, too.
        warpers: What they go through.
        noise: What is added in the end.
    """

    def __init__(self, top_k: int, warpers: LogitsProcessorList, noise: RowNoise) -> None:
        self.top_k = TopKLogitsWarper(top_k)
        self.warpers = warpers
        self.noise = noise

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores with noise, both of shape ``(rows, vocabulary)``."""
        left = self.top_k(input_ids, scores)
        count = int((left > -math.inf).sum(-1).max())
        values, places = left.float().topk(count)
        values = self.warpers(cast(LongTensor, input_ids), cast(FloatTensor, values))
        drawn = self.noise.draw(scores.shape[-1])
        noise = torch.stack([row[at] for row, at in zip(drawn, places.cpu(), strict=True)]).log()
        none = torch.full_like(scores, -math.inf, dtype=torch.float)
        return none.scatter(-1, places, values - noise.to(scores.device))


class WithoutPadding(LogitsProcessor):
    """Shows a processor each row without the padding on its left, which it would take for text.

    Args:
        processor: One that looks at the tokens before.
        padding: Tokens of padding, for every row.
    """

    def __init__(self, processor: LogitsProcessor, padding: Sequence[int]) -> None:
        self.processor = processor
        self.padding = padding

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return processed scores, of shape ``(rows, vocabulary)``."""
        return torch.cat(
            [
                self.processor(input_ids[row : row + 1, padded:], scores[row : row + 1])
                for row, padded in enumerate(self.padding)
            ]
        )


def processors_for(
    options: SamplingOptions,
    seeds: Sequence[int],
    *,
    prompt_tokens: int,
    end_of_text: int,
    padding: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> LogitsProcessorList:
    """Return what turns logits into scores, the largest of which is the next token.

    They are called once for every token, with the ids so far, ``(rows, tokens)``, and the logits in
    fp32, ``(rows, vocabulary)``. The noise has a state: rows have to stay in their order, and a
    row that goes on elsewhere takes its processors along.

    Args:
        options: How to draw.
        seeds: One for every row; unused without sampling.
        prompt_tokens: Columns of the prompts, padding included.
        end_of_text: Id at which a sample ends by itself.
        padding: Columns of padding on the left of every row; null for none.
        device: Where the logits are.
    """
    before: list[LogitsProcessor] = []  # transformers' order, in `_get_logits_processor`
    if options.repetition_penalty != 1:
        before.append(RepetitionPenaltyLogitsProcessor(float(options.repetition_penalty)))
    if options.no_repeat_ngram_size:
        before.append(NoRepeatNGramLogitsProcessor(options.no_repeat_ngram_size))
    if padding is not None and any(padding):
        before = [WithoutPadding(processor, padding) for processor in before]
    if options.min_new_tokens:
        before.append(
            MinNewTokensLengthLogitsProcessor(
                prompt_tokens, options.min_new_tokens, end_of_text, device=str(device)
            )
        )
    if not options.do_sample:
        return LogitsProcessorList(before)
    noise = RowNoise(seeds)
    if options.temperature != 1:
        before.append(TemperatureLogitsWarper(float(options.temperature)))
    warpers = LogitsProcessorList()
    if options.top_p < 1:
        warpers.append(TopPLogitsWarper(float(options.top_p)))
    if options.min_p > 0:
        warpers.append(MinPLogitsWarper(float(options.min_p)))
    if options.typical_p < 1:
        warpers.append(TypicalLogitsWarper(float(options.typical_p)))
    if options.top_k:
        return LogitsProcessorList([*before, Shortlist(options.top_k, warpers, noise)])
    return LogitsProcessorList([*before, *warpers, noise])
