"""The server: a socket, signals, and an end that waits for what was begun."""

import os
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from gpt2_lightning.errors import UsageError
from gpt2_lightning.serving.app import make_app
from gpt2_lightning.serving.refusal import Refusal
from gpt2_lightning.serving.served import Service

FLUSH_SECONDS = 10  # for the last bytes of the last answers


class Server(uvicorn.Server):
    """Takes no more requests at the first signal, and ends when all are answered.

    Args:
        service: What is served.
        listening: Called once the socket answers.
    """

    def __init__(self, service: Service, listening: Callable[[], None] = lambda: None) -> None:
        super().__init__(
            uvicorn.Config(
                make_app(service),
                http="h11",  # what it brings along; the model is what takes time
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
        """Begin to stop; at the second signal, give up what is under way; at the third, end."""
        self.force_exit = self.giving_up
        self.giving_up = self.service.stopping
        self.service.stopping = True
        if sig == signal.SIGINT:
            self._captured_signals.append(sig)  # raised again at the end: exit code 130

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the engines, then serve until a signal comes.

        Raises:
            UsageError: If a model cannot be used, or memory is short.
        """
        for served in self.service.models:
            served.engine.start()
        super().run(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        self.listening()

    async def on_tick(self, counter: int) -> bool:
        """Look, ten times a second, whether it is time to end."""
        if self.giving_up:  # here, as a signal may come while an engine's lock is held
            for served in self.service.models:
                served.engine.give_up(Refusal(503, "The server was stopped.", code="stopping"))
            self.should_exit = True
        if self.service.stopping and not self.service.requests:
            self.should_exit = True
        return await super().on_tick(counter)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: Address or name.
        port: Port; 0 takes a free one.

    Raises:
        UsageError: If the address cannot be had.
    """
    if not 0 <= port < 2**16:
        raise UsageError(f"--port {port}: it has to be from 0 to 65535; 0 takes a free one.")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that can be none
        number = getattr(error, "errno", None) or 0  # below 0 for a name that was not found
        reason = os.strerror(number) if number > 0 else getattr(error, "strerror", "no such name")
        raise UsageError(
            f"--host {host} --port {port}: it cannot listen there ({reason}). "
            "Another --port may be free; --port 0 takes one that is."
        ) from error


def run(service: Service, listener: socket.socket, listening: Callable[[], None]) -> None:
    """Serve until a signal comes, in the main thread.

    Args:
        service: What is served.
        listener: A socket that listens.
        listening: Called once it answers.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # on Linux; inherited by every connection
        # a client that reads nothing more would keep its connection, and what it was sent
        milliseconds = min(int(service.limits.max_seconds * 1000), 2**31 - 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    Server(service, listening).run([listener])
