"""Lists the files of a repository on the Hub, a mirror or ModelScope, and explains HTTP errors.

ModelScope is read by its plain HTTP interface, three addresses that every version of its client has
used. The client itself would bring a cryptography library that a download does not need, and cannot
resume a transfer as `transfer` does; a test compares the files that both download.
"""

import os
import re
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import quote

import httpx2
from huggingface_hub import HfApi, constants, get_token, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError

from gpt2_lightning.errors import UsageError, one_line, transport_errors

Kind = Literal["model", "data"]

HubName = Literal["hub", "modelscope"]

ENDPOINTS: dict[HubName, tuple[str, str]] = {  # the variable for a mirror, and the default
    "hub": ("HF_ENDPOINT", "https://huggingface.co"),
    "modelscope": ("MODELSCOPE_ENDPOINT", "https://www.modelscope.cn"),
}

TITLES: dict[HubName, str] = {"hub": "the Hub", "modelscope": "ModelScope"}

EXAMPLES: dict[HubName, str] = {
    "hub": "openai-community/gpt2 or Salesforce/wikitext",
    "modelscope": "AI-ModelScope/gpt2",
}

NAMES: dict[HubName, re.Pattern[str]] = {  # the Hub has a few old names without an owner
    "hub": re.compile(r"\w[\w.-]*(/[\w.-]+)?"),
    "modelscope": re.compile(r"\w[\w.-]*/[\w.-]+"),
}

TEMPORARY = {408, 429, 500, 502, 503, 504}  # HTTP statuses after which a retry may succeed
TOKENS = {
    "hub": "set HF_TOKEN or run `hf auth login`",
    "modelscope": "set MODELSCOPE_API_TOKEN",
}
MIRRORS = {
    "hub": "--endpoint https://hf-mirror.com, or --from modelscope with its name there",
    "modelscope": "--from hub with its name there",
}
MAIN_BRANCH = "master"
PAGE = 200  # files, as ModelScope's own client requests
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # sha256 of nothing


@dataclass(frozen=True)
class RepoRef:
    """A repository of a hub.

    Attributes:
        kind: ``model`` or ``data``.
        name: ORG/NAME.
        hub: ``hub`` or ``modelscope``.
        revision: Branch, tag or commit; null is the hub's main branch.
        endpoint: Address of the hub or its mirror, without a slash at its end.
        timeout: Seconds without a connection or without a byte after which a transfer has stalled.
    """

    kind: Kind
    name: str
    hub: HubName
    revision: str | None
    endpoint: str
    timeout: float

    @property
    def where(self) -> str:
        """The hub's name and address, for messages."""
        return f"{TITLES[self.hub]} ({self.endpoint})"

    @property
    def label(self) -> str:
        """The request as the user typed it, for messages."""
        revision = f" --revision {self.revision}" if self.revision else ""
        return f"{self.kind} {self.name}{revision}"


def repo_ref(
    kind: Kind,
    name: str,
    hub: HubName,
    revision: str | None,
    endpoint: str | None,
    timeout: float,
) -> RepoRef:
    """Return the requested repository; the endpoint is that of the flag, environment or hub.

    Raises:
        UsageError: If the name, endpoint or timeout is invalid.
    """
    if not NAMES[hub].fullmatch(name) or ".." in name:
        raise UsageError(
            f"{kind} {name}: it is no name on {TITLES[hub]}. Give one such as {EXAMPLES[hub]}, "
            "without https:// and a host."
        )
    variable, default = ENDPOINTS[hub]
    flag = "--endpoint" if endpoint else variable
    address = (endpoint or os.environ.get(variable) or default).rstrip("/")
    if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", address):
        raise UsageError(f"{flag} {address}: must be an address such as https://hf-mirror.com.")
    if not timeout > 0:
        raise UsageError(f"--timeout {timeout}: must be > 0, in seconds.")
    return RepoRef(kind, name, hub, revision, address, timeout)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository.

    Attributes:
        path: Inside the repository, with slashes.
        url: Of its content.
        size: Bytes; null if the hub does not say.
        sha256: Of its content, in hexadecimal; null if the hub does not say.
        git_sha1: Git's hash of it (of a header and the content); null if the hub does not say.
    """

    path: str
    url: str
    size: int | None
    sha256: str | None = None
    git_sha1: str | None = None


@dataclass(frozen=True)
class Listing:
    """A repository at one commit.

    Attributes:
        repo: The repository.
        commit: The revision's commit; the revision itself if the hub does not say.
        files: All files.
        headers: HTTP headers of requests for a file.
    """

    repo: RepoRef
    commit: str
    files: tuple[RemoteFile, ...]
    headers: Mapping[str, str]


def safe_path(path: str, repo: RepoRef) -> str:
    """Return a listed path if it stays inside the folder that it is written to.

    Raises:
        UsageError: If it leads out of it.
    """
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or ":" in parts[0]:
        raise UsageError(
            f"{repo.label}: {repo.where} lists a file {path!r}, which would be written outside "
            "the folder. Nothing was written; use another --endpoint."
        )
    return path


class Unavailable(Exception):
    """An HTTP error after which a retry may succeed.

    Attributes:
        status: HTTP status.
        wait: Seconds to wait, from the header Retry-After; None if absent.
    """

    def __init__(self, status: int, wait: float | None) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.wait = wait


def check_status(response: httpx2.Response, repo: RepoRef, path: str | None = None) -> None:
    """Raise an error unless a request succeeded.

    Args:
        response: The hub's answer.
        repo: The repository.
        path: The requested file; null for the listing.

    Raises:
        Unavailable: If a retry may succeed.
        UsageError: If it will not.
    """
    status = response.status_code
    if status in TEMPORARY:
        raise Unavailable(status, _seconds(response.headers.get("Retry-After")))
    if status >= 400:
        raise refusal(status, repo, path, response.headers.get("X-Error-Code"))


def refusal(status: int, repo: RepoRef, path: str | None, code: str | None = None) -> UsageError:
    """Return the message for an HTTP status."""
    what = f"{repo.label}: {f'{path}: ' if path else ''}{repo.where}"
    token = f"There is no flag for a token, which other users could read: {TOKENS[repo.hub]}."
    if status == 401:
        return UsageError(
            f"{what} requires a login, or has nothing of that name (HTTP 401). Check the "
            f"name; if it is private or gated, sign in. {token}"
        )
    if status == 403:
        return UsageError(
            f"{what} denies access (HTTP 403). If it is gated, accept its terms on its page first. "
            f"{token}"
        )
    if status == 404 and (code == "RevisionNotFound" or (repo.revision and code is None)):
        return UsageError(
            f"{what} has no such revision, or nothing of that name (HTTP 404). Check --revision; "
            "without it the main branch is fetched."
        )
    if status == 404:
        other = "data" if repo.kind == "model" else "model"
        return UsageError(
            f"{what} has no {'such file' if path else repo.kind + ' of that name'} (HTTP 404). "
            f"Check the spelling (such as {EXAMPLES[repo.hub]}) and the kind "
            f"(fetch {other} {repo.name}?); {MIRRORS[repo.hub]} may have it."
        )
    return UsageError(f"{what} refused (HTTP {status}). Try {MIRRORS[repo.hub]}.")


def given_up(error: Exception, repo: RepoRef, kept: str) -> UsageError:
    """Return the message after the last retry has failed.

    Args:
        error: The last error.
        repo: The repository.
        kept: A sentence about the part of the transfer that is kept.
    """
    what = f"{repo.label}: {repo.where}"
    again = f"{kept} Try the same command again, or {MIRRORS[repo.hub]}.".lstrip()
    match error:
        case Unavailable(status=429):
            wait = f" and asks to wait {error.wait:,.0f} seconds" if error.wait else ""
            return UsageError(
                f"{what} limits the rate of requests (HTTP 429){wait}. Wait, or sign in for a "
                f"higher limit ({TOKENS[repo.hub]}). {again}"
            )
        case Unavailable():
            return UsageError(f"{what} has failed (HTTP {error.status}). {again}")
        case httpx2.ConnectTimeout() | httpx2.ConnectError() if _certificate(error):
            return UsageError(
                f"{what}: its certificate is not trusted ({one_line(error)}). Behind a company's "
                "proxy, point SSL_CERT_FILE to its certificate."
            )
        case httpx2.ConnectTimeout() | httpx2.ConnectError() | httpx2.ProxyError():
            return UsageError(f"{what} cannot be reached ({one_line(error)}). {again}")
        case httpx2.TimeoutException():
            return UsageError(
                f"{what} timed out after {repo.timeout:g} seconds, repeatedly. {again} "
                "--timeout SECONDS waits longer."
            )
        case _:
            return UsageError(
                f"{what} closed the connection repeatedly ({one_line(error)}). {again}"
            )


def _certificate(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _seconds(header: str | None) -> float | None:
    """Return the seconds of a Retry-After header; None for a date, which no hub sends."""
    try:
        return max(0.0, float(header or ""))
    except ValueError:
        return None


def list_hub(repo: RepoRef) -> Listing:
    """List a repository at the present commit of its revision.

    Content is downloaded by plain HTTP instead of Xet, which mirrors do not serve. The token is the
    client's, from HF_TOKEN or ``hf auth login``.

    Raises:
        Unavailable: If a retry may succeed.
        UsageError: If the hub refuses.
    """
    api = HfApi(endpoint=repo.endpoint)
    kind, ask = ("dataset", api.dataset_info) if repo.kind == "data" else ("model", api.model_info)
    try:
        about = ask(repo.name, revision=repo.revision, files_metadata=True, timeout=repo.timeout)
    except HfHubHTTPError as error:
        check_status(error.response, repo)
        raise
    except transport_errors() as error:
        # of an older client than ours, perhaps: its errors have the same names
        same = getattr(httpx2, type(error).__name__, httpx2.TransportError)
        raise same(str(error)) from error
    commit = about.sha or repo.revision or "main"
    files = [
        RemoteFile(
            path=safe_path(file.rfilename, repo),
            url=hf_hub_url(
                repo.name,
                file.rfilename,
                repo_type=kind,
                revision=commit,
                endpoint=repo.endpoint,
            ),
            size=file.size,
            sha256=file.lfs.sha256 if file.lfs else None,
            git_sha1=None if file.lfs else file.blob_id,
        )
        for file in about.siblings or []
    ]
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return Listing(repo, commit, tuple(files), headers)


def list_modelscope(repo: RepoRef, client: httpx2.Client) -> Listing:
    """List a repository at a revision.

    ModelScope names no commit; a branch may change between two calls.

    Raises:
        Unavailable: If a retry may succeed.
        UsageError: If ModelScope refuses.
    """
    revision = repo.revision or MAIN_BRANCH
    kind = "datasets" if repo.kind == "data" else "models"
    below = f"{repo.endpoint}/api/v1/{kind}/{repo.name}/repo"
    headers = _sign_in()
    files = [
        RemoteFile(
            path=safe_path(entry["Path"], repo),
            url=f"{below}?Revision={quote(revision, '')}&FilePath={quote(entry['Path'], '')}",
            # ModelScope also says 0 if it does not know
            size=entry.get("Size") or (0 if entry.get("Sha256") == EMPTY else None),
            sha256=(entry.get("Sha256") or "").lower() or None,
        )
        for entry in _entries(repo, client, below, revision, headers)
        if entry.get("Type") != "tree"
    ]
    return Listing(repo, revision, tuple(files), headers)


def _sign_in() -> dict[str, str]:
    token = os.environ.get("MODELSCOPE_API_TOKEN")
    if not token:
        return {}
    # both, as its client sends them: parts of the service read one or the other
    return {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"}


def _entries(
    repo: RepoRef, client: httpx2.Client, below: str, revision: str, headers: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """Yield the entries of a listing; data is listed in pages."""
    query = {"Revision": revision, "Recursive": "True"}
    if repo.kind == "model":
        yield from _page(repo, client, f"{below}/files", query, headers)
        return
    number, found = 1, PAGE
    while found == PAGE:
        page = {**query, "PageNumber": str(number), "PageSize": str(PAGE)}
        entries = _page(repo, client, f"{below}/tree", page, headers)
        yield from entries
        number, found = number + 1, len(entries)


def _page(
    repo: RepoRef, client: httpx2.Client, url: str, query: dict[str, str], headers: dict[str, str]
) -> list[dict[str, Any]]:
    response = client.get(url, params=query, headers=headers)
    check_status(response, repo)
    try:
        entries = response.json()["Data"]["Files"] or []
        if all(isinstance(entry["Path"], str) for entry in entries):
            return list(entries)
    except (ValueError, KeyError, TypeError):
        pass
    raise UsageError(
        f"{repo.label}: {repo.where} did not answer with a listing of files. Is it ModelScope? "
        "Leave --endpoint out for its own address."
    )
