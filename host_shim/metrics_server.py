# SPDX-License-Identifier: MIT
"""Answers `/metrics` and `/health[/NAME]` on loopback: one question a connection, each with a deadline."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from attestation.errors import UsageError, VeracruzError

from .errors import MalformedEndpoint
from .listen import Listener, TcpEndpoint, UnixEndpoint, VsockEndpoint, parse_endpoint
from .metrics import exposition, healthy
from .state import Isolates

DEADLINE = 2.0  # seconds for one question: they are answered one after the other
TEXT = "text/plain; version=0.0.4; charset=utf-8"  # Prometheus's exposition format


def listen_on(text: str) -> Listener:
    """Return a listening socket on loopback or a Unix socket; raise MalformedEndpoint for any other place."""
    endpoint = parse_endpoint(text)
    match endpoint:
        case TcpEndpoint(host, _) if not host.is_loopback:
            raise MalformedEndpoint(
                "metrics are for this machine alone", expected="127.0.0.1:PORT, [::1]:PORT or unix:PATH", actual=text,
                hint="let a collector of this machine pass them on",
            )  # fmt: skip
        case VsockEndpoint():
            raise MalformedEndpoint("metrics are not served on vsock", expected="127.0.0.1:PORT", actual=text)
        case TcpEndpoint() | UnixEndpoint():
            return Listener(endpoint)


class MetricsServer(HTTPServer):
    """Serves a listening socket that was made before."""

    def __init__(self, listener: Listener, isolates: Isolates) -> None:
        super().__init__(("", 0), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = socket.socket(fileno=listener.fileno())
        self.socket.setblocking(True)
        self.isolates = isolates

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer one question; whoever sends or takes it a byte at a time is cut off too."""
        timer = threading.Timer(DEADLINE, _cut, [request])
        timer.daemon = True
        timer.start()
        try:
            super().process_request(request, client_address)
        finally:
            timer.cancel()

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """Accept a connection that must be quick."""
        client, _ = self.socket.accept()
        client.settimeout(DEADLINE)
        return client, ("", 0)

    def server_close(self) -> None:
        """Leave the socket to its listener."""
        self.socket.detach()

    def handle_error(self, request: object, client_address: object) -> None:
        """Go on: whoever asked has gone, or asked nonsense."""


def _cut(client: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has gone already
        client.shutdown(socket.SHUT_RDWR)


class Handler(BaseHTTPRequestHandler):
    """One question."""

    server: MetricsServer
    timeout = DEADLINE
    server_version = "veracruz"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer."""
        path = Path(self.path.partition("?")[0])
        match path.parts:
            case ("/", "metrics"):
                self._answer(200, exposition(self.server.isolates), TEXT)
            case ("/", "health"):
                self._health([record.name for record in self.server.isolates.all() if record.stage.live])
            case ("/", "health", name):
                self._health([name])
            case _:
                self._tell(404, {"error": "not found", "paths": ["/metrics", "/health", "/health/NAME"]})

    def _health(self, names: list[str]) -> None:
        told: dict[str, str] = {}
        well = bool(names)
        for name in names:
            try:
                record = self.server.isolates.find(name)
            except UsageError:
                self._tell(404, {"error": "no such isolate"})
                return
            except VeracruzError as error:
                told[name], well = error.slug, False
                continue
            told[name] = record.stage.value
            well = well and healthy(record)
        self._tell(200 if well else 503, {"healthy": well, "isolates": told})

    def _tell(self, code: int, value: object) -> None:
        self._answer(code, json.dumps(value).encode() + b"\n", "application/json")

    def _answer(self, code: int, body: bytes, kind: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a request's line is a stranger's."""
