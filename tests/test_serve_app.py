import threading
import time
from concurrent.futures import ThreadPoolExecutor
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
