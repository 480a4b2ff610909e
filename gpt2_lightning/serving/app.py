"""The routes of the server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from gpt2_lightning.serving.answer import RETRY_AFTER, Answer, EventStream
from gpt2_lightning.serving.asked import drafts_of
from gpt2_lightning.serving.gate import COMPLETIONS, Gate
from gpt2_lightning.serving.metrics import Metrics
from gpt2_lightning.serving.protocol import (
    Completion,
    CompletionRequest,
    ErrorAnswer,
    Health,
    ModelCard,
    ModelList,
)
from gpt2_lightning.serving.refusal import Refusal
from gpt2_lightning.serving.served import Served, Service

STATIC = Path(__file__).parent / "static"
UNSUPPORTED = "Not supported."  # of a field's description
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request cannot be read, or asks for what there is not."},
    401: {"description": "The API key is missing or wrong."},
    404: {"description": "There is no such model."},
    408: {"description": "The request took longer than is allowed."},
    413: {"description": "The body is too long."},
    415: {"description": "The body is no application/json."},
    429: {"description": "Too many requests wait; see Retry-After."},
    500: {"description": "The server has failed."},
    503: {"description": "The server is stopping; see Retry-After."},
    "4XX": {"description": "Any other mistake."},
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


def make_app(service: Service) -> ASGIApp:
    """Return the server as an ASGI application; it closes the engines at its end.

    Args:
        service: What is served.
    """
    metrics = Metrics(service.models)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for served in service.models:
            served.engine.close()

    app = FastAPI(
        title="gpt2_lightning",
        summary="Completions of a base model, by the OpenAI completions protocol.",
        version=version("gpt2-lightning"),
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
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
    async def complete(asked: CompletionRequest) -> Any:
        """Continue a prompt."""
        if service.stopping:
            raise Refusal(503, "The server is stopping.", code="stopping", headers=RETRY_AFTER)
        served = service.find(asked.model)
        drafts = await drafts_of(asked, served, service.limits)
        answer = Answer(drafts, asked.n or 1, served, metrics)
        if asked.stream:
            options = asked.stream_options
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
        """Tell of one model."""
        return _card(service.find(name))

    @app.get("/health", responses={503: {"model": Health, "description": "It is stopping."}})
    async def health(response: Response) -> Health:
        """Tell whether requests are taken."""
        response.status_code = 503 if service.stopping else 200
        return Health(status="stopping" if service.stopping else "ok")

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def prometheus() -> Response:
        """Tell how it goes, in Prometheus' text format."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", response_class=FileResponse, include_in_schema=False)
    async def page() -> FileResponse:
        """Return the page."""
        return FileResponse(STATIC / "page.html", headers={"Cache-Control": "no-cache"})

    app.mount("/static", StaticFiles(directory=STATIC))
    # the description names the models, which are known only here
    fields = app.openapi()["components"]["schemas"]["CompletionRequest"]["properties"]
    fields["model"]["anyOf"][0]["enum"] = [it.name for it in service.models]
    return Gate(app, service, metrics)


def _card(served: Served) -> ModelCard:
    return ModelCard(id=served.name, created=served.created, max_model_len=served.positions)


async def _refused(_: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    return refusal.response()


async def _invalid(_: Request, error: Exception) -> Response:
    """Say what is wrong with the first field that is."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()[0]
    place = [str(part) for part in found["loc"] if part != "body"]
    message = str(found["msg"]).removeprefix("Value error, ")
    if found["type"] == "json_invalid":
        message = f"The body is no JSON: {found.get('ctx', {}).get('error', message)}."
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
