# SPDX-License-Identifier: MIT
"""HTTP/1.1 over one TLS connection, the client's side: every answer has a limit, and everything a deadline."""

from __future__ import annotations

import contextlib
import http.client
import io
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from .errors import CertificateRefused, MalformedAnswer, Unreachable, VeracruzError
from .refusals import MAX_REFUSAL, parse_refusal

ANSWER_TIMEOUT = 30.0  # seconds for a request's head, and for an answer from its first byte to its last
SLOWEST = 16 * 1024  # bytes a second: what a body adds to these seconds
MAX_ANSWER = 4 * 1024 * 1024  # bytes of an answer that is read whole: a directory of some ten thousand names
MAX_BODY = 1 << 40  # bytes of one that is streamed to a file, where the caller knows no better
CHUNK = 64 * 1024  # bytes

_CUT = (EOFError, BrokenPipeError, ConnectionError, ssl.SSLError, http.client.RemoteDisconnected)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that was read whole."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body: `size` bytes in all, in pieces."""

    chunks: Iterable[bytes]
    size: int


class Connection:
    """One request at a time; after anything unforeseen it is closed, and says so by `usable`.

    `identified` tells that a certificate of ours was offered. A server that does not take it has let the client finish
    its side of the handshake before (RFC 8446 4.4): what is seen is an alert, EPIPE or a bare end before any answer.
    """

    def __init__(self, tls: ssl.SSLSocket, *, peer: str, identified: bool) -> None:
        self._tls = tls
        self._peer = peer
        self._identified = identified
        self._answered = False
        self.usable = True

    @property
    def certificate(self) -> bytes:
        """The server's certificate (DER)."""
        return self._tls.getpeercert(binary_form=True) or b""

    def request(
        self,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        limit: int = MAX_ANSWER,
        timeout: float = ANSWER_TIMEOUT,
    ) -> Answer:
        """Send a request and return its whole answer; raise ApiRefusal where the isolate refuses it."""
        with self.exchange(method, target, headers=headers, body=body, limit=limit, timeout=timeout) as incoming:
            return Answer(incoming.status, incoming.headers, b"".join(incoming))

    @contextlib.contextmanager
    def exchange(
        self,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        limit: int = MAX_BODY,
        timeout: float = ANSWER_TIMEOUT,
    ) -> Iterator[Incoming]:
        """Send a request and give its answer, of at most `limit` bytes, to be read as it comes."""
        if not self.usable:
            raise Unreachable(f"the connection to {self._peer} is closed")
        self.usable = False
        try:
            whole = self._send(method, target, headers or {}, body, timeout=timeout)
            with self._await(method, limit=limit, timeout=timeout) as incoming:
                if incoming.status >= 300:
                    refusal = parse_refusal(incoming.status, b"".join(incoming))
                    self.usable = whole and incoming.reusable
                    raise refusal
                yield incoming
                self.usable = whole and incoming.reusable
        finally:
            if not self.usable:
                self.close()

    def close(self) -> None:
        """Close the connection."""
        self.usable = False
        self._tls.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, method: str, target: str, headers: Mapping[str, str], body: Body | None, *, timeout: float) -> bool:
        """Send a request; return whether all of it went out."""
        lines = [
            f"{method} {target} HTTP/1.1",
            "Host: isolate",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        if body is not None:
            lines.append(f"Content-Length: {body.size}")
        head = "\r\n".join([*lines, "", ""]).encode("ascii")
        deadline = time.monotonic() + timeout
        with self._errors("took the request"):
            self._write(head, deadline)
        if body is None:
            return True
        deadline += body.size / SLOWEST
        for chunk in body.chunks:
            try:
                self._write(chunk, deadline)
            except TimeoutError as error:
                raise Unreachable(f"{self._peer} takes the data too slowly") from error
            except OSError:
                return False  # it may have said why before it stopped reading
        return True

    @contextlib.contextmanager
    def _await(self, method: str, *, limit: int, timeout: float) -> Iterator[Incoming]:
        source = _Source(self._tls, time.monotonic() + timeout)
        response = http.client.HTTPResponse(source, method=method)  # type: ignore[arg-type]  # it calls makefile alone
        with contextlib.closing(response):
            with self._errors("answered"):
                response.begin()
            self._answered = True
            incoming = Incoming(response, source, method=method, peer=self._peer)
            most = MAX_REFUSAL if incoming.status >= 300 else limit
            if incoming.length > most:
                raise MalformedAnswer(
                    "an answer is too large", expected=f"at most {most} bytes", actual=incoming.length
                )
            yield incoming

    def _write(self, data: bytes, deadline: float) -> None:
        self._tls.settimeout(_left(deadline))
        self._tls.sendall(data)

    @contextlib.contextmanager
    def _errors(self, did: str) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            raise Unreachable(f"{self._peer} has not {did} in time") from error
        except _CUT as error:
            raise self._end(error) from error
        except http.client.HTTPException as error:
            raise MalformedAnswer(f"{self._peer} does not answer in HTTP", actual=error) from error
        except (OSError, ValueError) as error:
            raise Unreachable(f"the connection to {self._peer} failed", actual=error) from error

    def _end(self, error: Exception) -> VeracruzError:
        if _is_damage(error):
            return Unreachable(
                f"what came from {self._peer} was changed on its way", actual=getattr(error, "reason", None)
            )
        if self._identified and not self._answered:
            return CertificateRefused(
                f"{self._peer} ended the connection when it saw the certificate",
                expected="a certificate of the policy that this isolate enforces",
                actual=getattr(error, "reason", None) or type(error).__name__,
                hint="is --identity the one that the policy names? a host that cuts connections looks the same",
            )
        return Unreachable(f"{self._peer} cut the connection", actual=getattr(error, "reason", None) or error)


class Incoming:
    """An answer whose head has come; iterating over it reads its body, exactly as long as the head said."""

    def __init__(self, response: http.client.HTTPResponse, source: _Source, *, method: str, peer: str) -> None:
        self._response = response
        self._source = source
        self._peer = peer
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        length = response.getheader("Content-Length", "")  # two of them are joined by a comma
        if response.version != 11 or response.getheader("Transfer-Encoding") is not None:
            raise MalformedAnswer(f"{peer} answers in another HTTP than the API's", expected="HTTP/1.1, Content-Length")
        if response.status == 204 and not length:
            length = "0"
        if not (length.isascii() and length.isdigit() and len(length) < 16):
            raise MalformedAnswer(f"{peer} does not tell an answer's length", expected="Content-Length", actual=length)
        self.length = int(length)
        self._left = 0 if method == "HEAD" or response.status == 204 else self.length

    @property
    def reusable(self) -> bool:
        """Whether the connection takes another request after this answer."""
        return self._left == 0 and not self._response.will_close

    def __iter__(self) -> Iterator[bytes]:
        self._source.deadline += self._left / SLOWEST
        while self._left:
            try:
                chunk = self._response.read(min(CHUNK, self._left))
            except (OSError, ValueError, http.client.HTTPException) as error:
                raise Unreachable(f"{self._peer} broke off in the middle of an answer", actual=error) from error
            if not chunk:
                raise Unreachable(
                    f"{self._peer} broke off in the middle of an answer", actual=f"{self._left} bytes are missing"
                )
            self._left -= len(chunk)
            yield chunk


class _Source(io.RawIOBase):
    """A TLS connection as http.client reads it: each read waits no longer than to the deadline of them all."""

    def __init__(self, tls: ssl.SSLSocket, deadline: float) -> None:
        self._tls = tls
        self.deadline = deadline

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return the file that HTTPResponse asks its socket for."""
        return io.BufferedReader(self, CHUNK)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._tls.settimeout(_left(self.deadline))
        return self._tls.recv_into(buffer)


def _is_damage(error: Exception) -> bool:
    """Return whether TLS refused what was received: neither the server's alert nor an end, so no refusal of its."""
    if not isinstance(error, ssl.SSLError) or isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return False
    reason = str(error.reason or "")  # OpenSSL's names of received alerts are TLSV1_ALERT_UNKNOWN_CA and the like
    return bool(reason) and "ALERT" not in reason and reason != "PROTOCOL_IS_SHUTDOWN"


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("deadline")
    return left
