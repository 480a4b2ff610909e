"""A request -> samples, within the limits; samples -> an answer, whole or as events."""

import asyncio
import math
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from gpt2_lightning.data.prompts import encode_prompt
from gpt2_lightning.data.token_text import Piece, Token, TokenBytes
from gpt2_lightning.errors import UsageError
from gpt2_lightning.generate.text_model import TextModel
from gpt2_lightning.model.gpt2 import positions_of
from gpt2_lightning.model.sampling import SamplingOptions
from gpt2_lightning.serve.engine import Engine, Job, QueueFull, RequestSample
from gpt2_lightning.serve.protocol import (
    Choice,
    Completion,
    CompletionRequest,
    ErrorAnswer,
    Logprobs,
    Refusal,
    Usage,
)

LATENCY_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)  # seconds

LOWEST_TEMPERATURE = 1e-6  # below it logits overflow, and decoding is greedy

# a thread, so that a long text does not block the event loop; one, as tokenizers share no threads
_encoding = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

RETRY_AFTER = {"Retry-After": "1"}  # seconds

DONE = b"data: [DONE]\n\n"

OBFUSCATED_LENGTH = 64  # characters of text and obfuscation together, or a multiple of them

Value = TypeVar("Value")


@dataclass(frozen=True)
class Limits:
    """Limits of the server, each with a flag of its own name.

    Attributes:
        max_prompt_tokens: Tokens of a prompt; null is the model's positions.
        max_new_tokens: Tokens of a sample; null is the model's positions.
        max_samples: Prompts of a request times its ``n``.
        max_queue: Requests that may wait for the first of their samples to begin.
        max_body_bytes: Bytes of a request's body.
        max_seconds: Seconds from a request's first byte to its answer's last.
        max_idle_seconds: Seconds for a request's headers, and for a client that sends no more of a
            body or reads nothing of an answer, until its connection is closed.
    """

    max_prompt_tokens: int | None = None
    max_new_tokens: int | None = None
    max_samples: int = 64
    max_queue: int = 64
    max_body_bytes: int = 2**20
    max_seconds: float = 300.0
    max_idle_seconds: float = 10.0

    def check(self) -> None:
        """Raise UsageError if a limit is not positive and finite."""
        for name, value in vars(self).items():
            if value is not None and not 0 < value < math.inf:
                finite = "" if value <= 0 else " and finite"
                raise UsageError(f"--{name} {value}: must be > 0{finite}.")


class Served:
    """A model with its engine.

    Args:
        name: Its id in requests.
        loaded: The model, on its device, and its tokenizer.
        batch_size: Samples that are generated at the same time.
        max_queue: Requests that may wait.
    """

    def __init__(self, name: str, loaded: TextModel, *, batch_size: int, max_queue: int) -> None:
        self.name = name
        self.tokenizer = loaded.tokenizer
        self.tokens = TokenBytes(loaded.tokenizer)
        self.longest_token = self.tokens.longest()
        self.end_of_text = int(loaded.tokenizer.eos_token_id)
        self.positions = positions_of(loaded.model)
        self.vocabulary = int(loaded.model.config.vocab_size)
        self.created = int(time.time())
        self.engine = Engine(loaded.model, batch_size=batch_size, max_queue=max_queue)


@dataclass
class Service:
    """The served models, and the limits and state of the server.

    Attributes:
        models: The models, the default first.
        limits: Limits of requests.
        api_key: Bearer token that clients must send; null for none.
        hosts: Allowed values of the header Host; null for any.
        origin: Site whose pages may use the server, ``*`` for any; null for none.
        stopping: Whether no further requests are accepted.
        requests: Number of requests that are being answered.
    """

    models: list[Served]
    limits: Limits = field(default_factory=Limits)
    api_key: str | None = None
    hosts: frozenset[str] | None = None
    origin: str | None = None
    stopping: bool = False
    requests: int = 0

    def find(self, name: str | None) -> Served:
        """Return the model of a name, the default for None.

        Raises:
            Refusal: If no model has the name.
        """
        if name is None:
            return self.models[0]
        for served in self.models:
            if served.name == name:
                return served
        names = ", ".join(served.name for served in self.models)
        raise Refusal(
            404,
            f"model: there is no {name!r} here. Models: {names}.",
            param="model",
            code="model_not_found",
        )


class Metrics:
    """The server's Prometheus metrics.

    Args:
        models: The served models.
    """

    def __init__(self, models: Sequence[Served]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Engines(models))
        self.requests = Counter(
            "gpt2_lightning_requests",
            "Answers, by path and status.",
            ["path", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "gpt2_lightning_request_seconds",
            "From a completion request's first byte to its answer's last.",
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.first_token = Histogram(
            "gpt2_lightning_first_token_seconds",
            "From a completion request's body to the first of its answer's text.",
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _Engines(Collector):
    """Collects the engines' own counters, so that they do not depend on Prometheus."""

    def __init__(self, models: Sequence[Served]) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        running = GaugeMetricFamily(
            "gpt2_lightning_running_samples", "Samples being generated.", labels=["model"]
        )
        waiting = GaugeMetricFamily(
            "gpt2_lightning_waiting_requests", "Requests in the queue.", labels=["model"]
        )
        prompts = CounterMetricFamily(
            "gpt2_lightning_prompt_tokens", "Prompt tokens processed.", labels=["model"]
        )
        written = CounterMetricFamily(
            "gpt2_lightning_new_tokens", "Tokens generated.", labels=["model"]
        )
        steps = CounterMetricFamily(
            "gpt2_lightning_steps", "Forward passes for a token of each sample.", labels=["model"]
        )
        for served in self._models:
            engine, labels = served.engine, [served.name]
            running.add_metric(labels, engine.running)
            waiting.add_metric(labels, engine.waiting)
            prompts.add_metric(labels, engine.prompt_tokens)
            written.add_metric(labels, engine.new_tokens)
            steps.add_metric(labels, engine.steps)
        return [running, waiting, prompts, written, steps]


async def samples_of(
    request: CompletionRequest, served: Served, limits: Limits
) -> list[RequestSample]:
    """Return the samples of a request, in the order of its prompts.

    Raises:
        Refusal: If it exceeds the limits or the model's positions or vocabulary.
    """
    copies = _or(request.n, 1)
    texts, ids = _split(request)
    count = len(texts) + len(ids)
    if count * copies > limits.max_samples:
        raise Refusal(
            400,
            f"n: {count} prompts x {copies} samples are more than {limits.max_samples}, the limit "
            "of a request. Send several requests.",
            param="n",
        )
    options = _options(request)
    longest = min(limits.max_prompt_tokens or served.positions, served.positions)
    for text in texts:
        if len(text) > longest * (served.longest_token or len(text)):
            raise _too_long(f"more than {longest} tokens", longest)
    loop = asyncio.get_running_loop()
    for text in texts:
        encoded = await loop.run_in_executor(_encoding, encode_prompt, served.tokenizer, text)
        ids.append(encoded.tolist())
    _check(ids, options.max_new_tokens, served, limits, longest)
    first = secrets.randbits(63) if request.seed is None else request.seed
    return [
        RequestSample(
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
    """Return a request's prompts: texts, and lists of ids."""
    prompt = request.prompt or ""  # without a prompt, a new text begins
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
        do_sample=temperature >= LOWEST_TEMPERATURE and top_p > 0,
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
            f"max_tokens: {new_tokens} is more than {allowed}, the limit of this server.",
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
        f"prompt: it has {found}; the limit of this server is {longest}.",
        param="prompt",
        code="context_length_exceeded",
    )


def _or(value: Value | None, default: Value) -> Value:
    return default if value is None else value


class Answer:
    """The answer to a request; its samples are queued when it is created.

    Generated text is buffered here, at most as much as was requested, so that a slow client blocks
    no other.

    Args:
        samples: The samples, in the order of the prompts.
        copies: Samples of each prompt.
        served: The model.
        metrics: Records the time to the first token.

    Raises:
        Refusal: If too many requests are waiting.
    """

    def __init__(
        self, samples: Sequence[RequestSample], copies: int, served: Served, metrics: Metrics
    ) -> None:
        self.id = f"cmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self._samples = samples
        self._copies = copies
        self._served = served
        self._metrics = metrics
        self._began = time.perf_counter()
        self._come: asyncio.Queue[tuple[int, Piece] | Exception] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._job = Job(samples, lambda number, piece: self._post((number, piece)), self._post)
        try:
            served.engine.submit(self._job)
        except QueueFull:
            raise Refusal(
                429,
                f"{served.engine.max_queue} requests are waiting already. Try again in a second.",
                code="queue_full",
                headers=RETRY_AFTER,
            ) from None

    def cancel(self) -> None:
        """Cancel the samples that are not complete."""
        self._served.engine.cancel(self._job)

    async def whole(self) -> Completion:
        """Return the answer when all of it is generated."""
        pieces: list[list[Piece]] = [[] for _ in self._samples]
        async with aclosing(self._pieces()) as arriving:
            async for number, piece in arriving:
                pieces[number].append(piece)
        choices = [self._choice(number, _joined(some)) for number, some in enumerate(pieces)]
        return self._completion(choices, self._usage())

    async def events(
        self, *, include_usage: bool, include_obfuscation: bool
    ) -> AsyncGenerator[bytes, None]:
        """Yield server-sent events, each with the next piece of a sample.

        Args:
            include_usage: Whether the last event has the usage.
            include_obfuscation: Whether random letters hide the length of each event's text.
        """
        exclude = {"usage"} if not include_usage else set()
        exclude |= {"obfuscation"} if not include_obfuscation else set()
        try:
            async with aclosing(self._pieces()) as arriving:
                async for number, piece in arriving:
                    event = self._completion([self._choice(number, piece)])
                    if include_obfuscation:
                        event.obfuscation = _letters(-len(piece.text) % OBFUSCATED_LENGTH)
                    yield f"data: {event.model_dump_json(exclude=exclude)}\n\n".encode()
            if include_usage:
                event = self._completion([], self._usage())
                yield f"data: {event.model_dump_json(exclude={'obfuscation'})}\n\n".encode()
            yield DONE
        except Refusal as refusal:
            yield f"data: {ErrorAnswer(error=refusal.body).model_dump_json()}\n\n".encode()

    async def _pieces(self) -> AsyncGenerator[tuple[int, Piece], None]:
        unfinished = len(self._samples)
        while unfinished:
            arrived = [await self._come.get()]
            while not self._come.empty():
                arrived.append(self._come.get_nowait())
            of_each: dict[int, list[Piece]] = {}
            for item in arrived:
                if isinstance(item, Refusal):
                    raise item
                if isinstance(item, Exception):
                    raise Refusal(500, "The model has failed; the server's log says how.")
                of_each.setdefault(item[0], []).append(item[1])
            if self._began:
                self._metrics.first_token.observe(time.perf_counter() - self._began)
                self._began = 0.0
            for number, pieces in of_each.items():
                piece = _joined(pieces)
                unfinished -= piece.finish is not None
                yield number, piece

    def _post(self, item: tuple[int, Piece] | Exception) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._come.put_nowait, item)

    def _completion(self, choices: list[Choice], usage: Usage | None = None) -> Completion:
        return Completion(
            id=self.id,
            created=self.created,
            model=self._served.name,
            choices=choices,
            usage=usage,
        )

    def _choice(self, number: int, piece: Piece) -> Choice:
        top = self._samples[number].logprobs
        return Choice(
            index=number,
            text=piece.text,
            logprobs=None if top is None else _logprobs(piece.tokens, top, self._served.tokens),
            finish_reason=piece.finish,
        )

    def _usage(self) -> Usage:
        read = sum(len(it.sequence.prompt) for it in self._samples[:: self._copies])
        written = sum(len(it.sequence.new) for it in self._samples)
        return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


class EventStream(StreamingResponse):
    """An answer as server-sent events; cancels it when the stream ends for any reason.

    Args:
        answer: The answer.
        include_usage: Whether the last event has the usage.
        include_obfuscation: Whether random letters hide the length of each event's text.
    """

    def __init__(self, answer: Answer, *, include_usage: bool, include_obfuscation: bool) -> None:
        super().__init__(
            answer.events(include_usage=include_usage, include_obfuscation=include_obfuscation),
            media_type="text/event-stream",
            # proxies must not buffer the stream
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.cancel()


def _letters(count: int) -> str:
    return secrets.token_urlsafe(count)[:count]


def _joined(pieces: Sequence[Piece]) -> Piece:
    return Piece(
        "".join(piece.text for piece in pieces),
        [token for piece in pieces for token in piece.tokens],
        pieces[-1].finish,
    )


def _logprobs(tokens: Sequence[Token], top: int, labels: TokenBytes) -> Logprobs:
    return Logprobs(
        tokens=[token.label for token in tokens],
        token_logprobs=[token.logprob.chosen for token in tokens],
        top_logprobs=[_top_logprobs(token, top, labels) for token in tokens],
        text_offset=[token.offset for token in tokens],
    )


def _top_logprobs(token: Token, top: int, labels: TokenBytes) -> dict[str, float] | None:
    if token.logprob.chosen is None:
        return None
    ranked = {labels.label(id_): value for id_, value in token.logprob.top[:top]}
    return ranked | {token.label: token.logprob.chosen}
