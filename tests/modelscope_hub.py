"""A small ModelScope on loopback: as much of its protocol as its client needs to download."""

import json
import re
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.hub import LARGE, LARGE_FILE, HubHandler, sha256_of

REPOSITORY = re.compile(r"/api/v1/(models|datasets)/([^/]+/[^/]+)/repo(/files|/tree)?")
NOT_FOUND = b'{"Code": 10010205001, "Message": "not found", "Success": false, "Data": null}'


class ModelScopeHandler(HubHandler):
    """Answers one connection's requests; each repository has the one branch master."""

    def do_GET(self) -> None:
        """Answer a request for a listing or a file."""
        self.seen.append(f"{self.command} {self.path}")
        address = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        if large := LARGE_FILE.fullmatch(address.path):
            return self.send((self.folder / large[1] / large[2]).read_bytes())
        asked = REPOSITORY.fullmatch(address.path)
        repository = self.folder / asked[1] / asked[2] if asked else None
        if repository is None or not repository.is_dir() or query["Revision"] != "master":
            return self.send(NOT_FOUND, None, HTTPStatus.NOT_FOUND)
        if asked and asked[3]:
            return self._answer_listing(repository, query)
        file = repository / query["FilePath"]
        if not file.is_file():
            return self.send(NOT_FOUND, None, HTTPStatus.NOT_FOUND)
        if file.suffix in LARGE:
            return self.send_on(file)
        del self.headers["Range"]  # it ignores that for all that is not large
        return self.send(file.read_bytes())

    do_HEAD = do_GET

    def _answer_listing(self, repository: Path, query: dict[str, str]) -> None:
        entries = [_entry(repository, path) for path in sorted(repository.rglob("*"))]
        if "PageNumber" in query:
            start = (int(query["PageNumber"]) - 1) * int(query["PageSize"])
            entries = entries[start : start + int(query["PageSize"])]
        answer = {"Code": 200, "Success": True, "Message": "success", "Data": {"Files": entries}}
        self.send(json.dumps(answer).encode())


def _entry(repository: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(repository).as_posix()
    if path.is_dir():
        return {"Name": path.name, "Path": name, "Type": "tree", "Size": 0, "Sha256": ""}
    size = path.stat().st_size
    return {
        "Name": path.name,
        "Path": name,
        "Type": "blob",
        "Size": size,
        "Sha256": sha256_of(path),
        "IsLFS": path.suffix in LARGE,
        "Revision": "0123456789abcdef0123456789abcdef01234567",
    }
