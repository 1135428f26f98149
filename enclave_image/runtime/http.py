# SPDX-License-Identifier: MIT
"""HTTP/1.1 over one connection with a deadline for everything: framing by h11, bytes by a blocking TLS socket.

Threads and not asyncio: what a request waits for (the attestor, a job, the store) blocks, connections are few and
limited, and importing asyncio under TCG costs as much as everything else that the server needs together.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import h11

from .errors import ApiError, BrokenHttp, Hangup, MalformedRequest, TooLarge

MAX_HEAD = 16 * 1024  # bytes of request line and headers
MAX_TARGET = 4096  # bytes; a path has 1,024 at most, and every one may be escaped
MAX_JSON = 64 * 1024  # bytes of a JSON body
CHUNK = 64 * 1024  # bytes read or written at once
IDLE_TIMEOUT = 60.0  # seconds between two requests of a connection
HEAD_TIMEOUT = 10.0  # seconds for one request's head, from its first byte
BODY_TIMEOUT = 30.0  # seconds for a body, and one more for each SLOWEST bytes
SLOWEST = 64 * 1024  # bytes a second
DRAIN_TIMEOUT = 10.0  # seconds for the rest of a body that was refused

JSON = "application/json"
CBOR = "application/cbor"
OCTETS = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Response:
    """What a request is answered with; `length` is told for a body that is streamed or (HEAD) not sent."""

    status: int
    content_type: str = JSON
    body: Iterable[bytes] = ()
    length: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    close: bool = False

    @classmethod
    def json(cls, status: int, value: object) -> Response:
        """Answer with a JSON object."""
        return cls.whole(status, json.dumps(value).encode(), JSON)

    @classmethod
    def whole(cls, status: int, data: bytes, content_type: str, *, close: bool = False) -> Response:
        """Answer with bytes that are at hand."""
        return cls(status, content_type, (data,), len(data), close=close)

    @classmethod
    def refusal(cls, error: ApiError, *, close: bool = False) -> Response:
        """Answer with an error's one form."""
        return cls.whole(error.status, error.body(), JSON, close=close)


@dataclass(slots=True)
class Request:
    """One request: its head, and a body that is read by iterating over it, once."""

    method: str
    target: str
    headers: dict[str, str]
    connection: Connection = field(repr=False)

    @property
    def length(self) -> int:
        """Content-Length; raise MalformedRequest where there is none."""
        text = self.headers.get("content-length", "")
        if not (text.isascii() and text.isdigit()) or len(text) > 15:
            raise MalformedRequest
        return int(text)

    def body(self, limit: int) -> Iterator[bytes]:
        """Yield the body; raise TooLarge beyond `limit` bytes, Hangup where it does not come in time."""
        if self.length > limit:
            raise TooLarge
        return self.connection.read_body(self.length)

    def json(self) -> Any:
        """Return the body as JSON; raise MalformedRequest."""
        raw = b"".join(self.body(MAX_JSON))
        try:
            return json.loads(raw.decode("utf-8"), object_pairs_hook=_distinct)
        except (ValueError, RecursionError) as error:
            raise MalformedRequest from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate key")
    return members


class Connection:
    """One TLS connection as a sequence of requests and answers."""

    def __init__(self, tls: ssl.SSLSocket, *, idle: float = IDLE_TIMEOUT) -> None:
        self._tls = tls
        self._idle = idle
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)

    def next_request(self) -> Request | None:
        """Return the next request's head, None where the peer is done; raise Hangup or BrokenHttp."""
        deadline = time.monotonic() + self._idle
        begun = False
        while True:
            event = self._event()
            if isinstance(event, h11.Request):
                return self._head(event)
            if event is not h11.NEED_DATA:
                return None
            data = self._receive(deadline)
            if not data and not begun:
                return None
            if not begun:
                begun = True
                deadline = time.monotonic() + HEAD_TIMEOUT
            self._feed(data)

    def _head(self, event: h11.Request) -> Request:
        if event.http_version != b"1.1" or len(event.target) > MAX_TARGET:
            raise BrokenHttp
        headers: dict[str, str] = {}
        for name, value in event.headers:
            key = name.decode("latin-1")
            if key in headers:
                raise BrokenHttp
            headers[key] = value.decode("latin-1")
        if "transfer-encoding" in headers:  # RFC 9112 6.1: it would overrule the length that limits are checked by
            raise BrokenHttp
        try:
            return Request(event.method.decode("ascii"), event.target.decode("ascii"), headers, self)
        except UnicodeDecodeError as error:
            raise BrokenHttp from error

    def read_body(self, length: int) -> Iterator[bytes]:
        """Yield the body's bytes as they come."""
        deadline = time.monotonic() + BODY_TIMEOUT + length / SLOWEST
        if self._h11.they_are_waiting_for_100_continue:
            self._send(self._h11.send(h11.InformationalResponse(status_code=100, headers=[])), deadline)
        while True:
            event = self._event()
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return
            elif event is h11.NEED_DATA:
                self._feed(self._receive(deadline))
            else:
                raise Hangup

    def answer(self, response: Response, *, head_only: bool = False) -> None:
        """Write an answer; `head_only` to HEAD."""
        deadline = time.monotonic() + BODY_TIMEOUT + response.length / SLOWEST
        headers = [("Content-Type", response.content_type), *response.headers]
        if response.status != 204:
            headers.append(("Content-Length", str(response.length)))
        if response.close:
            headers.append(("Connection", "close"))
        try:
            self._send(self._h11.send(h11.Response(status_code=response.status, headers=headers)), deadline)
            for part in () if head_only else response.body:
                self._send(self._h11.send(h11.Data(data=part)), deadline)
            self._send(self._h11.send(h11.EndOfMessage()), deadline)
        except h11.LocalProtocolError as error:
            raise Hangup from error

    def finish(self, limit: int) -> bool:
        """Read away the rest of a body that was refused, at most `limit` bytes, so that its sender reads the answer.

        Return whether the connection can take another request.
        """
        if self._h11.they_are_waiting_for_100_continue:
            return False
        deadline = time.monotonic() + DRAIN_TIMEOUT
        left = limit
        try:
            while left >= 0 and self._h11.their_state is h11.SEND_BODY:
                event = self._event()
                if event is h11.NEED_DATA:
                    self._feed(self._receive(deadline))
                elif isinstance(event, h11.Data):
                    left -= len(event.data)
        except BrokenHttp:  # the answer is out already
            return False
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
            return True
        return False

    def _event(self) -> Any:
        try:
            return self._h11.next_event()
        except h11.RemoteProtocolError as error:
            raise BrokenHttp from error

    def _feed(self, data: bytes) -> None:
        try:
            self._h11.receive_data(data)
        except h11.RemoteProtocolError as error:
            raise BrokenHttp from error

    def _receive(self, deadline: float) -> bytes:
        data: bytes = self._within(deadline, lambda: self._tls.recv(CHUNK))
        return data

    def _send(self, data: bytes | None, deadline: float) -> None:
        view = memoryview(data or b"")
        while view:  # not sendall, which gives each TLS record the whole of the time
            sent: int = self._within(deadline, lambda rest=view: self._tls.send(rest))
            view = view[sent:]

    def _within(self, deadline: float, action: Any) -> Any:
        left = deadline - time.monotonic()
        if left <= 0:
            raise Hangup
        try:
            self._tls.settimeout(left)
            return action()
        except (OSError, ValueError) as error:  # timeouts and SSLError are OSErrors; a closed socket gives ValueError
            raise Hangup from error
