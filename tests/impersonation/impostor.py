# SPDX-License-Identifier: MIT
"""A hostile server that ends TLS with keys of its own, is as obliging as it can be, and keeps whatever it is given.

It asks for a client's certificate and takes every participant's (a policy is public), answers all requests as an
isolate would, and so would get the certificate, the requests and the files of a client that checks too late.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from attestation.endpoint import Endpoint
from attestation.policy import parse_policy
from tests.attestation.isolate_server import ServerKey

PATIENCE = 20.0  # seconds

Attest = Callable[[bytes, bytes], bytes]  # nonce and the impostor's SPKI to a document

ANONYMOUS_REQUEST = re.compile(rb"GET /v1/attestation\?nonce=([0-9a-f]{64}) HTTP/1\.1\r\nHost: isolate\r\n\r\n")


@dataclass
class Visit:
    """One connection, decrypted."""

    certificate: bytes | None = None  # the client's
    failure: str | None = None  # of the handshake
    reused: bool = False  # a resumed session
    received: bytearray = field(default_factory=bytearray)  # every application byte


class Impostor:
    """Serve on a TCP port of this machine until closed."""

    def __init__(
        self,
        folder: Path,
        policy: bytes,
        attest: Attest,
        *,
        key: ServerKey | None = None,
        tickets: int = 0,
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    ) -> None:
        self.key = key or ServerKey.new()
        self.visits: list[Visit] = []
        self._policy = policy
        self._attest = attest
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = min(version, ssl.TLSVersion.TLSv1_3)
        self._context.maximum_version = version
        self._context.verify_mode = ssl.CERT_OPTIONAL
        participants = parse_policy(policy).participants
        self._context.load_verify_locations(cadata=b"".join(party.certificate for party in participants))
        self._context.num_tickets = tickets
        self.key.load_into(self._context, folder)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    @property
    def endpoint(self) -> Endpoint:
        """Where it listens."""
        return Endpoint("127.0.0.1", self._listener.getsockname()[1])

    def __enter__(self) -> Impostor:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        self.settle()

    def settle(self) -> None:
        """Wait until every connection has ended."""
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            visit = Visit()
            self.visits.append(visit)
            thread = threading.Thread(target=self._serve, args=(sock, visit))
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket, visit: Visit) -> None:
        sock.settimeout(PATIENCE)
        with sock:
            try:
                tls = self._context.wrap_socket(sock, server_side=True)
            except OSError as error:
                visit.failure = getattr(error, "reason", None) or type(error).__name__
                return
            with tls, contextlib.suppress(OSError):
                visit.certificate = tls.getpeercert(binary_form=True)
                visit.reused = bool(tls.session_reused)
                self._converse(tls, visit)

    def _converse(self, tls: ssl.SSLSocket, visit: Visit) -> None:
        answered = 0  # bytes of what was received
        while data := tls.recv(65536):
            visit.received += data
            while (end := visit.received.find(b"\r\n\r\n", answered)) >= 0:
                head = bytes(visit.received[answered:end])
                length = re.search(rb"(?i)content-length: (\d+)", head)
                rest = end + 4 + (int(length[1]) if length else 0)
                if len(visit.received) < rest:
                    break
                body = bytes(visit.received[end + 4 : rest])
                answered = rest
                tls.sendall(self._answer(head, body))

    def _answer(self, head: bytes, body: bytes) -> bytes:
        method, target, _ = head.partition(b"\r\n")[0].split(b" ")
        if target.startswith(b"/v1/attestation?nonce="):
            return _reply(200, self._attest(bytes.fromhex(target[-64:].decode()), self.key.spki))
        if method == b"PUT":
            path = target.removeprefix(b"/v1/files").decode()
            stored = {"path": path, "size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
            return _reply(201, json.dumps(stored).encode())
        return _reply(200, self._policy)


def _reply(status: int, body: bytes) -> bytes:
    return f"HTTP/1.1 {status} Said\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
