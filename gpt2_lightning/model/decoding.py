"""Decoding: rows of ids -> their next tokens, one step at a time."""

from collections.abc import Callable, Generator, Sequence
from typing import cast

import torch
from torch import LongTensor, Tensor
from transformers import DynamicCache, PreTrainedModel

from gpt2_lightning.model.causal_lm import positions_of
from gpt2_lightning.model.processors import processors_for
from gpt2_lightning.model.sampling import SamplingOptions

Decode = Callable[[list[int]], str]


@torch.inference_mode()
def continue_rows(
    model: PreTrainedModel,
    prompts: Sequence[Tensor],
    seeds: Sequence[int],
    options: SamplingOptions,
    *,
    end_of_text: int,
    decode: Decode | None = None,
) -> Generator[list[int | None], None, None]:
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
    history, mask = left_padded(seen, end_of_text, model.device)  # of the whole text
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
                inputs, mask = left_padded(seen, end_of_text, model.device)
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
                running[row] = not completes_stop(options.stop, new[row], decode)
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


def left_padded(rows: list[list[int]], padding: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask, ``(rows, tokens)``, so that all rows go on from the same column."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), padding)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, longest - len(row) :] = torch.tensor(row)
        mask[number, longest - len(row) :] = 1
    return ids.to(device), mask.to(device)


def completes_stop(stop: Sequence[str], new: list[int], decode: Decode | None) -> bool:
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
