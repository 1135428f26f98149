# SPDX-License-Identifier: MIT
"""A mirror, or a snapshot service, on this machine: serves well and badly, and notes what it was asked."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Mirror(ThreadingHTTPServer):
    """Answers by `routes`, path -> function(handler); every other path is 404."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, str | None]] = []  # path and Range
        self.times: list[float] = []
        self.routes: dict[str, Callable[[_Handler], None]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def count(self, path: str) -> int:
        return sum(1 for asked, _ in self.requests if asked == path)


class _Handler(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers.get("Range")))
        self.server.times.append(time.monotonic())
        route = self.server.routes.get(self.path)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            route(self) if route else self.send_error(404)

    def answer(self, body: bytes, *, cut: int | None = None, ranges: bool = True, shift: int = 0) -> None:
        """Send a body as a good server does; `cut` ends the connection after that many bytes."""
        wanted = self.headers.get("Range") if ranges else None
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start + shift}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        part = body[start:]
        self.wfile.write(part if cut is None else part[:cut])

    def refuse(self, code: int, **headers: str) -> None:
        """Send an error."""
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def trickle(self, body: bytes, *, pause: float) -> None:
        """Send a byte at a time: never silent for long, never done."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        for byte in body:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(pause)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving() -> Iterator[Mirror]:
    """Run a mirror for the body."""
    server = Mirror()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
