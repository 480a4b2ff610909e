"""Generation: prompts -> tokens, in batches, a seed for every row."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from gpt2_lightning.errors import UsageError
from gpt2_lightning.model.causal_lm import positions_of
from gpt2_lightning.model.decoding import Decode, completes_stop, continue_rows, left_padded
from gpt2_lightning.model.processors import processors_for
from gpt2_lightning.model.sampling import SamplingOptions


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Tensor],
    options: SamplingOptions,
    *,
    end_of_text: int,
    decode: Decode | None = None,
) -> list[list[list[int]]]:
    """Continue prompts, all in one batch.

    Args:
        model: The language model; it is in eval mode while this runs.
        prompts: Ids of each prompt, shape ``(tokens,)``.
        options: How to draw.
        end_of_text: Id at which a sample ends by itself.
        decode: Ids -> text; stop strings need it.

    Returns:
        For each prompt, for each of its samples, the new ids, without the end-of-text. The last one
        completes a stop string where a sample ended so; `SamplingOptions.before_stop` cuts it off.

    Raises:
        UsageError: If a prompt and its continuation exceed the model's positions.
    """
    check_room(model, max(len(prompt) for prompt in prompts), options)
    copies = options.samples_per_prompt
    if options.num_beams > 1:
        return search_beams(model, prompts, options, end_of_text=end_of_text, decode=decode)
    new: list[list[int]] = [[] for _ in range(len(prompts) * copies)]
    steps = continue_rows(
        model,
        [prompt for prompt in prompts for _ in range(copies)],
        options.seeds * len(prompts),
        options,
        end_of_text=end_of_text,
        decode=decode,
    )
    for step in steps:
        for row, token in enumerate(step):
            if token is not None:
                new[row].append(token)
    return [new[start : start + copies] for start in range(0, len(new), copies)]


def check_room(model: PreTrainedModel, longest: int, options: SamplingOptions) -> None:
    """See that a prompt of so many tokens and its continuation fit into the model's positions.

    Raises:
        UsageError: If they do not.
    """
    room = positions_of(model)
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


class _StopStrings(StoppingCriteria):
    """Ends a beam at a stop string of its new text.

    transformers' own criterion takes the prompt for text of the model's.
    """

    def __init__(self, stop: Sequence[str], prompt_tokens: int, decode: Decode | None) -> None:
        self.stop = stop
        self.prompt_tokens = prompt_tokens
        self.decode = decode

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        """Tell for every row whether it has ended."""
        new = input_ids[:, self.prompt_tokens :].tolist()
        ended = [completes_stop(self.stop, row, self.decode) for row in new]
        return torch.tensor(ended, device=input_ids.device)


@torch.inference_mode()
def search_beams(
    model: PreTrainedModel,
    prompts: Sequence[Tensor],
    options: SamplingOptions,
    *,
    end_of_text: int,
    decode: Decode | None,
) -> list[list[list[int]]]:
    """Do what `generate` does by transformers' beam search, for the likeliest texts as a whole."""
    ids, mask = left_padded([prompt.tolist() for prompt in prompts], end_of_text, model.device)
    longest = ids.shape[-1]
    processors = processors_for(
        options,
        [],
        prompt_tokens=longest,
        end_of_text=end_of_text,
        padding=[longest - len(prompt) for prompt in prompts for _ in range(options.num_beams)],
        device=model.device,
    )
    was_training, own_settings = model.training, model.generation_config
    model.eval()
    # what is not asked for would be filled in from the model's own: a repetition penalty, say
    model.generation_config = GenerationConfig()
    copies = options.samples_per_prompt
    try:
        output = cast(GenerationMixin, model).generate(
            ids,
            attention_mask=mask,
            generation_config=GenerationConfig(
                max_new_tokens=options.max_new_tokens,
                do_sample=False,
                num_beams=options.num_beams,
                num_return_sequences=copies,
                eos_token_id=end_of_text,
                pad_token_id=end_of_text,
            ),
            logits_processor=processors,
            stopping_criteria=StoppingCriteriaList([_StopStrings(options.stop, longest, decode)]),
        )
    finally:
        model.train(was_training)
        model.generation_config = own_settings
    new = [_until(row, end_of_text) for row in output[:, longest:].tolist()]
    return [new[start : start + copies] for start in range(0, len(new), copies)]


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
