"""Generation: prompts -> tokens, in batches, a seed for every row."""

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import LongTensor, Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from gpt2_lightning.errors import UsageError
from gpt2_lightning.model.causal_lm import positions_of
from gpt2_lightning.model.processors import processors_for
from gpt2_lightning.model.sampling import SamplingOptions

Decode = Callable[[list[int]], str]


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
        return _beams(model, prompts, options, end_of_text=end_of_text, decode=decode)
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


@torch.inference_mode()
def continue_rows(
    model: PreTrainedModel,
    prompts: Sequence[Tensor],
    seeds: Sequence[int],
    options: SamplingOptions,
    *,
    end_of_text: int,
    decode: Decode | None = None,
) -> Iterator[list[int | None]]:
    """Continue rows together, a token of each at a time.

    A loop of our own, since transformers' gives its tokens to a callback only, and cannot go on
    when the positions are full: a model that has seen as many tokens as it has positions goes on
    with the last half of them, read anew, as GPT-2's positions are absolute. Each row does so by
    its own length, so that its text depends on nothing else in the batch.

    Args:
        model: The language model; it is in eval mode until the last step, or until the iterator is
            closed.
        prompts: Ids of each row, shape ``(tokens,)``.
        seeds: One for every row.
        options: How to draw.
        end_of_text: Id at which a row ends by itself.
        decode: Ids -> text; stop strings need it.

    Yields:
        The next token of every row, or None for a row that has ended.
    """
    room = positions_of(model)
    seen = [prompt.tolist() for prompt in prompts]  # by the model, of each row
    new: list[list[int]] = [[] for _ in prompts]
    history, mask = _left_padded(seen, end_of_text, model.device)  # of the whole text
    running = [True] * len(seen)
    processors = processors_for(
        options,
        seeds,
        prompt_tokens=history.shape[-1],
        end_of_text=end_of_text,
        padding=[history.shape[-1] - len(row) for row in seen],
        device=model.device,
    )
    cache: DynamicCache | None = None
    was_training = model.training
    model.eval()
    try:
        for _ in range(options.max_new_tokens):
            if cache is None or max(map(len, seen)) > room:
                seen = [row[-kept_of(room) :] if len(row) > room else row for row in seen]
                inputs, mask = _left_padded(seen, end_of_text, model.device)
                positions = (mask.cumsum(-1) - 1).clamp(min=0)
                cache = DynamicCache(config=model.config)
            else:
                inputs = history[:, -1:]
                mask = torch.cat([mask, mask.new_ones(len(seen), 1)], dim=-1)
                positions = (positions[:, -1:] + 1).clamp(max=room - 1)  # of rows that have ended
            logits = model(
                input_ids=inputs,
                attention_mask=mask,
                position_ids=positions,
                cache=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            drawn = processors(cast(LongTensor, history), logits.float()).argmax(-1, keepdim=True)
            history = torch.cat([history, drawn], dim=-1)
            step: list[int | None] = [None] * len(seen)
            for row, token in enumerate(drawn.flatten().tolist()):
                if not running[row]:
                    continue
                if token == end_of_text:
                    running[row] = False
                    continue
                step[row] = token
                seen[row].append(token)
                new[row].append(token)
                running[row] = not _completes(options.stop, new[row], decode)
            yield step
            if not any(running):
                return
    finally:
        model.train(was_training)


def kept_of(room: int) -> int:
    """Return how many tokens a model still sees when its positions were full."""
    return max(1, room // 2)


def forgotten(prompt_tokens: int, new_tokens: int, room: int) -> int:
    """Return how many tokens from a text's beginning the model did not see at its end.

    Args:
        prompt_tokens: Of the prompt.
        new_tokens: Drawn since.
        room: Positions of the model.
    """
    seen = prompt_tokens
    for _ in range(new_tokens):
        seen = (kept_of(room) if seen > room else seen) + 1
    return prompt_tokens + new_tokens - seen


def _left_padded(
    rows: list[list[int]], padding: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return ids and mask, ``(rows, tokens)``, so that all rows go on from the same column."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), padding)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, longest - len(row) :] = torch.tensor(row)
        mask[number, longest - len(row) :] = 1
    return ids.to(device), mask.to(device)


def _completes(stop: Sequence[str], new: list[int], decode: Decode | None) -> bool:
    """Tell whether the last of a row's new tokens completes a stop string."""
    if not stop:
        return False
    if decode is None:
        raise ValueError("stop strings need decode=")
    # a token is a byte at least; the tail may begin within a character, of four bytes at most
    tail = new[-max(len(string.encode()) for string in stop) - 3 :]
    return _holds(stop, decode(tail)) and _holds(stop, decode(new))


def _holds(stop: Sequence[str], text: str) -> bool:
    return any(string in text for string in stop)


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
        ended = [_completes(self.stop, row, self.decode) for row in new]
        return torch.tensor(ended, device=input_ids.device)


@torch.inference_mode()
def _beams(
    model: PreTrainedModel,
    prompts: Sequence[Tensor],
    options: SamplingOptions,
    *,
    end_of_text: int,
    decode: Decode | None,
) -> list[list[list[int]]]:
    """Return what `generate` does, by transformers' beam search."""
    ids, mask = _left_padded([prompt.tolist() for prompt in prompts], end_of_text, model.device)
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
