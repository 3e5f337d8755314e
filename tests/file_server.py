"""A server on this machine that serves one file, well or badly."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CONTENT = bytes(range(256)) * 40
STANDARD = {"content": CONTENT, "knows_ranges": True, "location": ""}
Serve = Callable[..., str]


class Handler(BaseHTTPRequestHandler):
    """Serves `content`; `cuts` are the bytes after which the next answers end, `codes` answer in their place."""

    content: bytes
    knows_ranges: bool
    cuts: list[int]
    codes: list[int]
    location: str
    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.asked.append((self.path, wanted))
        if self.location and self.path == "/moved":
            return self.answer(302, b"", {"Location": self.location})
        if self.codes:
            return self.answer(self.codes.pop(0), b"", {})
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.knows_ranges else 0
        whole = len(self.content)
        if start >= whole:
            return self.answer(416, b"", {"Content-Range": f"bytes */{whole}"})
        told = {"Content-Range": f"bytes {start}-{whole - 1}/{whole}"} if start else {}
        return self.answer(206 if start else 200, self.content[start:], told)

    def answer(self, code: int, body: bytes, told: dict[str, str]) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        for name, value in told.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: self.cuts.pop(0)] if body and self.cuts else body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def file_servers() -> Iterator[Serve]:
    """Gives what starts a server with facts of `Handler` and returns its address; every path on it is the file."""
    with servers_of_handlers() as start:
        yield lambda **facts: start(type("_", (Handler,), STANDARD | {"cuts": [], "codes": [], "asked": []} | facts))


@contextmanager
def servers_of_handlers() -> Iterator[Serve]:
    """Gives what starts a server that answers by a handler and returns its address; all end with the block."""
    servers = []

    def start(handler: Callable[..., BaseHTTPRequestHandler]) -> str:
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
