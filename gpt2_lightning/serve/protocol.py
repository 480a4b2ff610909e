"""The OpenAI completions protocol: requests, answers and errors, each field typed and bounded.

Reference: https://platform.openai.com/docs/api-reference/completions. Additional fields are
`top_k`, `min_p` and `repetition_penalty`, with vLLM's names.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from annotated_types import Len
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError
from starlette.responses import Response

# no conversion of types; unknown fields are refused, as they may be typos
EXACT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

SOME = Field(min_length=1, fail_fast=True)  # of a list's errors, only the first is reported

TokenId = Annotated[int, Field(ge=0, lt=2**31)]

Ids = Annotated[list[TokenId], SOME]

KINDS = "a string, a list of strings, a list of token ids, or a list of such lists"


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError(
            "half_character", "it holds half a character: a surrogate without its other half"
        ) from None
    return text


# JSON can encode unpaired surrogates, which UTF-8 cannot
Text = Annotated[str, AfterValidator(_encodable)]


def _kind(prompt: Any) -> str | None:
    if isinstance(prompt, str):
        return "text"
    if not isinstance(prompt, list):
        return None
    first = prompt[0] if prompt else ""
    return {str: "texts", int: "ids", list: "id_lists"}.get(type(first))


Prompt = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[list[Text], SOME, Tag("texts")]
    | Annotated[Ids, Tag("ids")]
    | Annotated[list[Ids], SOME, Tag("id_lists")],
    Discriminator(_kind, custom_error_type="prompt", custom_error_message=f"must be {KINDS}"),
]

StopString = Annotated[Text, Len(1, 256)]


def _stop_kind(stop: Any) -> str | None:
    return "text" if isinstance(stop, str) else "texts" if isinstance(stop, list) else None


Stop = Annotated[
    Annotated[StopString, Tag("text")] | Annotated[list[StopString], Len(0, 4), Tag("texts")],
    Discriminator(
        _stop_kind,
        custom_error_type="stop",
        custom_error_message="must be a string or a list of at most four",
    ),
]


def _without_nulls(fields: Any) -> Any:
    """Leave out fields that are null, unknown ones included: they request nothing."""
    if not isinstance(fields, dict):
        return fields
    return {name: value for name, value in fields.items() if value is not None}


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    model_config = EXACT

    include_usage: bool | None = Field(False, description="A last event with the usage.")
    include_obfuscation: bool | None = Field(
        False,
        description="A field of random letters in each event, to hide the length of its text.",
    )

    _nulls = model_validator(mode="before")(_without_nulls)


class CompletionRequest(BaseModel):
    """What to continue, and how."""

    model_config = EXACT

    model: Annotated[Text, Len(1, 256)] | None = Field(
        None, description="One of /v1/models; the first of them where it is left out."
    )
    prompt: Prompt | None = Field(
        None, description=f"Text to continue: {KINDS}. If null or left out, a new text begins."
    )
    max_tokens: int | None = Field(
        16, ge=0, le=1_000_000, description="Tokens to generate at most; 0 requires echo."
    )
    temperature: float | None = Field(
        1.0, ge=0, le=2, description="0 is greedy; 1 samples from the model's distribution."
    )
    top_p: float | None = Field(
        1.0, ge=0, le=1, description="Sample from the likeliest tokens of this total probability."
    )
    top_k: int | None = Field(
        0, ge=-1, le=1_000_000, description="Sample from the k likeliest tokens; 0 or -1: all."
    )
    min_p: float | None = Field(
        0.0, ge=0, le=1, description="Least probability, as a share of the likeliest token's."
    )
    repetition_penalty: float | None = Field(
        1.0, ge=0.1, le=10, description="Above 1, tokens that the text has are less likely."
    )
    n: int | None = Field(1, ge=1, le=128, description="Samples of each prompt.")
    best_of: int | None = Field(None, ge=1, le=128, description="Must equal n.")
    stop: Stop | None = Field(None, description="Strings before which a sample ends, four at most.")
    seed: int | None = Field(
        None,
        ge=-(2**63),
        lt=2**63,
        description="Of a prompt's first sample; the others have the following seeds. The same "
        "seed gives the same text, whatever else is served.",
    )
    stream: bool | None = Field(False, description="Answer by server-sent events.")
    stream_options: StreamOptions | None = None
    logprobs: int | None = Field(
        None, ge=0, le=5, description="Number of likeliest tokens to return beside each token."
    )
    echo: bool | None = Field(False, description="Return the prompt before its completion.")
    user: Annotated[Text, Len(0, 1024)] | None = Field(None, description="Not used.")
    suffix: Annotated[str, Len(0, 0)] | None = Field(None, description="Not supported.")
    presence_penalty: float | None = Field(0.0, ge=0, le=0, description="Not supported.")
    frequency_penalty: float | None = Field(0.0, ge=0, le=0, description="Not supported.")
    logit_bias: Annotated[dict[str, float], Len(0, 0)] | None = Field(
        None, description="Not supported."
    )

    _nulls = model_validator(mode="before")(_without_nulls)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens: must be > 0 without echo")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of: must equal n; no samples are discarded here")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: they require stream")
        return self


class Logprobs(BaseModel):
    """Log-probabilities in nats, before temperature and the like."""

    tokens: list[str] = Field(
        description=r"Text of each token, or bytes:\x.. if its bytes are no characters."
    )
    token_logprobs: list[float | None] = Field(
        description="Of each token; null for the first of a prompt."
    )
    top_logprobs: list[dict[str, float] | None] = Field(
        description="Of the likeliest tokens at each position, and of the token itself."
    )
    text_offset: list[int] = Field(
        description="Index of each token's first character in the choice's text."
    )


class Choice(BaseModel):
    """A sample; in a stream, its next piece."""

    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class Usage(BaseModel):
    """Tokens of prompts and completions; an end-of-text counts, each prompt counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(BaseModel):
    """An answer, or an event of a streamed one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = None
    obfuscation: Annotated[
        str | None,
        Field(description="Random letters, in a stream with include_obfuscation."),
    ] = None


class ModelCard(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "gpt2_lightning"
    max_model_len: int = Field(description="Tokens of prompt and completion together.")


class ModelList(BaseModel):
    """The models that are served; the first is the default."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """Whether requests are accepted."""

    status: Literal["ok", "stopping"]


class ErrorBody(BaseModel):
    """An error: what was found, and what would work."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """The body of every error."""

    error: ErrorBody


class Refusal(Exception):
    """A request that is not served.

    Args:
        status: HTTP status.
        message: What was found and what would work.
        param: Field of the request.
        code: The error's name, for programs.
        headers: Headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.body = ErrorBody(message=message, type=_type(status), param=param, code=code)

    def response(self) -> Response:
        """Return the answer."""
        body = ErrorAnswer(error=self.body).model_dump_json()
        return Response(body, self.status, self.headers, "application/json")


def _type(status: int) -> str:
    if status >= 500:
        return "server_error"
    return "rate_limit_error" if status == 429 else "invalid_request_error"
