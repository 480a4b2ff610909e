"""What it means that a hub does not give what was asked for, and what to try."""

import ssl

import httpx2

from gpt2_lightning.errors import UsageError
from gpt2_lightning.fetching.asked import EXAMPLES, Asked

PASSING = {408, 429, 500, 502, 503, 504}  # what may be otherwise a moment later

TOKENS = {
    "hub": "set HF_TOKEN or run `hf auth login`",
    "modelscope": "set MODELSCOPE_API_TOKEN",
}
MIRRORS = {
    "hub": "--endpoint https://hf-mirror.com, or --from modelscope with its name there",
    "modelscope": "--from hub with its name there",
}


class Unavailable(Exception):
    """An answer that may be another a moment later.

    Attributes:
        status: Of HTTP.
        wait: Seconds that the hub asked to wait, if it did.
    """

    def __init__(self, status: int, wait: float | None) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.wait = wait


def check_status(response: httpx2.Response, asked: Asked, path: str | None = None) -> None:
    """See that a hub gave what was asked for.

    Args:
        response: Its answer.
        asked: What was asked for.
        path: The file that was asked for; null for the listing.

    Raises:
        Unavailable: If it may do so a moment later.
        UsageError: If it will not.
    """
    status = response.status_code
    if status in PASSING:
        raise Unavailable(status, _seconds(response.headers.get("Retry-After")))
    if status >= 400:
        raise refusal(status, asked, path, response.headers.get("X-Error-Code"))


def refusal(status: int, asked: Asked, path: str | None, code: str | None = None) -> UsageError:
    """Return what an answer's status means to the user."""
    what = f"{asked.said}: {f'{path}: ' if path else ''}{asked.where}"
    token = f"There is no flag for a token, which others could read: {TOKENS[asked.hub]}."
    if status == 401:
        return UsageError(
            f"{what} wants to know who asks, or has nothing of that name (HTTP 401). Check the "
            f"name; where it is private or gated, sign in. {token}"
        )
    if status == 403:
        return UsageError(
            f"{what} does not let you have it (HTTP 403). Where it is gated, accept its terms on "
            f"its page first. {token}"
        )
    if status == 404 and (code == "RevisionNotFound" or (asked.revision and code is None)):
        return UsageError(
            f"{what} has no such revision, or nothing of that name (HTTP 404). Check --revision; "
            "without it the main branch is fetched."
        )
    if status == 404:
        other = "data" if asked.kind == "model" else "model"
        return UsageError(
            f"{what} has no {'such file' if path else asked.kind + ' of that name'} (HTTP 404). "
            f"Check the spelling (such as {EXAMPLES[asked.hub]}) and the kind "
            f"(fetch {other} {asked.name}?); {MIRRORS[asked.hub]} may have it."
        )
    return UsageError(f"{what} refused (HTTP {status}). Try {MIRRORS[asked.hub]}.")


def given_up(error: Exception, asked: Asked, kept: str) -> UsageError:
    """Return what it means to the user that every try failed.

    Args:
        error: What ended the last one.
        asked: What was asked for.
        kept: What is kept of the transfer, as a sentence.
    """
    what = f"{asked.said}: {asked.where}"
    again = f"{kept} Try the same command again, or {MIRRORS[asked.hub]}.".lstrip()
    match error:
        case Unavailable(status=429):
            wait = f" and asks to wait {error.wait:,.0f} seconds" if error.wait else ""
            return UsageError(
                f"{what} had too many requests (HTTP 429){wait}. Wait a while; who signs in may "
                f"ask more often ({TOKENS[asked.hub]}). {again}"
            )
        case Unavailable():
            return UsageError(f"{what} is out of order (HTTP {error.status}). {again}")
        case httpx2.ConnectTimeout() | httpx2.ConnectError() if _certificate(error):
            return UsageError(
                f"{what}: its certificate is not trusted ({_words(error)}). Behind a company's "
                "proxy, point SSL_CERT_FILE to its certificate."
            )
        case httpx2.ConnectTimeout() | httpx2.ConnectError() | httpx2.ProxyError():
            return UsageError(f"{what} cannot be reached ({_words(error)}). {again}")
        case httpx2.TimeoutException():
            return UsageError(
                f"{what} was silent for {asked.timeout:g} seconds, time after time. {again} "
                "--timeout SECONDS waits longer."
            )
        case _:
            return UsageError(f"{what} broke off, time after time ({_words(error)}). {again}")


def _certificate(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _seconds(header: str | None) -> float | None:
    """Return how long to wait; a date instead of seconds, which no hub sends, counts as none."""
    try:
        return max(0.0, float(header or ""))
    except ValueError:
        return None
