"""Continues passages of a text, and measures variety, repetition, endings and copies."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.data.token_text import passage
from gpt2_lightning.errors import UsageError
from gpt2_lightning.evaluate.ngrams import longest_copies
from gpt2_lightning.evaluate.text import ScoredText
from gpt2_lightning.generate.text_model import TextModel
from gpt2_lightning.model.decoding import generate
from gpt2_lightning.model.gpt2 import positions_of
from gpt2_lightning.model.sampling import SamplingOptions

Samples = Sequence[Sequence[int]]  # new ids of each sample, without prompt and end-of-text

PROMPT_TOKENS = 16  # of each sample, at most


@dataclass(frozen=True)
class Quality:
    """Counts over samples; None if there is nothing to count.

    Attributes:
        distinct_2: Unique 2-grams over all 2-grams of all samples, a share.
        distinct_3: The same of 3-grams.
        repeated_4: Share of a sample's 4-grams that occurred in it before, averaged over samples.
        ended: Share of the samples that ended with an end-of-text.
        longest_copy: Tokens of the longest run that any sample shares with the training split.
        longest_copies: The same of each sample; empty if there is no training split.
    """

    distinct_2: float | None
    distinct_3: float | None
    repeated_4: float | None
    ended: float | None
    longest_copy: int | None
    longest_copies: list[int]


@dataclass(frozen=True)
class DrawnSamples:
    """The quality of samples, and how they were drawn.

    Attributes:
        count: Number of samples.
        prompt_tokens: Tokens of each prompt at most: passages of the text, at even distances.
        max_new_tokens: Tokens of each sample at most.
        sampling: Sampling options, in words.
        quality: The counts.
    """

    count: int
    prompt_tokens: int
    max_new_tokens: int
    sampling: str
    quality: Quality


def draw_samples(
    loaded: TextModel,
    text: ScoredText,
    data: WikiTextDataModule,
    *,
    count: int,
    batch_size: int,
) -> DrawnSamples:
    """Continue the text at even distances, and measure the samples.

    Args:
        loaded: The model and its tokenizer.
        text: The text of the prompts.
        data: The source, with a tokenizer folder; its training split is searched for copies.
        count: Number of samples.
        batch_size: Samples at a time.
    """
    model = loaded.model
    options = SamplingOptions(num_return_sequences=1)
    prompt_tokens = min(PROMPT_TOKENS, positions_of(model) // 2, max(len(text.ids) - 1, 1))
    options.max_new_tokens = min(options.max_new_tokens, positions_of(model) - prompt_tokens)
    places = np.linspace(1, max(len(text.ids) - 1 - prompt_tokens, 1), count).astype(int)
    found = [passage(loaded.tokenizer, text.ids, place, most=prompt_tokens) for place in places]
    whole = passage(loaded.tokenizer, text.ids, 0, most=prompt_tokens)
    prompts = [
        # after the last place, no word may begin
        torch.from_numpy(text.ids[place or whole].astype(np.int64))
        for place in found
    ]
    end_of_text = int(loaded.tokenizer.eos_token_id)
    samples = [
        ids
        for start in range(0, count, batch_size)
        for (ids,) in generate(
            model, prompts[start : start + batch_size], options, end_of_text=end_of_text
        )
    ]
    ended = [len(ids) < options.max_new_tokens for ids in samples]
    how = f"top_k {options.top_k}, top_p {options.top_p}, temperature {options.temperature}"
    return DrawnSamples(
        count,
        prompt_tokens,
        options.max_new_tokens,
        f"{how}, seed {options.seed}",
        measure(samples, ended, _training_ids(data)),
    )


def _training_ids(data: WikiTextDataModule) -> "np.typing.NDArray[np.unsignedinteger] | None":
    try:
        data.prepare(["train"])
    except UsageError:  # a source without a training split
        return None
    data.setup("validate")
    return data.stores["train"].ids


def measure(
    samples: Samples,
    ended: Sequence[bool],
    training_ids: npt.NDArray[np.unsignedinteger[Any]] | None = None,
) -> Quality:
    """Measure samples.

    Args:
        samples: New ids of each sample, without prompt and end-of-text.
        ended: Whether each sample ended with an end-of-text.
        training_ids: The training split, shape ``(tokens,)``; None if there is none.
    """
    copies = [] if training_ids is None else longest_copies(samples, training_ids)
    return Quality(
        distinct_2=distinct_n(samples, 2),
        distinct_3=distinct_n(samples, 3),
        repeated_4=repeated_n(samples, 4),
        ended=sum(ended) / len(ended) if ended else None,
        longest_copy=max(copies) if copies else None,
        longest_copies=copies,
    )


def distinct_n(samples: Samples, n: int) -> float | None:
    """Return unique n-grams over all n-grams of all samples; None if there are none.

    1 if no n-gram occurs twice. It falls with the number and the length of the samples, so compare
    only samples alike in both.

    Reference: Li et al., "A Diversity-Promoting Objective Function for Neural Conversation
    Models", https://arxiv.org/abs/1510.03055; they divide by tokens instead.
    """
    grams = [gram for sample in samples for gram in _grams(sample, n)]
    return len(set(grams)) / len(grams) if grams else None


def repeated_n(samples: Samples, n: int) -> float | None:
    """Return the mean over the samples of 1 - unique n-grams / all n-grams.

    Samples of fewer than n tokens have no n-gram and are left out; None if no other is left.

    Reference: Welleck et al., "Neural Text Generation with Unlikelihood Training",
    https://arxiv.org/abs/1908.04319, where it is called seq-rep-n.
    """
    all_grams = [grams for sample in samples if (grams := _grams(sample, n))]
    if not all_grams:
        return None
    return sum(1 - len(set(grams)) / len(grams) for grams in all_grams) / len(all_grams)


def _grams(sample: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return list(zip(*(sample[start:] for start in range(n)), strict=False))
