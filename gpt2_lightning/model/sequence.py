"""A sequence of tokens, and how its next one is drawn: penalties, warpers, noise from its seed."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import FloatTensor, LongTensor, Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from gpt2_lightning.model.sampling import SamplingOptions


class TokenSequence:
    """A prompt and the tokens that are drawn after it; they depend on nothing else in the batch.

    Args:
        prompt: Its ids.
        options: How to draw; no tokens at all may be asked for.
        seed: Of its draws.
        end_of_text: Id at which it ends by itself.

    Attributes:
        new: Ids drawn so far; the last may be the end-of-text.
        ended: Whether nothing follows. Whoever sees a stop string sets it.
        forgotten: Tokens at the beginning that the model no longer sees.
    """

    def __init__(
        self, prompt: Sequence[int], options: SamplingOptions, seed: int, *, end_of_text: int
    ) -> None:
        self.prompt = list(prompt)
        self.options = options
        self.end_of_text = end_of_text
        self.new: list[int] = []
        self.ended = options.max_new_tokens == 0
        self.forgotten = 0
        # on the CPU, so that a seed means the same on every device
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def ids(self) -> list[int]:
        """The prompt and what is drawn after it."""
        return self.prompt + self.new

    @property
    def text_ids(self) -> list[int]:
        """What is drawn, without the end-of-text."""
        return self.new[:-1] if self.new[-1:] == [self.end_of_text] else self.new

    def add(self, token: int) -> None:
        """Take the next token."""
        self.new.append(token)
        self.ended = token == self.end_of_text or len(self.new) == self.options.max_new_tokens


def draw(sequences: Sequence[TokenSequence], logits: Tensor) -> list[int]:
    """Return the next token of each sequence: the likeliest, or one drawn at random.

    Args:
        sequences: Whose next tokens are drawn, each by its own options and from its own generator.
        logits: The model's own, shape ``(sequences, vocabulary)``; they are left as they are.
    """
    scores = penalized(sequences, logits.float())
    alike: dict[tuple[float, ...], list[int]] = {}
    for row, sequence in enumerate(sequences):
        it = sequence.options
        key: tuple[float, ...] = it.temperature, it.top_k, it.top_p, it.min_p, it.typical_p
        alike.setdefault(key if it.do_sample else (), []).append(row)
    tokens = [0] * len(sequences)
    for key, rows in alike.items():  # those that are drawn alike, together
        own = scores if len(rows) == len(sequences) else scores[rows]
        if key:
            generators = [sequences[row].generator for row in rows]
            own = with_noise(own, sequences[rows[0]].options, generators)
        for row, token in zip(rows, own.argmax(-1).tolist(), strict=True):
            tokens[row] = token
    return tokens


def penalized(sequences: Sequence[TokenSequence], scores: Tensor) -> Tensor:
    """Return scores after all that looks at a sequence's tokens so far.

    Args:
        sequences: The sequences.
        scores: Of the next token of each, shape ``(sequences, vocabulary)``; left as they are.
    """
    changed = scores
    for row, sequence in enumerate(sequences):
        processors = look_back(sequence.options)
        is_short = len(sequence.new) < sequence.options.min_new_tokens
        if (processors or is_short) and changed is scores:
            changed = scores.clone()
        ids = torch.tensor([sequence.ids], device=scores.device) if processors else None
        for processor in processors:
            changed[row] = processor(cast(LongTensor, ids), cast(FloatTensor, changed[row, None]))
        if is_short:
            changed[row, sequence.end_of_text] = -math.inf
    return changed


def look_back(options: SamplingOptions) -> list[LogitsProcessor]:
    """Return what makes tokens less likely that a text already has, its prompt included."""
    found: list[LogitsProcessor] = []  # transformers' order, in `_get_logits_processor`
    if options.repetition_penalty != 1:
        found.append(RepetitionPenaltyLogitsProcessor(float(options.repetition_penalty)))
    if options.no_repeat_ngram_size:
        found.append(NoRepeatNGramLogitsProcessor(options.no_repeat_ngram_size))
    return found


def with_noise(
    scores: Tensor, options: SamplingOptions, generators: Sequence[torch.Generator]
) -> Tensor:
    """Return scores, ``(rows, vocabulary)``, the largest of which is a draw by the options.

    Each row has Gumbel noise from its own generator, so that a row's text depends on its seed
    alone, whatever else is in the batch.

    Reference: Maddison et al., "A* Sampling", https://arxiv.org/abs/1411.0030, section 2.
    """
    noise = exponential(generators, scores.shape[-1])
    none = cast(LongTensor, torch.empty(0, dtype=torch.long))  # warpers look at no tokens
    if options.temperature != 1:
        scores = TemperatureLogitsWarper(float(options.temperature))(
            none, cast(FloatTensor, scores)
        )
    warpers = LogitsProcessorList()
    if options.top_p < 1:
        warpers.append(TopPLogitsWarper(float(options.top_p)))
    if options.min_p > 0:
        warpers.append(MinPLogitsWarper(float(options.min_p)))
    if options.typical_p < 1:
        warpers.append(TypicalLogitsWarper(float(options.typical_p)))
    if not options.top_k:
        scores = warpers(none, cast(FloatTensor, scores))
        return scores - noise.log().to(scores.device)
    # After top-k, only its k scores go on: warpers would sort the whole vocabulary. It changes no
    # draw: what top-k leaves out has no chance. Equals of the last go on, too, as in transformers.
    left = TopKLogitsWarper(options.top_k)(none, cast(FloatTensor, scores))
    values, places = left.topk(int((left > -math.inf).sum(-1).max()))
    values = warpers(none, cast(FloatTensor, values))
    values = values - noise.gather(-1, places.cpu()).log().to(scores.device)
    return torch.full_like(scores, -math.inf).scatter(-1, places, values)


def exponential(generators: Sequence[torch.Generator], count: int) -> Tensor:
    """Return draws from the exponential distribution, shape ``(generators, count)``."""
    return torch.stack([torch.empty(count).exponential_(generator=it) for it in generators])
