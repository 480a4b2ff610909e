import json
import logging
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.server import (
    PATH,
    Running,
    at_rest,
    error_of,
    running,
    server,
    service_of,
    wait_until,
)

__all__ = ["server"]  # a fixture

GREEDY = {"temperature": 0, "max_tokens": 12}
LONG = {"prompt": "a", "temperature": 0, "max_tokens": 60}  # it does not end by itself


def address_of(it: Running) -> tuple[str, int]:
    host, port = it.url.removeprefix("http://").split(":")
    return host, int(port)


def connection(it: Running) -> socket.socket:
    return socket.create_connection(address_of(it), timeout=20)


def head(length: int) -> bytes:
    return (
        f"POST {PATH} HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def request_of(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    return head(len(content)) + content


def slowed(it: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every token take a while."""
    batch = it.service.models[0].engine.batch
    step = batch.step

    def slow(*args: Any) -> Any:
        time.sleep(0.03)
        return step(*args)

    monkeypatch.setattr(batch, "step", slow)


def test_limits_of_tokens(opinionated_model: Path) -> None:
    service = service_of(opinionated_model, max_prompt_tokens=5, max_new_tokens=6, max_samples=2)
    with running(service) as it:
        assert it.post({"prompt": [1] * 5, "max_tokens": 6, "n": 2}).status_code == 200
        for body in (
            {"prompt": [1] * 6},
            {"prompt": "a", "max_tokens": 7},
            {"n": 3, "prompt": "a"},
        ):
            it.refusal(400, {"max_tokens": 1, **body})


def test_an_api_key(opinionated_model: Path) -> None:
    def with_key(value: str) -> list[tuple[bytes, bytes]]:
        return [(b"content-type", b"application/json"), (b"authorization", value.encode())]

    with running(service_of(opinionated_model, api_key="clé")) as it:
        for headers in (with_key(""), with_key("Bearer x"), with_key("Basic clé")):
            answer = it.post(content=b"{", headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert error_of(answer)["code"] == "invalid_api_key"
            for path in ("/metrics", "/v1/models", "/nothing"):
                assert it.get(path, headers=headers).status_code == 401
        assert it.post({"prompt": "a"}, headers=with_key("Bearer clé")).status_code == 200
        metrics = it.get("/metrics", headers=with_key("Bearer clé"))
        assert metrics.status_code == 200
        for path in ("/health", "/openapi.json", "/", "/static/page.js"):
            assert it.get(path).status_code == 200
        assert it.get("/openapi.json").json()["components"]["securitySchemes"]


def test_a_page_of_another_site(opinionated_model: Path) -> None:
    site, json_body = "http://localhost:3000", {"content-type": "application/json"}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Private-Network": "t"}
    asked |= {"Access-Control-Request-Headers": "authorization, x-stainless-lang"}
    service = service_of(opinionated_model, api_key="clé")
    service.origin = site
    with running(service) as it:
        allowed = it.client.options(PATH, headers=asked | {"origin": site})
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, site)
        assert allowed.headers["access-control-allow-private-network"] == "true"
        assert "x-stainless-lang" in allowed.headers["access-control-allow-headers"]
        answer = it.post(content=b"{", headers=json_body | {"origin": site})
        assert answer.headers["access-control-allow-origin"] == site
        assert error_of(answer)["code"] == "invalid_api_key"
        for other in ("http://localhost:3001", "https://localhost:3000", "null"):
            refused = it.client.options(PATH, headers=asked | {"origin": other})
            assert refused.status_code == 400
            assert "access-control-allow-origin" not in refused.headers
    service = service_of(opinionated_model)
    with running(service) as it:  # without the flag
        answer = it.post(content=b'{"max_tokens": 1}', headers=json_body | {"origin": site})
        assert answer.status_code == 200
        assert "access-control-allow-origin" not in answer.headers
        assert it.client.options(PATH, headers=asked | {"origin": site}).status_code == 405


def test_a_page_that_lets_its_name_point_here(opinionated_model: Path) -> None:
    service = service_of(opinionated_model)
    service.hosts = frozenset(["localhost", "127.0.0.1", "::1"])
    body = (b"content-type", b"application/json")
    with running(service) as it:
        for host, status in (
            (b"evil.example", 403),
            (b"evil.example:8000", 403),
            (b"localhost.evil.example", 403),
            (b"", 403),
            (b"[::1", 403),
            (b"localhost:8000", 200),
            (b"[::1]:8000", 200),
            (b"127.0.0.1", 200),
        ):
            answer = it.post(content=b'{"prompt": "a"}', headers=[body, (b"host", host)])
            assert answer.status_code == status, host
        assert error_of(it.get("/", headers={"host": "evil.example"}))["code"] == "unknown_host"


def test_a_full_queue(opinionated_model: Path) -> None:
    with running(service_of(opinionated_model, batch_size=2, max_queue=3)) as it:
        with ThreadPoolExecutor(30) as pool:
            answers = list(
                pool.map(lambda _: it.post({"prompt": "a", "max_tokens": 60}), range(30))
            )
        refused = [answer for answer in answers if answer.status_code != 200]
        assert 0 < len(refused) < 30
        for answer in refused:
            assert answer.status_code == 429
            assert answer.headers["retry-after"] == "1"
            assert error_of(answer)["code"] == "queue_full"
        assert it.post({"prompt": "a"}).status_code == 200


@pytest.mark.slow
def test_requests_that_take_too_long(
    opinionated_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(service_of(opinionated_model, max_seconds=1)) as it:
        slowed(it, monkeypatch)
        body = LONG
        error = it.refusal(408, body)
        assert (error["code"], error["message"]) == ("timeout", "It took longer than 1 seconds.")
        events = it.post(body | {"stream": True}).text.strip().split("\n\n")
        assert json.loads(events[0].removeprefix("data: "))["choices"]
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "timeout"
        wait_until(lambda: at_rest(it))


def test_a_long_body_is_refused_before_it_is_sent(server: Running) -> None:
    with connection(server) as client:
        client.sendall(head(10**12))
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_frees_its_rows(
    server: Running, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed(server, monkeypatch)
    engine = server.service.models[0].engine
    before = engine.new_tokens
    with connection(server) as client:
        client.sendall(request_of({**LONG, "n": 6, "stream": stream}))
        wait_until(lambda: engine.running == 4)  # two more wait
        if stream:
            assert b"data: " in client.recv(4000)
    wait_until(lambda: at_rest(server))
    assert engine.new_tokens - before < 6 * 60 / 2
    wait_until(lambda: server.service.requests == 0)
    assert server.text(prompt="a", **GREEDY)


def test_a_client_that_goes_while_it_waits_leaves_the_queue(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed(server, monkeypatch)
    engine = server.service.models[0].engine
    with connection(server) as first, connection(server) as second:
        first.sendall(request_of({**LONG, "n": 4}))
        wait_until(lambda: engine.running == 4)
        second.sendall(request_of(LONG))
        wait_until(lambda: engine.waiting == 1)
        second.close()
        wait_until(lambda: engine.waiting == 0)
        assert engine.running == 4
    wait_until(lambda: at_rest(server))


def test_a_client_that_goes_within_its_request(server: Running) -> None:
    with connection(server) as client:
        client.sendall(head(1000) + b'{"prompt": ')
    with connection(server) as client:
        client.sendall(b"POST /v1/comp")
    with connection(server) as client:
        client.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 400 ")
    wait_until(lambda: server.service.requests == 0)


def test_a_client_that_never_ends_its_request(opinionated_model: Path) -> None:
    with (
        running(service_of(opinionated_model, max_seconds=0.3)) as it,
        connection(it) as client,
    ):
        client.sendall(head(1000) + b'{"prompt": ')
        assert client.recv(100).startswith(b"HTTP/1.1 408 ")


@pytest.mark.slow
def test_a_body_that_stands_still(opinionated_model: Path) -> None:
    with running(service_of(opinionated_model)) as it, connection(it) as client:
        be_impatient(it)  # of bodies; the headers have ten seconds, however slow the machine is
        client.sendall(head(1000) + b'{"prompt": ')
        answer = ended(client).decode()
        assert answer.startswith("HTTP/1.1 408 ")
        assert "No more of the body arrived for 0.2 seconds." in answer


@pytest.mark.parametrize("begun", ["", "GET /hea", "GET /health HTTP/1.1\r\nHost: localhost\r\n"])
def test_headers_that_never_end(opinionated_model: Path, begun: str) -> None:
    with running(service_of(opinionated_model, max_idle_seconds=0.2)) as it:
        client = connection(it)
        with suppress(ConnectionError):  # it may be over already
            client.sendall(begun.encode())
        assert ended(client) == b""


def test_headers_of_a_second_request_that_never_end(opinionated_model: Path) -> None:
    with running(service_of(opinionated_model)) as it:
        client = connection(it)
        answered(client)
        be_impatient(it)
        client.sendall(b"G")  # the time between two requests ends with the first letter of one
        assert ended(client) == b""


def be_impatient(it: Running, seconds: float = 0.2) -> None:
    """Give clients less time from now on; what they have begun keeps the time that it had."""
    it.service.limits = replace(it.service.limits, max_idle_seconds=seconds)


def answered(client: socket.socket) -> None:
    """Ask for something, and read all of the answer: the connection is open and idle then."""
    client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    said = client.recv(4000)
    while not said.endswith(b"}"):
        more = client.recv(4000)
        assert more
        said += more
    assert said.startswith(b"HTTP/1.1 200 ")


def ended(client: socket.socket) -> bytes:
    """Return what a server sent before it closed the connection."""
    said = b""
    with client, suppress(ConnectionResetError):
        while more := client.recv(4000):
            said += more
    return said


def unread(it: Running, max_idle_seconds: float = 10.0) -> socket.socket:
    """Ask for much, and read nothing of it."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(address_of(it))
    answered(client)
    be_impatient(it, max_idle_seconds)
    body = {**LONG, "n": 16, "stream": True, "logprobs": 5}
    client.sendall(request_of(body))
    wait_until(lambda: it.service.requests == 1)
    return client


def test_a_client_that_does_not_read_holds_up_nobody(opinionated_model: Path) -> None:
    service = service_of(opinionated_model, batch_size=16)
    with running(service, send_buffer=4096) as it, unread(it):
        engine = it.service.models[0].engine
        wait_until(lambda: engine.new_tokens == 60 * 16)  # all of it, though nothing is read
        assert it.text(prompt="a", **GREEDY)
        wait_until(lambda: it.service.requests == 1)  # that of the other, who does not read


@pytest.mark.slow
def test_nobody_waits_for_ever_for_a_reader(
    opinionated_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # uvicorn says that the answer was not finished
    caplog.set_level(logging.CRITICAL, "uvicorn.error")
    service = service_of(opinionated_model, batch_size=16, max_seconds=0.5)
    with running(service, send_buffer=4096) as it, unread(it):
        wait_until(lambda: it.service.requests == 0)
        wait_until(lambda: at_rest(it))


def test_a_reader_that_is_stuck_gives_its_rows_up(
    opinionated_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = service_of(opinionated_model, batch_size=16)
    with running(service, send_buffer=2048) as it:
        slowed(it, monkeypatch)
        with unread(it, max_idle_seconds=0.3):
            wait_until(lambda: it.service.requests == 0)
            wait_until(lambda: at_rest(it))
        assert it.service.models[0].engine.new_tokens < 60 * 16
