"""The HTTP server: its routes, socket and signals, and a shutdown that finishes open requests."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, cast

import h11
import uvicorn
from fastapi import FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from gpt2_lightning import __version__
from gpt2_lightning.errors import UsageError
from gpt2_lightning.serve.middleware import COMPLETIONS, RequestGuard
from gpt2_lightning.serve.protocol import (
    Completion,
    CompletionRequest,
    ErrorAnswer,
    Health,
    ModelCard,
    ModelList,
    Refusal,
)
from gpt2_lightning.serve.service import (
    RETRY_AFTER,
    Answer,
    EventStream,
    Metrics,
    Served,
    Service,
    samples_of,
)

STATIC = Path(__file__).parent / "static"

UNSUPPORTED = "Not supported."  # description of a field that is refused

REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request is malformed, or asks for something unsupported."},
    401: {"description": "The API key is missing or wrong."},
    404: {"description": "There is no such model."},
    408: {"description": "The request took longer than allowed."},
    413: {"description": "The body is too long."},
    415: {"description": "The body is not application/json."},
    429: {"description": "Too many requests are waiting; see Retry-After."},
    500: {"description": "The server has failed."},
    503: {"description": "The server is stopping; see Retry-After."},
    "4XX": {"description": "Any other error of the client."},
}

EVENT = {
    "type": "object",
    "properties": {"data": {"type": "string", "description": "A Completion as JSON, or [DONE]."}},
    "required": ["data"],
}

EVENTS = {
    200: {
        "description": "The completions: whole, or as server-sent events, the last of which is "
        "[DONE].",
        "content": {"text/event-stream": {"schema": EVENT}},
    }
}


FLUSH_SECONDS = 10  # for the last bytes of the last answers

# Bytes that the kernel buffers for a client. Linux would buffer megabytes, a stream of any length,
# and it would go unnoticed that the client does not read.
SEND_BUFFER = 8_192


def make_app(service: Service) -> ASGIApp:
    """Return the server as an ASGI application, which closes the engines at shutdown.

    Args:
        service: The models to serve, and the limits.
    """
    metrics = Metrics(service.models)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for served in service.models:
            served.engine.close()

    app = FastAPI(
        title="gpt2_lightning",
        summary="Completions of a base model, with the OpenAI completions protocol.",
        version=__version__ or "not installed",
        lifespan=lifespan,
        docs_url=None,  # that page loads scripts from other servers
        redoc_url=None,
        dependencies=[Security(HTTPBearer(auto_error=False))] if service.api_key else [],
        responses={status: it | {"model": ErrorAnswer} for status, it in REFUSALS.items()},
    )
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _failed)

    @app.post(
        COMPLETIONS,
        response_model=Completion,
        response_model_exclude={"obfuscation"},
        responses=EVENTS,  # type: ignore[arg-type] # dict is invariant
    )
    async def complete(request: CompletionRequest) -> Any:
        """Continue a prompt."""
        if service.stopping:
            raise Refusal(503, "The server is stopping.", code="stopping", headers=RETRY_AFTER)
        served = service.find(request.model)
        samples = await samples_of(request, served, service.limits)
        answer = Answer(samples, request.n or 1, served, metrics)
        if request.stream:
            options = request.stream_options
            return EventStream(
                answer,
                include_usage=bool(options and options.include_usage),
                include_obfuscation=bool(options and options.include_obfuscation),
            )
        try:
            return await answer.whole()
        finally:
            answer.cancel()

    @app.get("/v1/models")
    async def models() -> ModelList:
        """List the models that are served."""
        return ModelList(data=[_card(served) for served in service.models])

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> ModelCard:
        """Describe one model."""
        return _card(service.find(name))

    @app.get("/health", responses={503: {"model": Health, "description": "It is stopping."}})
    async def health(response: Response) -> Health:
        """Say whether requests are accepted."""
        response.status_code = 503 if service.stopping else 200
        return Health(status="stopping" if service.stopping else "ok")

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def prometheus() -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", response_class=FileResponse, include_in_schema=False)
    async def page() -> FileResponse:
        """Return the page."""
        return FileResponse(STATIC / "page.html", headers={"Cache-Control": "no-cache"})

    app.mount("/static", StaticFiles(directory=STATIC))
    # the schema lists the models, which are known only here
    fields = app.openapi()["components"]["schemas"]["CompletionRequest"]["properties"]
    fields["model"]["anyOf"][0]["enum"] = [it.name for it in service.models]
    guarded = RequestGuard(app, service, metrics)
    if service.origin is None:
        return guarded
    return CORSMiddleware(
        guarded,  # refusals are for the site's pages to read, too
        allow_origins=[service.origin],
        allow_methods=["GET", "POST"],
        allow_headers=["*"],  # OpenAI's client sends a dozen of its own
        allow_private_network=True,  # Chrome asks before a public site's page reaches this machine
        expose_headers=["Retry-After", "X-Should-Retry"],
    )


def _card(served: Served) -> ModelCard:
    return ModelCard(id=served.name, created=served.created, max_model_len=served.positions)


async def _refused(_: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    return refusal.response()


async def _invalid(_: Request, error: Exception) -> Response:
    """Answer with the first field's error."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()[0]
    place = [str(part) for part in found["loc"] if part != "body"]
    message = str(found["msg"]).removeprefix("Value error, ")
    if found["type"] == "json_invalid":
        message = f"The body is not JSON: {found.get('ctx', {}).get('error', message)}."
        return Refusal(400, message, code="no_json").response()
    param = place[0] if place else message.partition(":")[0] if ":" in message else None
    field = CompletionRequest.model_fields.get(param or "")
    if found["type"] == "extra_forbidden" and len(place) == 1:
        message = f"{_shortened(place[0])}: there is no such field"
    elif field is not None and field.description == UNSUPPORTED:
        message = f"{param}: it is not supported; leave it out"
    elif place:
        message = f"{param}: {message[0].lower()}{message[1:]}"
    return Refusal(400, f"{message}.", param=param and _shortened(param)).response()


def _shortened(name: str) -> str:
    return name if len(name) <= 64 else name[:64] + "…"


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{error.detail}."
    if error.status_code == 404:
        message = f"There is no {_shortened(request.url.path)} here; /openapi.json says what is."
        if "chat" in request.url.path:
            message += " GPT-2 continues text and does not chat: POST /v1/completions."
    return Refusal(error.status_code, message, headers=error.headers).response()


async def _failed(_: Request, error: Exception) -> Response:
    return Refusal(500, "The server has failed; its log says how.").response()


class Connection(H11Protocol):
    """uvicorn's connection, closed when a client is idle within a request or its answer.

    uvicorn itself limits only the time between two requests.

    Args:
        service: Its ``max_idle_seconds`` limits the time of a request's headers, and the time in
            which a client reads nothing of an answer.
        rest: uvicorn's own arguments.
    """

    def __init__(self, service: Service, **rest: Any) -> None:
        super().__init__(**rest)
        self._service = service
        self._headers_due: asyncio.TimerHandle | None = None
        self._reader_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn: asyncio's base class says BaseTransport
        """Start the time-out of the first request's headers."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # writing pauses as soon as bytes are waiting
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the time-outs."""
        super().connection_lost(exc)
        for timer in (self._headers_due, self._reader_due):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Handle received bytes; the time-out of the headers ends when they are complete."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._expect_headers()
        elif self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def pause_writing(self) -> None:
        """Start to watch whether the client reads."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """Stop watching: all bytes are sent."""
        super().resume_writing()
        if self._reader_due is not None:
            self._reader_due.cancel()
            self._reader_due = None

    def _expect_headers(self) -> None:
        if self._headers_due is None and not self.transport.is_closing():
            seconds = self._service.limits.max_idle_seconds
            self._headers_due = self.loop.call_later(seconds, self.transport.abort)

    def _watch_reader(self, waited: int | None = None) -> None:
        """Close the connection if nothing was read since the last check.

        Args:
            waited: Bytes that were waiting at the last check; None at the first.
        """
        waiting = self.transport.get_write_buffer_size()
        if waiting == waited:
            self.transport.abort()
        else:
            seconds = self._service.limits.max_idle_seconds
            self._reader_due = self.loop.call_later(seconds, self._watch_reader, waiting)


class Server(uvicorn.Server):
    """Accepts no more requests after the first signal, and ends when all are answered.

    Args:
        service: The models to serve, and the limits.
        listening: Called when the server accepts connections.
    """

    def __init__(self, service: Service, listening: Callable[[], None] = lambda: None) -> None:
        super().__init__(
            uvicorn.Config(
                make_app(service),
                # h11, uvicorn's own dependency, is fast enough: the model takes the time
                http=cast(Any, partial(Connection, service)),
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=FLUSH_SECONDS,
            )
        )
        self.service = service
        self.listening = listening
        self.giving_up = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop accepting at the first signal, abort requests at the second, end at the third."""
        self.force_exit = self.giving_up
        self.giving_up = self.service.stopping
        self.service.stopping = True
        if sig == signal.SIGINT:
            self._captured_signals.append(sig)  # raised again at the end: exit code 130

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the engines, then serve until a signal arrives.

        Raises:
            UsageError: If a model cannot be used, or memory is short.
        """
        for served in self.service.models:
            served.engine.start()
        super().run(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and call ``listening``."""
        await super().startup(sockets)
        self.listening()

    async def on_tick(self, counter: int) -> bool:
        """Check ten times a second whether to end."""
        if self.giving_up:  # not in the signal handler, which may interrupt a holder of the lock
            for served in self.service.models:
                served.engine.abort(Refusal(503, "The server was stopped.", code="stopping"))
            self.should_exit = True
        if self.service.stopping and not self.service.requests:
            self.should_exit = True
        return await super().on_tick(counter)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Args:
        host: Address or name.
        port: Port; 0 chooses a free one.

    Raises:
        UsageError: If the address is not available.
    """
    if not 0 <= port < 2**16:
        raise UsageError(f"--port {port}: must be in 0..65535; 0 chooses a free one.")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, UnicodeError) as error:  # UnicodeError: an invalid name
        number = getattr(error, "errno", None) or 0  # negative if a name was not found
        reason = os.strerror(number) if number > 0 else getattr(error, "strerror", "no such name")
        raise UsageError(
            f"--host {host} --port {port}: it cannot listen there ({reason}). "
            "Try another --port; --port 0 chooses a free one."
        ) from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # of every connection
    return listener


def run(service: Service, listener: socket.socket, listening: Callable[[], None]) -> None:
    """Serve until a signal arrives, in the main thread.

    Args:
        service: The models to serve, and the limits.
        listener: A listening socket.
        listening: Called when the server accepts connections.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # on Linux; inherited by every connection
        # otherwise the kernel keeps unread bytes for a client that has vanished
        milliseconds = min(max(1, int(service.limits.max_idle_seconds * 1000)), 2**31 - 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    Server(service, listening).run([listener])
