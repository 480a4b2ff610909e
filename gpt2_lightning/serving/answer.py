"""Answers: whole, or as server-sent events while the samples are written."""

import asyncio
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from gpt2_lightning.data.token_text import TokenBytes
from gpt2_lightning.serving.draft import Draft
from gpt2_lightning.serving.engine import QueueFull
from gpt2_lightning.serving.job import Job
from gpt2_lightning.serving.metrics import Metrics
from gpt2_lightning.serving.protocol import Choice, Completion, ErrorAnswer, Logprobs, Usage
from gpt2_lightning.serving.refusal import Refusal
from gpt2_lightning.serving.served import Served
from gpt2_lightning.serving.writer import Piece, Token

RETRY_AFTER = {"Retry-After": "1"}  # seconds
DONE = b"data: [DONE]\n\n"
OBFUSCATED_LENGTH = 64  # characters of text and obfuscation together, or a multiple of them


class Answer:
    """The samples of a request on their way; queued as it is made.

    What the engine writes waits here until it is fetched: at most what was asked for, so that a
    slow reader holds up nobody.

    Args:
        drafts: What is asked for: those of the first prompt, those of the second, and so on.
        copies: Samples of each prompt.
        served: Of which model.
        metrics: Where times are noted.

    Raises:
        Refusal: If too many requests wait.
    """

    def __init__(
        self, drafts: Sequence[Draft], copies: int, served: Served, metrics: Metrics
    ) -> None:
        self.id = f"cmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self._drafts = drafts
        self._copies = copies
        self._served = served
        self._metrics = metrics
        self._began = time.perf_counter()
        self._come: asyncio.Queue[tuple[int, Piece] | Exception] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._job = Job(drafts, lambda number, piece: self._post((number, piece)), self._post)
        try:
            served.engine.submit(self._job)
        except QueueFull:
            raise Refusal(
                429,
                f"{served.engine.max_queue} requests wait already. Try again in a second.",
                code="queue_full",
                headers=RETRY_AFTER,
            ) from None

    def cancel(self) -> None:
        """Give up what is not yet written."""
        self._served.engine.cancel(self._job)

    async def whole(self) -> Completion:
        """Return the answer once all of it is there."""
        pieces: list[list[Piece]] = [[] for _ in self._drafts]
        async with aclosing(self._pieces()) as arriving:
            async for number, piece in arriving:
                pieces[number].append(piece)
        choices = [self._choice(number, _joined(some)) for number, some in enumerate(pieces)]
        return self._completion(choices, self._usage())

    async def events(
        self, *, include_usage: bool, include_obfuscation: bool
    ) -> AsyncGenerator[bytes, None]:
        """Yield server-sent events: what has come of each sample since the last time.

        Args:
            include_usage: Whether a last event tells the usage.
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
        unfinished = len(self._drafts)
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
        asked = self._drafts[number].logprobs
        return Choice(
            index=number,
            text=piece.text,
            logprobs=None if asked is None else _logprobs(piece.tokens, asked, self._served.tokens),
            finish_reason=piece.finish,
        )

    def _usage(self) -> Usage:
        read = sum(len(draft.prompt) for draft in self._drafts[:: self._copies])
        written = sum(len(draft.new) for draft in self._drafts)
        return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


class EventStream(StreamingResponse):
    """An answer as server-sent events; gives it up when it ends, however that is.

    Args:
        answer: The answer.
        include_usage: Whether a last event tells the usage.
        include_obfuscation: Whether random letters hide the length of each event's text.
    """

    def __init__(self, answer: Answer, *, include_usage: bool, include_obfuscation: bool) -> None:
        super().__init__(
            answer.events(include_usage=include_usage, include_obfuscation=include_obfuscation),
            media_type="text/event-stream",
            # a proxy that waits for the whole answer would undo the stream
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


def _logprobs(tokens: Sequence[Token], asked: int, labels: TokenBytes) -> Logprobs:
    return Logprobs(
        tokens=[token.label for token in tokens],
        token_logprobs=[token.logprob.chosen for token in tokens],
        top_logprobs=[_top(token, asked, labels) for token in tokens],
        text_offset=[token.offset for token in tokens],
    )


def _top(token: Token, asked: int, labels: TokenBytes) -> dict[str, float] | None:
    if token.logprob.chosen is None:
        return None
    ranked = {labels.label(id_): value for id_, value in token.logprob.top[:asked]}
    return ranked | {token.label: token.logprob.chosen}
