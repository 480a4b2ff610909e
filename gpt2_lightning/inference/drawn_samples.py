"""Samples drawn from a text's own beginnings, and their quality."""

from dataclasses import dataclass

import numpy as np
import torch

from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.data.scored_text import ScoredText
from gpt2_lightning.data.token_text import passage
from gpt2_lightning.errors import UsageError
from gpt2_lightning.inference.quality import Quality, measure
from gpt2_lightning.inference.text_model import TextModel
from gpt2_lightning.model.causal_lm import positions_of
from gpt2_lightning.model.generation import generate
from gpt2_lightning.model.sampling import SamplingOptions

PROMPT_TOKENS = 16  # of each sample, at most


@dataclass(frozen=True)
class DrawnSamples:
    """Samples in numbers.

    Attributes:
        count: How many.
        prompt_tokens: Tokens of each prompt at most: words of the text, at even distances.
        max_new_tokens: Tokens of each sample at most.
        sampling: How they were drawn, in words.
        quality: What was counted.
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
    """Continue the text at even distances, and measure what is written.

    Args:
        loaded: The model and its tokenizer.
        text: Where the prompts are from.
        data: The source, with a tokenizer folder; copies are looked for in its training split.
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
        # no word begins after the last of the places
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
    except UsageError:  # a source with nothing but held-out text
        return None
    data.setup("validate")
    return data.stores["train"].ids
