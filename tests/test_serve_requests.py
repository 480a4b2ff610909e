import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server import (
    PATH,
    Running,
    error_of,
    server,
)

__all__ = ["server"]  # a fixture


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
        ({"prompt": "a", "max_tokens": 0}, "max_tokens", "must be > 0 without echo"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"prompt": "a", "max_tokens": "5"}, "max_tokens", "valid integer"),
        ({"prompt": "a", "max_tokens": 64}, "max_tokens", "63 would fit"),
        ({"prompt": "a", "max_tokens": 10**400}, "max_tokens", "less than or equal"),
        (
            {"prompt": [1] * 65, "max_tokens": 1},
            "prompt",
            "65 tokens; the limit of this server is 64",
        ),
        ({"prompt": "a" * 100_000}, "prompt", "the limit of this server is 64"),
        ({"prompt": [1] * 100_000}, "prompt", "100000 tokens; the limit of this server is 64"),
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
        ({"prompt": "a", "stream_options": {}}, "stream_options", "require stream"),
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
