# SPDX-License-Identifier: MIT
"""The runtime's side of the attestor: typed calls over the one socket, one at a time."""

from __future__ import annotations

import socket
import threading
from typing import Any

import cbor2

from .attestor import MAX_ANSWER, READY, REFUSED_PCR
from .frames import recv_frame, send_frame
from .nsm_port import EMULATOR_TIMEOUT

ANSWER_TIMEOUT = 5 * EMULATOR_TIMEOUT  # seconds; one typed request is up to four of the NSM's


class AttestorGone(Exception):
    """The attestor or its NSM failed. It never comes back: the isolate has to stop."""


class PolicyRefused(AttestorGone):
    """PCR16 was not free for this policy."""


class AttestorClient:
    """What the runtime may ask of the NSM."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._sock.settimeout(ANSWER_TIMEOUT)

    def wait_ready(self) -> bool:
        """Wait until the attestor has opened the NSM; return whether it is the emulator."""
        return bool(self._receive())

    def _receive(self) -> Any:
        try:
            status, value = cbor2.loads(recv_frame(self._sock, MAX_ANSWER))
        except (OSError, ValueError, TypeError, cbor2.CBORError) as error:
            raise AttestorGone from error
        if status == REFUSED_PCR:
            raise PolicyRefused
        if status != READY:
            raise AttestorGone
        return value

    def _ask(self, *request: object) -> Any:
        with self._lock:
            try:
                send_frame(self._sock, cbor2.dumps(list(request)))
                return self._receive()
            except AttestorGone:
                self._sock.close()  # a late answer must never be taken for another question's
                raise
            except OSError as error:
                self._sock.close()
                raise AttestorGone from error

    def measurements(self) -> tuple[bytes, bytes, bytes]:
        """Return PCR0, PCR1 and PCR2."""
        pcr0, pcr1, pcr2 = self._ask("measurements")
        return pcr0, pcr1, pcr2

    def take_policy(self, policy: bytes) -> bytes:
        """Bind PCR16 to the policy for good; return its hash; raise PolicyRefused."""
        digest: bytes = self._ask("take_policy", policy)
        return digest

    def set_key(self, public_key: bytes) -> None:
        """Name the TLS key (DER SPKI) of all evidence."""
        self._ask("set_key", public_key)

    def session(self, nonce: bytes) -> bytes:
        """Return evidence for a nonce of 32 bytes."""
        document: bytes = self._ask("session", nonce)
        return document

    def receipt(self, body_hash: bytes) -> bytes:
        """Return a document over a receipt's hash."""
        document: bytes = self._ask("receipt", body_hash)
        return document

    def time(self) -> int:
        """Return the NSM's timestamp in milliseconds since 1970."""
        stamp: int = self._ask("time")
        return stamp

    def random(self) -> bytes:
        """Return random bytes of the NSM's."""
        data: bytes = self._ask("random")
        return data
