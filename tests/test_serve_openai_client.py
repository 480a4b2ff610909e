"""The official openai client against the server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server import Running, running, server, service_of, token_by_token

pytest.importorskip("openai", reason="the openai client is not installed")

import openai  # may be absent

__all__ = ["server", "token_by_token"]  # fixtures

MODEL = "opinionated-gpt2"


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.usefixtures("token_by_token")
def test_plain_and_streamed(client: openai.OpenAI) -> None:
    body: dict[str, Any] = {
        "model": MODEL,
        "prompt": "The river",
        "max_tokens": 12,
        "temperature": 0,
    }
    whole = client.completions.create(**body)
    assert whole.object == "text_completion"
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12
    events = list(
        client.completions.create(**body, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(event.choices[0].text for event in events if event.choices)
    assert text == whole.choices[0].text
    assert events[-1].usage == whole.usage
    assert len(events) > 5


def test_samples_seed_and_stop(client: openai.OpenAI) -> None:
    def texts(**changes: Any) -> list[str]:
        body: dict[str, Any] = {"n": 4, "seed": 7, "max_tokens": 20} | changes
        body |= {"model": MODEL, "prompt": "a"}
        return [choice.text for choice in client.completions.create(**body).choices]

    drawn = texts()
    assert texts() == drawn
    assert len(set(drawn)) == 4
    stop = drawn[0][3:5]
    assert texts(stop=[stop])[0] == drawn[0][: drawn[0].index(stop)]
    assert texts(n=1, seed=9) == drawn[2:3]


def test_logprobs_and_echo(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt=[5, 6, 7], echo=True, logprobs=2, max_tokens=1, temperature=0
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    assert len(logprobs.tokens) == 4
    values: list[float | None] = [*logprobs.token_logprobs]  # theirs leaves None out
    assert values[0] is None
    assert all(value is not None and value < 0 for value in values[1:])
    assert logprobs.top_logprobs[3][logprobs.tokens[3]] == max(logprobs.top_logprobs[3].values())
    silent = client.completions.create(
        model=MODEL, prompt=[5, 6, 7], echo=True, logprobs=2, max_tokens=0
    )
    assert silent.choices[0].logprobs is not None
    assert silent.choices[0].logprobs.token_logprobs == logprobs.token_logprobs[:3]


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]


def test_mistakes_are_the_clients_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=MODEL, prompt="a", max_tokens=64)
    assert (refused.value.param, refused.value.code) == ("max_tokens", "context_length_exceeded")
    assert "63 would fit" in refused.value.message
    with pytest.raises(openai.NotFoundError, match="there is no 'gpt-5' here"):
        client.completions.create(model="gpt-5", prompt="a")


def test_the_key_is_sent_as_the_client_does(opinionated_model: Path) -> None:
    with running(service_of(opinionated_model, api_key="sesame")) as it:
        url = f"{it.url}/v1"
        with openai.OpenAI(base_url=url, api_key="sesame") as friend:
            assert friend.completions.create(model=MODEL, prompt="a").choices[0].text
        with (
            openai.OpenAI(base_url=url, api_key="guess", max_retries=0) as stranger,
            pytest.raises(openai.AuthenticationError),
        ):
            stranger.completions.create(model=MODEL, prompt="a")
