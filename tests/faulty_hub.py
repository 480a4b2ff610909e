"""A small hub with faults: cut connections, damaged content, refusals, silence."""

import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from tests.hub import HubHandler, small_hub


@dataclass
class Faults:
    """What goes wrong; a path counts if its last part is in the request.

    Attributes:
        cut: Bytes after which the connection ends, once for each number.
        damaged: Files of which one byte is another.
        status: Status, with headers, instead of an answer; of "" for every request.
        silent: Requests that get no answer.
        no_ranges: Send the whole file whatever part was asked for.
        ranges: What part of a file was asked for, as requests come; None for the whole.
        tokens: The address and the token of every request that had one.
        over: Ends all silence.
    """

    cut: dict[str, list[int]] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    status: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    no_ranges: bool = False
    ranges: dict[str, list[str | None]] = field(default_factory=dict)
    tokens: Counter[tuple[str, str]] = field(default_factory=Counter)
    over: Event = field(default_factory=Event)


@contextmanager
def faulty_hub(
    root: Path, faults: Faults, handler: type[HubHandler] = HubHandler
) -> Iterator[tuple[str, list[str]]]:
    """Serve a small hub's content with faults; yields what `small_hub` does."""

    class Handler(handler):  # type: ignore[misc, valid-type] # which hub it is, is known only here
        def do_GET(self) -> None:
            if token := self.headers.get("Authorization"):
                faults.tokens[self.headers["Host"].partition(":")[0], token] += 1
            if any(name in self.path for name in faults.silent):
                self.seen.append(f"{self.command} {self.path}")
                faults.over.wait(20)
                self.close_connection = True
                return
            for name, (status, headers) in faults.status.items():
                if name in self.path:
                    self.seen.append(f"{self.command} {self.path}")
                    self.send(b"{}", headers, status)
                    return
            if faults.no_ranges:
                del self.headers["Range"]
            super().do_GET()

        do_HEAD = do_GET

        def write(self, body: bytes) -> None:
            file = self.path.partition("?")[0].rpartition("/")[2]
            if "FilePath=" in self.path:
                file = self.path.rpartition("FilePath=")[2].replace("%2F", "/").rpartition("/")[2]
            if body and "/api/models/" not in self.path and "/api/datasets/" not in self.path:
                faults.ranges.setdefault(file, []).append(self.headers.get("Range"))
            if body and file in faults.damaged:
                body = body[:-1] + bytes([body[-1] ^ 1])
            if body and faults.cut.get(file):
                self.wfile.write(body[: faults.cut[file].pop(0)])
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            super().write(body)

    try:
        with small_hub(root, Handler) as found:
            yield found
    finally:
        faults.over.set()
