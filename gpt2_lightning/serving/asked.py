"""What a request asks for: samples, within the limits."""

import asyncio
import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from gpt2_lightning.data.prompts import encode_prompt
from gpt2_lightning.model.sampling import SamplingOptions
from gpt2_lightning.serving.draft import Draft
from gpt2_lightning.serving.limits import Limits
from gpt2_lightning.serving.protocol import CompletionRequest
from gpt2_lightning.serving.refusal import Refusal
from gpt2_lightning.serving.served import Served

LOWEST_TEMPERATURE = 1e-6  # logits over less are no numbers any more: the likeliest token

# One thread: a tokenizer is not made for several, and a long text must not hold up the others.
_encoding = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

Value = TypeVar("Value")


async def drafts_of(request: CompletionRequest, served: Served, limits: Limits) -> list[Draft]:
    """Return the samples of a request: those of the first prompt, those of the second, and so on.

    Raises:
        Refusal: If it asks for more than there is.
    """
    copies = _or(request.n, 1)
    texts, ids = _split(request)
    count = len(texts) + len(ids)
    if count * copies > limits.max_samples:
        raise Refusal(
            400,
            f"n: {count} prompts x {copies} samples are more than {limits.max_samples} of one "
            "request. Send several requests.",
            param="n",
        )
    options = _options(request)
    longest = min(limits.max_prompt_tokens or served.positions, served.positions)
    for text in texts:
        if len(text) > longest * (served.tokens.longest or len(text)):
            raise _too_long(f"more than {longest} tokens", longest)
    loop = asyncio.get_running_loop()
    for text in texts:
        encoded = await loop.run_in_executor(_encoding, encode_prompt, served.tokenizer, text)
        ids.append(encoded.tolist())
    _check(ids, options.max_new_tokens, served, limits, longest)
    first = secrets.randbits(63) if request.seed is None else request.seed
    return [
        Draft(
            prompt,
            options,
            (first + copy) % 2**64,
            tokens=served.tokens,
            end_of_text=served.end_of_text,
            logprobs=request.logprobs,
            echo=bool(request.echo),
        )
        for prompt in ids
        for copy in range(copies)
    ]


def _split(request: CompletionRequest) -> tuple[list[str], list[list[int]]]:
    """Return a request's prompts: as texts, or as ids."""
    prompt = request.prompt or ""  # no prompt is the beginning of a text, as an empty one
    if isinstance(prompt, str):
        return [prompt], []
    texts = [item for item in prompt if isinstance(item, str)]
    ids = [item for item in prompt if isinstance(item, int)]
    lists = [item for item in prompt if isinstance(item, list)]
    return texts, [ids] if ids else lists


def _options(request: CompletionRequest) -> SamplingOptions:
    temperature, top_p = _or(request.temperature, 1.0), _or(request.top_p, 1.0)
    return SamplingOptions(
        max_new_tokens=_or(request.max_tokens, 16),
        do_sample=temperature >= LOWEST_TEMPERATURE and top_p > 0,  # else the likeliest token
        temperature=max(temperature, LOWEST_TEMPERATURE),
        top_k=max(_or(request.top_k, 0), 0),
        top_p=top_p,
        min_p=_or(request.min_p, 0.0),
        repetition_penalty=_or(request.repetition_penalty, 1.0),
        stop=[request.stop] if isinstance(request.stop, str) else _or(request.stop, []),
    )


def _check(
    prompts: list[list[int]], new_tokens: int, served: Served, limits: Limits, longest: int
) -> None:
    allowed = limits.max_new_tokens or served.positions
    if new_tokens > allowed:
        raise Refusal(
            400,
            f"max_tokens: {new_tokens} is more than {allowed}, the most that is written here.",
            param="max_tokens",
        )
    for prompt in prompts:
        if max(prompt) >= served.vocabulary:
            raise Refusal(
                400,
                f"prompt: there is no token {max(prompt)}; ids go from 0 to "
                f"{served.vocabulary - 1}.",
                param="prompt",
            )
        if len(prompt) > longest:
            raise _too_long(f"{len(prompt)} tokens", longest)
        if len(prompt) + new_tokens > served.positions:
            raise Refusal(
                400,
                f"max_tokens: {len(prompt)} tokens of prompt and {new_tokens} more exceed the "
                f"model's {served.positions} positions. "
                f"{served.positions - len(prompt)} would fit.",
                param="max_tokens",
                code="context_length_exceeded",
            )


def _too_long(found: str, longest: int) -> Refusal:
    return Refusal(
        400,
        f"prompt: it has {found}; {longest} is the most that is read here.",
        param="prompt",
        code="context_length_exceeded",
    )


def _or(value: Value | None, default: Value) -> Value:
    return default if value is None else value
