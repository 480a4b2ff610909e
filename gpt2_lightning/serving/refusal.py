"""The one exception that stands for an answer which is no success."""

from collections.abc import Mapping

from starlette.responses import Response

from gpt2_lightning.serving.protocol import ErrorAnswer, ErrorBody


class Refusal(Exception):
    """A request that is not served.

    Args:
        status: HTTP status.
        message: What was found and what would work.
        param: Field of the request.
        code: A name for the mistake, for programs.
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
