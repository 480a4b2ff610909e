"""A server in a thread of its own, for the length of a block."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gpt2_lightning.generate.text_model import load
from gpt2_lightning.serve.app import Server, listen
from gpt2_lightning.serve.service import Answer, Limits, Served, Service

PATH = "/v1/completions"
LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=0)


@dataclass
class Running:
    """A server that answers.

    Attributes:
        url: Its address, without a path.
        service: What it serves.
        client: Speaks to it.
    """

    url: str
    service: Service
    client: httpx2.Client

    def post(self, body: Any = None, **options: Any) -> httpx2.Response:
        """Send a completion request: a body as JSON, or `content` as it is."""
        if body is not None:
            options["json"] = body
        options.setdefault("headers", {"content-type": "application/json"})
        return self.client.post(PATH, **options)

    def get(self, path: str, **options: Any) -> httpx2.Response:
        """Get a path."""
        return self.client.get(path, **options)

    def text(self, **body: Any) -> str:
        """Return the text of the one sample that a request asks for."""
        answer = self.post(body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])

    def refusal(self, status: int, *args: Any, **options: Any) -> dict[str, Any]:
        """Send what is refused with a status; return the error."""
        answer = self.post(*args, **options)
        assert answer.status_code == status, answer.text
        return error_of(answer)


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    """Return the error of an answer, after a look at its form."""
    assert answer.headers["content-type"] == "application/json"
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].endswith(".")
    assert len(answer.content) < 1000
    return error


def events_of(answer: httpx2.Response) -> list[dict[str, Any]]:
    """Return the events of a streamed answer, after a look at its end."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def service_of(
    *folders: Path,
    batch_size: int = 4,
    api_key: str | None = None,
    device: str = "cpu",
    **limits: Any,
) -> Service:
    """Return the service of models, not yet started, named by their folders."""
    allowed = Limits(**limits)
    models = [
        Served(
            folder.name,
            load(str(folder), device=device),
            batch_size=batch_size,
            max_queue=allowed.max_queue,
        )
        for folder in folders
    ]
    return Service(models, allowed, api_key)


@contextmanager
def running(service: Service, send_buffer: int | None = None) -> Iterator[Running]:
    """Serve on a free port of this machine alone; end when what was asked is answered.

    Args:
        service: What is served.
        send_buffer: Bytes that the system keeps for a client that does not read.
    """
    listener = listen("127.0.0.1", 0)
    if send_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    answers = threading.Event()
    server = Server(service, answers.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    port = listener.getsockname()[1]
    thread.start()
    try:
        while not answers.wait(0.05):
            assert thread.is_alive(), "the server did not start"
        url = f"http://127.0.0.1:{port}"
        with httpx2.Client(base_url=url, timeout=60, trust_env=False, limits=LIMITS) as client:
            yield Running(url, service, client)
    finally:
        service.stopping = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not end"


def wait_until(holds: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def at_rest(it: Running) -> bool:
    """Tell whether no sample is under way or waits."""
    engine = it.service.models[0].engine
    return engine.running == engine.waiting == len(engine.batch.sequences) == 0


@pytest.fixture(scope="module")
def server(opinionated_model: Path) -> Iterator[Running]:
    """A server of the opinionated model, four samples at a time."""
    with running(service_of(opinionated_model)) as it:
        yield it


@pytest.fixture
def token_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine go on once its last piece was fetched, so that each is an event of its own.

    A fast engine is otherwise tokens ahead of the events, which then tell several at once.
    """
    post = Answer._post

    def post_and_wait(self: Answer, item: Any) -> None:
        post(self, item)
        fetched = threading.Event()

        def look() -> None:
            if self._come.empty():
                fetched.set()
            else:
                self._loop.call_soon(look)

        self._loop.call_soon_threadsafe(look)
        assert fetched.wait(20)

    monkeypatch.setattr(Answer, "_post", post_and_wait)
