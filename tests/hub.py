"""A small hub on loopback: as much of the Hub's protocol as its Python clients need.

They can read, and write a folder of small files. Large files are elsewhere, as those of the Hub:
who asks for one is sent on to another address.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote, unquote, urlsplit

TOKEN = "hf_that_may_write"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.+))?)?")
FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
LARGE_FILE = re.compile(r"/large/(models|datasets)/(.+)")
LARGE = {".safetensors", ".bin", ".parquet"}  # those that git LFS keeps


@contextmanager
def small_hub(
    root: Path, handler: "type[HubHandler] | None" = None
) -> Iterator[tuple[str, list[str]]]:
    """Serve ``root/{models,datasets}/ORG/NAME/...``, each repository with the one branch main.

    Args:
        root: What the hub holds.
        handler: Answers the requests; null is one without faults.

    Yields:
        The endpoint, for HF_ENDPOINT, and the requests that came, which grow as they come.
    """
    requests: list[str] = []

    answering = type("Handler", (handler or HubHandler,), {"folder": root, "seen": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), answering)
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class HubHandler(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    folder: Path
    seen: list[str]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer a request for a listing or a file."""
        self.seen.append(f"{self.command} {self.path}")
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        if api := API.fullmatch(path):
            self._answer_api(*api.groups())
        elif file := FILE.fullmatch(path):
            kind = "datasets" if file[1] else "models"
            self._answer_file(self.folder / kind / file[2], file[3], file[4])
        elif large := LARGE_FILE.fullmatch(path):
            self.send((self.folder / large[1] / large[2]).read_bytes())
        else:
            self._refuse("EntryNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Answer a request that writes."""
        self.seen.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        writing = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path)
        if path == "/api/validate-yaml":
            self.send(b'{"errors": [], "warnings": []}')
        elif path != "/api/repos/create" and writing is None:
            self._refuse("EntryNotFound")
        elif (told := self.headers.get("Authorization")) != f"Bearer {TOKEN}":
            status = HTTPStatus.UNAUTHORIZED if told is None else HTTPStatus.FORBIDDEN
            self.send(b'{"error": "no"}', None, status)
        elif writing is None:
            self._answer_create(json.loads(body))
        elif writing[2] == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.send(json.dumps({"files": files}).encode())
        else:
            self._answer_commit(writing[1], [json.loads(line) for line in body.splitlines()])

    def _answer_create(self, asked: dict[str, Any]) -> None:
        name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        folder = self.folder / "models" / name
        where = json.dumps({"url": f"http://{self.headers['Host']}/{name}"}).encode()
        if folder.is_dir():
            return self.send(where, None, HTTPStatus.CONFLICT)
        folder.mkdir(parents=True)
        (self.folder / "created.json").write_text(json.dumps(asked))
        return self.send(where)

    def _answer_commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if line["key"] == "file":
                file = self.folder / "models" / name / line["value"]["path"]
                file.write_bytes(base64.b64decode(line["value"]["content"]))
        url = f"http://{self.headers['Host']}/{name}/commit/{COMMIT}"
        self.send(json.dumps({"commitUrl": url, "commitOid": COMMIT}).encode())

    def _answer_api(
        self, kind: str, name: str, verb: str | None, revision: str | None, below: str | None
    ) -> None:
        repository = self.folder / kind / name
        if not repository.is_dir():
            return self._refuse("RepoNotFound")
        if revision not in (None, "main", COMMIT):
            return self._refuse("RevisionNotFound")
        if verb == "tree":
            folder = repository / (below or "")
            if not folder.is_dir():
                return self._refuse("EntryNotFound")
            deep = "recursive=true" in urlsplit(self.path).query.lower()
            found = folder.rglob("*") if deep else folder.iterdir()
            entries = [_entry(repository, path) for path in sorted(found)]
            return self.send(json.dumps(entries).encode())
        files = sorted(path for path in repository.rglob("*") if path.is_file())
        about: dict[str, Any] = {
            "id": name,
            "sha": COMMIT,
            "private": False,
            "gated": False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [_sibling(repository, file) for file in files],
        }
        return self.send(json.dumps(about).encode())

    def _answer_file(self, repository: Path, revision: str, path: str) -> None:
        if not repository.is_dir():
            return self._refuse("RepoNotFound")
        if revision not in ("main", COMMIT):
            return self._refuse("RevisionNotFound")
        file = repository / path
        if not file.is_file():
            return self._refuse("EntryNotFound")
        if file.suffix in LARGE:
            return self.send_on(file)
        return self.send(file.read_bytes(), {"ETag": f'"{_etag(file)}"'})

    def send_on(self, file: Path) -> None:
        """Send the client on to where a large file is: this server by another name."""
        where = quote(file.relative_to(self.folder).as_posix())
        port = self.headers["Host"].partition(":")[2]
        headers = {
            "Location": f"http://localhost:{port}/large/{where}",
            "X-Linked-ETag": f'"{sha256_of(file)}"',
            "X-Linked-Size": str(file.stat().st_size),
        }
        self.send(b"", headers, HTTPStatus.FOUND)

    def _refuse(self, code: str) -> None:
        self.send(b"{}", {"X-Error-Code": code}, HTTPStatus.NOT_FOUND)

    def send(
        self,
        body: bytes,
        headers: dict[str, str] | None = None,
        status: int = HTTPStatus.OK,
    ) -> None:
        """Send an answer, or the part of it that was asked for."""
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and status == HTTPStatus.OK:
            start, end = int(asked[1]), int(asked[2] or len(body) - 1)
            total, body = len(body), body[start : end + 1]
            status = HTTPStatus.PARTIAL_CONTENT
            headers = {**(headers or {}), "Content-Range": f"bytes {start}-{end}/{total}"}
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.write(body)

    def write(self, body: bytes) -> None:
        """Send a body."""
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' screen clean."""


def _entry(repository: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(repository).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "size": 0, "oid": COMMIT}
    return {"type": "file", "path": name, "size": path.stat().st_size, "oid": _etag(path)}


def _sibling(repository: Path, file: Path) -> dict[str, Any]:
    size = file.stat().st_size
    told: dict[str, Any] = {"rfilename": file.relative_to(repository).as_posix(), "size": size}
    told["blobId"] = _etag(file)
    if file.suffix in LARGE:
        told["lfs"] = {"sha256": sha256_of(file), "size": size, "pointerSize": 130}
    return told


def _etag(file: Path) -> str:
    """Return the name git gives a file's content."""
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256_of(file: Path) -> str:
    """Return a file's SHA-256, in hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
