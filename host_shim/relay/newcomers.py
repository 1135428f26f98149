# SPDX-License-Identifier: MIT
"""Clients that are not relayed yet: their introduction is awaited, or the isolate's side."""

from __future__ import annotations

import socket

from .limits import Source
from .proxy_protocol import HeaderReader


class Arriving:
    """A balancer's connection whose PROXY header is awaited until `until` (monotonic seconds)."""

    __slots__ = ("_reader", "client", "source", "until")

    def __init__(self, client: socket.socket, source: Source, *, until: float) -> None:
        self.client = client
        self.source = source
        self.until = until
        self._reader = HeaderReader()

    def hear(self) -> bool:
        """Read what is there; return whether the header is whole. Raise OSError, EOFError, MalformedProxyHeader."""
        while wanted := self._reader.wanted:
            try:
                data = self.client.recv(wanted)
            except BlockingIOError:
                return False
            if not data:
                raise EOFError("the connection ended before it")
            self._reader.feed(data)
        return True

    def introduced(self) -> Source:
        """Return who the client is: the one that the header names, else the peer itself."""
        return self._reader.source() or self.source


class Dialling:
    """A client that waits for the isolate's side until `until` (monotonic seconds); `first` goes before its bytes."""

    __slots__ = ("client", "first", "source", "target", "until")

    def __init__(self, client: socket.socket, source: Source, first: bytes, *, until: float) -> None:
        self.client = client
        self.source = source
        self.first = first
        self.target: socket.socket | None = None
        self.until = until
