"""Checks before the routes: host, key, body size and time; and clients that disconnect."""

import asyncio
import hmac
import re
import time
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpt2_lightning.serve.protocol import Refusal
from gpt2_lightning.serve.service import Metrics, Service

OPEN_PATHS = re.compile(r"/(health|openapi\.json|static/.*)?")  # without the key

COMPLETIONS = "/v1/completions"  # the only path that accepts a body

COUNTED_PATHS = ("/", COMPLETIONS, "/v1/models", "/health", "/metrics", "/openapi.json")

# A refusal may be sent before the whole request has arrived: the rest is read and discarded, or the
# connection would be reset before the client has read the refusal.
LINGER_SECONDS, LINGER_BYTES = 2.0, 2**26

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class RequestGuard:
    """ASGI middleware around all routes: host, key, content type, size and time of a request.

    Starlette and uvicorn do less: TrustedHostMiddleware and uvicorn's limits answer in plain text
    instead of the protocol's JSON, and neither bounds the bytes of a body or the seconds of a
    request, or notices a client that disconnects while its answer is computed.

    Args:
        app: The routes.
        service: The limits, the key and the allowed hosts.
        metrics: Counts the answers.
    """

    def __init__(self, app: ASGIApp, service: Service, metrics: Metrics) -> None:
        self.app = app
        self.service = service
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to the routes, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        receiver, sender = _Receiver(receive), _Sender(send)
        began = time.perf_counter()
        self.service.requests += 1
        try:
            async with asyncio.timeout(self.service.limits.max_seconds):
                await self._pass(scope, receiver, sender)
        except Refusal as refusal:
            await _refuse(refusal, scope, receiver, sender)
        except TimeoutError:
            seconds = self.service.limits.max_seconds
            await _refuse(
                Refusal(
                    408,
                    f"It took longer than {seconds:g} seconds.",
                    code="timeout",
                    headers={"X-Should-Retry": "false"},  # OpenAI's clients retry by default
                ),
                scope,
                receiver,
                sender,
            )
        finally:
            self.service.requests -= 1
            path = scope["path"] if scope["path"] in COUNTED_PATHS else "other"
            self.metrics.requests.labels(path, sender.status or "gone").inc()
            if path == COMPLETIONS:
                self.metrics.seconds.observe(time.perf_counter() - began)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        _check_host(self.service.hosts, headers)
        key = self.service.api_key
        if key is not None and not OPEN_PATHS.fullmatch(scope["path"]):
            _check_key(key, headers)
        if (scope["method"], scope["path"]) != ("POST", COMPLETIONS):
            await self.app(scope, receive, send)
            return
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # a page of another site may send other types here without CORS, but not this one
            raise Refusal(415, "Content-Type must be application/json.", code="not_json")
        body = await self._read(headers, receive)
        if body is not None:
            await _run_until_disconnect(self.app, scope, body, receive, send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        """Return the body, or None if the client has disconnected.

        Raises:
            Refusal: If it is longer than allowed, or no more of it arrives.
        """
        allowed = self.service.limits.max_body_bytes
        idle = self.service.limits.max_idle_seconds
        refusal = Refusal(413, f"The body is longer than {allowed:,} bytes.", code="body_too_long")
        if int(headers.get("content-length", "0")) > allowed:
            raise refusal
        read = bytearray()
        more = True
        while more:
            try:
                async with asyncio.timeout(idle):
                    message = await receive()
            except TimeoutError:
                raise Refusal(
                    408, f"No more of the body arrived for {idle:g} seconds.", code="timeout"
                ) from None
            if message["type"] == "http.disconnect":
                return None
            read += message.get("body", b"")
            if len(read) > allowed:
                raise refusal
            more = message.get("more_body", False)
        return bytes(read)


class _Receiver:
    """Receives a request; knows when it is complete."""

    def __init__(self, receive: Receive) -> None:
        self.complete = False
        self._receive = receive

    async def __call__(self) -> Message:
        message = await self._receive()
        self.complete = not message.get("more_body", False)
        return message

    async def discard_rest(self) -> None:
        """Read the rest of the request, within `LINGER_SECONDS` and `LINGER_BYTES`."""
        read = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while not self.complete and read < LINGER_BYTES:
                    read += len((await self()).get("body", b""))


class _Sender:
    """Sends an answer with the common headers; knows its status and whether it is complete."""

    def __init__(self, send: Send) -> None:
        self.status: int | None = None
        self.streams = False
        self.complete = False
        self._send = send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            self.streams = headers.get("content-type", "").startswith("text/event-stream")
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-store")
        elif message["type"] == "http.response.body":
            self.complete = not message.get("more_body", False)
        await self._send(message)


async def _run_until_disconnect(
    app: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send
) -> None:
    """Run the routes on a body that was read; cancel them when the client disconnects."""
    gone = asyncio.ensure_future(_until_disconnect(receive))
    unread = [body]

    async def replay() -> MutableMapping[str, Any]:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        await asyncio.shield(gone)
        return {"type": "http.disconnect"}

    work = asyncio.ensure_future(app(scope, replay, send))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refuse(refusal: Refusal, scope: Scope, receiver: _Receiver, sender: _Sender) -> None:
    """Send a refusal, or append it to a stream that has begun; discard the rest of the request."""
    response = refusal.response()
    with suppress(TimeoutError):
        async with asyncio.timeout(2 * LINGER_SECONDS):
            if sender.status is None:
                headers = {"connection": "close", **dict(response.headers)}
                raw = [(name.encode(), value.encode()) for name, value in headers.items()]
                await sender(
                    {"type": "http.response.start", "status": refusal.status, "headers": raw}
                )
                await sender(
                    {"type": "http.response.body", "body": response.body, "more_body": True}
                )
                if "expect" not in Headers(scope=scope):
                    await receiver.discard_rest()
            elif sender.streams and not sender.complete:
                event = b"data: " + bytes(response.body) + b"\n\n"
                await sender({"type": "http.response.body", "body": event, "more_body": True})
            if not sender.complete:
                await sender({"type": "http.response.body", "body": b"", "more_body": False})


def _check_host(hosts: frozenset[str] | None, headers: Headers) -> None:
    """Refuse a host name that is not this server's.

    A site can let its own name point to this machine (DNS rebinding), and is then same-origin.
    """
    given = headers.get("host", "")
    name = None
    with suppress(ValueError):
        name = urlsplit(f"//{given}").hostname
    if hosts is not None and name not in hosts:
        raise Refusal(
            403,
            f"Host: {given[:64]!r} is not a name of this server. Use localhost; for a proxy, "
            "start the server with --allowed_host NAME.",
            code="unknown_host",
        )


def _check_key(key: str, headers: Headers) -> None:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    # compared in constant time, so that its duration reveals nothing about the key
    matches = hmac.compare_digest(given.strip(" \t").encode("latin-1"), key.encode())
    if scheme.lower() != "bearer" or not matches:
        raise Refusal(
            401,
            "The API key is missing or wrong. Send it as: Authorization: Bearer KEY.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
