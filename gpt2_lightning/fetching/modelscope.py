"""What a repository of ModelScope holds.

Over its plain HTTP interface, three addresses that every version of its client has used. The
client itself would have to be installed first, with a cryptography library that a download does not
need, and its transfers keep other promises than ours; the tests hold that it and we fetch the same
files from the same hub.
"""

import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx2

from gpt2_lightning.errors import UsageError
from gpt2_lightning.fetching.answers import check_status
from gpt2_lightning.fetching.asked import Asked
from gpt2_lightning.fetching.listing import Listing, RemoteFile, safe_path

MAIN_BRANCH = "master"
PAGE = 200  # files; what the client asks for
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # sha256 of nothing


def list_modelscope(asked: Asked, client: httpx2.Client) -> Listing:
    """List a repository at a revision.

    ModelScope names no commit; what a branch holds may change between two calls.

    Raises:
        Unavailable: If ModelScope may answer otherwise a moment later.
        UsageError: If it refuses.
    """
    revision = asked.revision or MAIN_BRANCH
    kind = "datasets" if asked.kind == "data" else "models"
    below = f"{asked.endpoint}/api/v1/{kind}/{asked.name}/repo"
    headers = _sign_in()
    files = [
        RemoteFile(
            path=safe_path(entry["Path"], asked),
            url=f"{below}?Revision={quote(revision, '')}&FilePath={quote(entry['Path'], '')}",
            # it also says 0 where it does not know
            size=entry.get("Size") or (0 if entry.get("Sha256") == EMPTY else None),
            sha256=(entry.get("Sha256") or "").lower() or None,
        )
        for entry in _entries(asked, client, below, revision, headers)
        if entry.get("Type") != "tree"
    ]
    return Listing(asked, revision, tuple(files), headers)


def _sign_in() -> dict[str, str]:
    token = os.environ.get("MODELSCOPE_API_TOKEN")
    if not token:
        return {}
    # as its client does: one part of the service reads the one, another the other
    return {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"}


def _entries(
    asked: Asked, client: httpx2.Client, below: str, revision: str, headers: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """Yield the entries of a listing; those of data come in pages."""
    query = {"Revision": revision, "Recursive": "True"}
    if asked.kind == "model":
        yield from _page(asked, client, f"{below}/files", query, headers)
        return
    number, found = 1, PAGE
    while found == PAGE:
        page = {**query, "PageNumber": str(number), "PageSize": str(PAGE)}
        entries = _page(asked, client, f"{below}/tree", page, headers)
        yield from entries
        number, found = number + 1, len(entries)


def _page(
    asked: Asked, client: httpx2.Client, url: str, query: dict[str, str], headers: dict[str, str]
) -> list[dict[str, Any]]:
    response = client.get(url, params=query, headers=headers)
    check_status(response, asked)
    try:
        entries = response.json()["Data"]["Files"] or []
        if all(isinstance(entry["Path"], str) for entry in entries):
            return list(entries)
    except (ValueError, KeyError, TypeError):
        pass
    raise UsageError(
        f"{asked.said}: {asked.where} answered with something that is no listing of files. Is "
        "it ModelScope? Leave --endpoint out for its own address."
    )
