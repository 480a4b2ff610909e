import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gpt2_lightning.generate.text_model import load
from gpt2_lightning.serve.service import samples_of
from tests.server import (
    PATH,
    Running,
    at_rest,
    error_of,
    events_of,
    running,
    server,
    service_of,
    token_by_token,
    wait_until,
)

__all__ = ["server", "token_by_token"]  # fixtures

GREEDY = {"temperature": 0, "max_tokens": 12}
LONG = {"prompt": "a", "temperature": 0, "max_tokens": 60}  # it does not end by itself


# --- answers --------------------------------------------------------------------------------------


def test_a_completion(server: Running, opinionated_model: Path) -> None:
    answer = server.post({"model": "opinionated-gpt2", "prompt": "The river", **GREEDY})
    assert answer.status_code == 200
    body = answer.json()
    assert body["id"].startswith("cmpl-")
    assert abs(body.pop("created") - time.time()) < 60
    text = load(str(opinionated_model), device="cpu").generate(
        "The river", do_sample=False, max_new_tokens=12
    )
    assert body == {
        "id": body["id"],
        "object": "text_completion",
        "model": "opinionated-gpt2",
        "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": "length"}],
        "usage": body["usage"],
    }
    read = body["usage"]["prompt_tokens"]
    assert body["usage"] == {
        "prompt_tokens": read,
        "completion_tokens": 12,
        "total_tokens": read + 12,
    }


def test_prompts_of_every_kind(server: Running, opinionated_model: Path) -> None:
    tokenizer = load(str(opinionated_model), device="cpu").tokenizer
    texts = ["The river", "a bridge of stone"]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    alone = [server.text(prompt=text, **GREEDY) for text in texts]
    assert [server.text(prompt=it, **GREEDY) for it in ids] == alone
    for prompts in (texts, ids):
        body = server.post({"prompt": prompts, "n": 2, **GREEDY}).json()
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
        assert [choice["text"] for choice in body["choices"]] == [
            *(alone[0], alone[0], alone[1], alone[1])
        ]
        assert body["usage"]["prompt_tokens"] == sum(map(len, ids))
        assert body["usage"]["completion_tokens"] == 4 * 12
    assert server.text(prompt="", **GREEDY) == server.text(
        prompt=[tokenizer.eos_token_id], **GREEDY
    )


def test_seeds(server: Running) -> None:
    def texts(**changes: Any) -> list[str]:
        body = {"prompt": "The", "temperature": 1.2, "seed": 7, "n": 3, **changes}
        return [choice["text"] for choice in server.post(body).json()["choices"]]

    first = texts()
    assert texts() == first
    assert texts(seed=8, n=2) == first[1:]
    assert len(set(first)) == 3
    assert texts(seed=-1, n=2)[1] == texts(seed=0, n=1)[0]
    assert texts(seed=None) != texts(seed=None)
    with ThreadPoolExecutor(8) as pool:  # whatever else is served
        crowd = list(pool.map(lambda seed: texts(seed=seed, n=1)[0], [7, 8, 9, 1, 2, 3, 4, 5]))
    assert crowd[:3] == first


def test_stop_strings(server: Running) -> None:
    whole = server.text(prompt="The", **GREEDY)
    stop = whole[6:9]
    body = server.post({"prompt": "The", "stop": stop, **GREEDY}).json()
    assert body["choices"][0]["text"] == whole[: whole.index(stop)]
    assert body["choices"][0]["finish_reason"] == "stop"
    assert 0 < body["usage"]["completion_tokens"] < 12
    assert server.text(prompt="The", stop=["@@@", stop], **GREEDY) == whole[: whole.index(stop)]
    assert server.text(prompt="The", stop=[], **GREEDY) == whole


@pytest.mark.usefixtures("token_by_token")
@pytest.mark.parametrize("more", [{}, {"n": 3, "temperature": 1.5, "seed": 3}, {"logprobs": 2}])
@pytest.mark.parametrize("echo", [False, True])
def test_a_stream_tells_the_same(server: Running, more: dict[str, Any], echo: bool) -> None:
    body = {"prompt": ["Née in 今天", "a"], "echo": echo, **GREEDY, **more}
    whole = server.post(body).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    events = events_of(server.post(body | options))
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == whole["usage"]
    assert all(event["usage"] is None for event in events[:-1])
    assert {event["id"] for event in events} == {events[0]["id"]}
    without = events_of(server.post(body | {"stream": True}))
    assert all("usage" not in event for event in without)
    for events_ in (events, without):
        for expected in whole["choices"]:
            parts = [
                choice
                for event in events_
                for choice in event["choices"]
                if choice["index"] == expected["index"]
            ]
            assert len(parts) > 3
            assert "".join(part["text"] for part in parts) == expected["text"]
            assert [part["finish_reason"] for part in parts] == [
                *[None] * (len(parts) - 1),
                expected["finish_reason"],
            ]
            if "logprobs" in more:
                for name, values in expected["logprobs"].items():
                    assert [it for part in parts for it in part["logprobs"][name]] == values


def test_logprobs(server: Running) -> None:
    choice = server.post(
        {"prompt": "The river", "echo": True, "logprobs": 3, "seed": 1, "max_tokens": 8}
    ).json()["choices"][0]
    found = choice["logprobs"]
    assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
    ends = [*found["text_offset"][1:], len(choice["text"])]
    for token, begin, end in zip(found["tokens"], found["text_offset"], ends, strict=True):
        assert token == choice["text"][begin:end] or token.startswith("bytes:")
    for token, value, top in list(
        zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True)
    )[1:]:
        assert top[token] == value
        assert 3 <= len(top) <= 4
    zero = server.post({"prompt": "The", "logprobs": 0, **GREEDY}).json()["choices"][0]["logprobs"]
    assert [list(top) for top in zero["top_logprobs"]] == [[token] for token in zero["tokens"]]


def test_a_prompt_as_long_as_the_positions(server: Running) -> None:
    ids = [number % 250 for number in range(63)]
    for new in (0, 1):
        body = {"prompt": ids, "echo": True, "logprobs": 1, "max_tokens": new, "temperature": 0}
        choice = server.post(body).json()["choices"][0]
        assert len(choice["logprobs"]["tokens"]) == 63 + new
        assert choice["finish_reason"] == "length"


def test_nulls_are_defaults(server: Running) -> None:
    names = "temperature top_p n stop stream logprobs echo best_of user suffix logit_bias"
    nulls = dict.fromkeys([*names.split(), "presence_penalty", "frequency_penalty"])
    body = server.post({"prompt": "a", "seed": 3, "max_tokens": None, **nulls}).json()
    assert body["choices"][0]["text"] == server.text(prompt="a", seed=3)
    assert body["usage"]["completion_tokens"] == 16
    unused = {"user": "me", "suffix": "", "logit_bias": {}, "presence_penalty": 0, "best_of": 1}
    assert server.text(prompt="a", seed=3, **unused) == body["choices"][0]["text"]


def test_no_prompt_is_the_beginning_of_a_text(server: Running) -> None:
    empty = server.text(prompt="", seed=3)
    assert server.text(prompt=None, seed=3) == server.text(seed=3) == empty
    body = server.post({"prompt": None, "seed": 3}).json()
    assert body["usage"]["prompt_tokens"] == 1  # the end-of-text


def test_null_asks_for_nothing_whatever_its_name(server: Running) -> None:
    text = server.text(prompt="a", seed=3)
    nulls = ["n", "model", "seed", "stream_options", "service_tier", "functions", "top_k", "min_p"]
    nulls += ["repetition_penalty"]
    answer = server.text(prompt="a", **(dict.fromkeys(nulls) | {"seed": 3}))
    assert answer == text == server.text(prompt="a", seed=3, stop=[], logit_bias={})
    options = {"include_usage": None, "include_obfuscation": None, "other": None}
    body = {"prompt": "a", "seed": 3, "stream": True}
    for given in (None, {}, options):
        events = events_of(server.post(body | {"stream_options": given}))
        assert "".join(event["choices"][0]["text"] for event in events) == text
        assert not any({"usage", "obfuscation"} & set(event) for event in events)


def test_obfuscation_hides_the_length_of_a_text(server: Running) -> None:
    body = {"prompt": "a", "seed": 3, "max_tokens": 30, "stream": True}
    options = {"include_obfuscation": True, "include_usage": True}
    *events, last = events_of(server.post(body | {"stream_options": options}))
    lengths = [len(it["choices"][0]["text"]) + len(it["obfuscation"]) for it in events]
    assert all(length % 64 == 0 for length in lengths)
    assert "obfuscation" not in last
    assert last["usage"]["completion_tokens"] == 30
    assert "obfuscation" not in server.post(body | {"stream": False}).json()


def test_other_words_for_the_same(server: Running) -> None:
    greedy = server.text(prompt="the river", temperature=0)
    assert server.text(prompt="the river", top_p=0, seed=3) == greedy
    all_of_them = server.text(prompt="the river", seed=3)
    assert server.text(prompt="the river", top_k=-1, seed=3) == all_of_them
    (card,) = server.get("/v1/models").json()["data"]
    assert server.get(f"/v1/models/{card['id']}").json() == card
    assert error_of(server.get("/v1/models/gpt5"))["code"] == "model_not_found"


def test_a_route_that_is_not_there(server: Running) -> None:
    message = error_of(server.client.post("/v1/chat/completions"))["message"]
    assert message.startswith("There is no /v1/chat/completions here; /openapi.json says what is.")
    assert "POST /v1/completions" in message
    assert "chat" not in error_of(server.get("/v2"))["message"]


# --- requests that are refused --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"prompt": 5}, "prompt", "must be a string, a list of strings"),
        ({"prompt": []}, "prompt", "at least 1 item"),
        ({"prompt": [[]]}, "prompt", "at least 1 item"),
        ({"prompt": ["a", 1]}, "prompt", "valid string"),
        ({"prompt": [1, True]}, "prompt", "valid integer"),
        ({"prompt": [1.5]}, "prompt", "must be a string"),
        ({"prompt": [-1]}, "prompt", "greater than or equal to 0"),
        ({"prompt": [10**30]}, "prompt", "less than 2147483648"),
        ({"prompt": [300]}, "prompt", "there is no token 300; ids go from 0 to 299"),
        ({"prompt": {"a": 1}}, "prompt", "must be a string"),
        ({"prompt": "\ud800"}, "prompt", "half a character"),
        ({"prompt": ["\udfff"]}, "prompt", "half a character"),
        ({"prompt": "a", "stop": "\ud800"}, "stop", "half a character"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens", "with echo only"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"prompt": "a", "max_tokens": "5"}, "max_tokens", "valid integer"),
        ({"prompt": "a", "max_tokens": 64}, "max_tokens", "63 would fit"),
        ({"prompt": "a", "max_tokens": 10**400}, "max_tokens", "less than or equal"),
        ({"prompt": [1] * 65, "max_tokens": 1}, "prompt", "65 tokens; 64 is the most"),
        ({"prompt": "a" * 100_000}, "prompt", "64 is the most"),
        ({"prompt": [1] * 100_000}, "prompt", "100000 tokens; 64 is the most"),
        ({"prompt": "a", "temperature": -0.1}, "temperature", "greater than or equal to 0"),
        ({"prompt": "a", "temperature": float("nan")}, "temperature", "finite"),
        ({"prompt": "a", "temperature": float("inf")}, "temperature", "finite"),
        ({"prompt": "a", "top_p": -0.1}, "top_p", "greater than or equal to 0"),
        ({"prompt": "a", "top_k": -2}, "top_k", "greater than or equal to -1"),
        ({"prompt": "a", "n": 0}, "n", "greater than or equal to 1"),
        ({"prompt": "a", "n": 65}, "n", "1 prompts x 65 samples are more than 64"),
        ({"prompt": ["a"] * 33, "n": 2}, "n", "33 prompts x 2"),
        ({"prompt": "a", "best_of": 2}, "best_of", "equal n"),
        ({"prompt": "a", "stop": ["a"] * 5}, "stop", "at most 4"),
        ({"prompt": "a", "stop": ""}, "stop", "at least 1"),
        ({"prompt": "a", "stop": 5}, "stop", "a string or a list of at most four"),
        ({"prompt": "a", "stop": [5]}, "stop", "valid string"),
        ({"prompt": "a", "seed": 2**63}, "seed", "less than"),
        ({"prompt": "a", "logprobs": 6}, "logprobs", "less than or equal to 5"),
        ({"prompt": "a", "logprobs": True}, "logprobs", "valid integer"),
        ({"prompt": "a", "stream": "yes"}, "stream", "valid boolean"),
        ({"prompt": "a", "stream_options": {}}, "stream_options", "with stream only"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "not supported; leave it out"),
        ({"prompt": "a", "presence_penalty": 0.5}, "presence_penalty", "not supported"),
        ({"prompt": "a", "logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"prompt": [None]}, "prompt", "must be a string"),
        ({"prompt": "a", "stop": [None]}, "stop", "valid string"),
        ({"prompt": "a", "tempratur": 1}, "tempratur", "there is no such field"),
        ({"promt": "a"}, "promt", "there is no such field"),
        (
            {"prompt": "a", "stream": True, "stream_options": {"include_use": True}},
            "stream_options",
            "extra inputs",
        ),
        ({"prompt": "a", "x" * 9999: 1}, "x" * 64 + "…", "there is no such field"),
    ],
)
def test_fields(server: Running, body: dict[str, Any], param: str, message: str) -> None:
    error = server.refusal(400, content=json.dumps(body))
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")
    assert message in error["message"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"prompt"',
        b"\xff\xfe",
        b'{"prompt": "\xc3\x28"}',
        b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": "a", "temperature": 1e999}',
        b"[" * 200_000,
        b'{"prompt": ' * 50_000,
        b'{"prompt": [' + b"[" * 100_000 + b"]" * 100_000 + b"]}",
        b"\x00" * 100,
        b'{"prompt": "a", "\\ud800": 1}',
    ],
)
def test_bodies_that_are_no_request(server: Running, content: bytes) -> None:
    assert server.refusal(400, content=content)["type"] == "invalid_request_error"


def test_an_unknown_model(server: Running) -> None:
    error = server.refusal(404, {"model": "gpt-5", "prompt": "a"})
    assert error["code"] == "model_not_found"
    assert "Models: opinionated-gpt2." in error["message"]


@pytest.mark.parametrize(
    "given", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_other_types_of_content(server: Running, given: str) -> None:
    headers = {"content-type": given}
    error = server.refusal(415, content=b'{"prompt": "a"}', headers=headers)
    assert "application/json" in error["message"]


def test_long_bodies(server: Running) -> None:
    long = b'{"prompt": "' + b"a" * 10_000_000 + b'"}'

    def in_parts() -> Iterator[bytes]:
        yield from (long[start : start + 65536] for start in range(0, len(long), 65536))

    for content in (long, in_parts()):  # with its length said first, and without
        assert server.refusal(413, content=content)["code"] == "body_too_long"


def test_a_body_of_just_the_allowed_length(server: Running) -> None:
    body = b'{"prompt": "a", "max_tokens": 1}'
    for longer, status in ((0, 200), (1, 413)):
        content = body + b" " * (2**20 + longer - len(body))
        assert server.post(content=content).status_code == status
        assert server.post(content=iter([content])).status_code == status


def test_a_long_body_is_refused_before_it_is_sent(server: Running) -> None:
    with connection(server) as client:
        client.sendall(head(10**12))
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *(("GET", PATH, 405), ("DELETE", "/v1/models", 405), ("GET", "/v1/nothing", 404)),
        *(("GET", "/static/../app.py", 404), ("GET", "/static/nothing.js", 404)),
        ("GET", "/docs", 404),  # its page would load scripts from elsewhere
    ],
)
def test_other_paths_and_methods(server: Running, method: str, path: str, status: int) -> None:
    answer = server.client.request(method, path)
    assert answer.status_code == status
    error_of(answer)


# --- limits ---------------------------------------------------------------------------------------


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


def test_requests_that_take_too_long(
    opinionated_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(service_of(opinionated_model, max_seconds=0.4)) as it:
        slowed(it, monkeypatch)
        body = LONG
        error = it.refusal(408, body)
        assert (error["code"], error["message"]) == ("timeout", "It took longer than 0.4 seconds.")
        events = it.post(body | {"stream": True}).text.strip().split("\n\n")
        assert json.loads(events[0].removeprefix("data: "))["choices"]
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "timeout"
        wait_until(lambda: at_rest(it))


# --- clients that do as they like -----------------------------------------------------------------


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


def test_a_body_that_stands_still(opinionated_model: Path) -> None:
    with (
        running(service_of(opinionated_model, max_idle_seconds=0.2)) as it,
        connection(it) as client,
    ):
        client.sendall(head(1000) + b'{"prompt": ')
        answer = client.recv(4000).decode()
        assert answer.startswith("HTTP/1.1 408 ")
        assert "No more of the body came for 0.2 seconds." in answer


@pytest.mark.parametrize("begun", ["", "GET /hea", "GET /health HTTP/1.1\r\nHost: localhost\r\n"])
def test_headers_that_never_end(opinionated_model: Path, begun: str) -> None:
    with (
        running(service_of(opinionated_model, max_idle_seconds=0.2)) as it,
        connection(it) as client,
    ):
        client.sendall(begun.encode())
        assert ended(client) == b""
        second = connection(it)
        second.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        second.sendall(b"G")  # the time between two requests ends with the first letter of one
        assert ended(second).startswith(b"HTTP/1.1 200 ")


def ended(client: socket.socket) -> bytes:
    """Return what a server sent before it closed the connection."""
    said = b""
    with client, suppress(ConnectionResetError):
        while more := client.recv(4000):
            said += more
    return said


def unread(it: Running) -> socket.socket:
    """Ask for much, and read nothing of it."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(address_of(it))
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
    service = service_of(opinionated_model, batch_size=16, max_idle_seconds=0.3)
    with running(service, send_buffer=2048) as it:
        slowed(it, monkeypatch)
        with unread(it):
            wait_until(lambda: it.service.requests == 0)
            wait_until(lambda: at_rest(it))
        assert it.service.models[0].engine.new_tokens < 60 * 16


# --- what else there is ---------------------------------------------------------------------------


def test_models_health_and_headers(server: Running) -> None:
    models = server.get("/v1/models")
    assert models.json()["object"] == "list"
    (card,) = models.json()["data"]
    assert (card["id"], card["object"], card["max_model_len"]) == ("opinionated-gpt2", "model", 64)
    health = server.get("/health")
    assert health.json() == {"status": "ok"}
    for answer in (models, health, server.get("/"), server.post(content=b"{")):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers


def test_two_models(opinionated_model: Path, tiny_model: Path) -> None:
    with running(service_of(opinionated_model, tiny_model)) as it:
        names = [opinionated_model.name, tiny_model.name]
        cards = it.get("/v1/models").json()["data"]
        assert [card["id"] for card in cards] == names
        texts = [it.text(prompt="The", model=name, **GREEDY) for name in names]
        assert texts[0] != texts[1]
        assert it.text(prompt="The", **GREEDY) == texts[0]


def test_metrics(server: Running) -> None:
    def read() -> dict[tuple[str, str], float]:
        wait_until(lambda: at_rest(server))
        answer = server.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        return {
            (
                sample.name.removeprefix("gpt2_lightning_"),
                ",".join(sample.labels.values()),
            ): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }

    server.post({"prompt": "a"})
    before = read()
    server.post({"prompt": [1, 2, 3], "max_tokens": 9, "temperature": 0})
    server.post({"prompt": 1})
    after = read()

    def more(name: str, labels: str) -> float:
        return after[name, labels] - before.get((name, labels), 0.0)

    assert more("requests_total", f"{PATH},200") == 1
    assert more("requests_total", f"{PATH},400") == 1
    assert more("prompt_tokens_total", "opinionated-gpt2") == 3
    assert more("new_tokens_total", "opinionated-gpt2") == 9
    assert more("steps_total", "opinionated-gpt2") == 8
    assert more("request_seconds_count", "") == 2
    assert more("first_token_seconds_count", "") == 1
    assert after["running_samples", "opinionated-gpt2"] == 0


def test_the_description_is_complete(server: Running) -> None:
    description = server.get("/openapi.json").json()
    assert set(description["paths"]) == {
        *(PATH, "/v1/models", "/v1/models/{name}", "/health", "/metrics")
    }
    operation = description["paths"][PATH]["post"]
    assert {"200", "400", "401", "404", "408", "413", "415", "429", "500", "503"} <= set(
        operation["responses"]
    )
    assert set(operation["responses"]["200"]["content"]) == {
        *("application/json", "text/event-stream")
    }
    fields = description["components"]["schemas"]["CompletionRequest"]["properties"]
    assert all(field.get("description") or "$ref" in str(field) for field in fields.values())


def test_an_error_of_ours_is_told_as_one(
    opinionated_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with running(service_of(opinionated_model)) as it:

        def broken(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("a secret of the server")

        with monkeypatch.context() as patch:
            patch.setattr(it.service.models[0].engine, "_step", broken)
            for body in ({"prompt": "a"}, {"prompt": "a", "stream": True}):
                answer = it.post(body)
                assert "The model has failed" in answer.text
                assert "secret" not in answer.text
            assert error_of(it.post({"prompt": "a"}))["type"] == "server_error"
        with monkeypatch.context() as patch:
            patch.setattr("gpt2_lightning.serve.app.samples_of", broken)
            assert "secret" not in str(it.refusal(500, {"prompt": "a"}))
        assert samples_of is not broken
        assert it.text(prompt="a", **GREEDY)
    caplog.clear()


def test_a_server_that_stops_finishes_what_it_has_begun(
    opinionated_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(service_of(opinionated_model)) as it, ThreadPoolExecutor(1) as pool:
        engine = it.service.models[0].engine
        goes_on = threading.Event()
        step = engine.batch.step

        def held(*args: Any) -> Any:
            assert goes_on.wait(20)
            return step(*args)

        monkeypatch.setattr(engine.batch, "step", held)
        begun = pool.submit(it.post, {**LONG, "stream": True})
        wait_until(lambda: engine.running == 1)
        it.service.stopping = True
        assert it.refusal(503, {"prompt": "a"})["code"] == "stopping"
        health = it.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "stopping"})
        goes_on.set()
        assert events_of(begun.result())[-1]["choices"][0]["finish_reason"] == "length"
