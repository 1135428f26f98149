# SPDX-License-Identifier: MIT
"""The process that owns the NSM: it fills `user_data` and `public_key` itself, from typed requests alone.

It is forked before any other process and holds the device (or the emulator's one connection) for the isolate's life.
What can be asked, and in which order:

    measurements time random            at any time
    take_policy                         once; only if PCR16 reads zero and unlocked
    set_key                             once, after take_policy
    session receipt                     after set_key

Anything else (a second policy, a malformed message, an NSM that fails) ends it, and the isolate with it.
"""

from __future__ import annotations

import os
import socket
from typing import Any

import cbor2

from attestation import nsm
from attestation.binding import HASH_SIZE, Binding, Purpose, policy_hash, policy_pcr
from attestation.errors import VeracruzError
from attestation.limits import MAX_DOCUMENT, MAX_FIELD, MAX_POLICY, NONCE_SIZE, PCR_SIZE, POLICY_PCR

from .frames import BrokenFrame, recv_frame, send_frame
from .nsm_port import Nsm, open_nsm
from .process_tools import become_child
from .transport import Transport

MAX_REQUEST = MAX_POLICY + 1024  # bytes; take_policy carries the policy
MAX_ANSWER = MAX_DOCUMENT + 1024  # bytes
MEASUREMENT_PCRS = (0, 1, 2)
RANDOM_SIZE = 256  # bytes; what one GetRandom gives on known modules

READY, FAILED, REFUSED_PCR = "ready", "failed", "policy-pcr"


class PolicyRegisterTaken(Exception):
    """PCR16 is not zero and unlocked, or does not read back as it was set."""


class Attestor:
    """The state behind the typed requests; one object in one process."""

    def __init__(self, module: Nsm) -> None:
        self._nsm = module
        self._policy_hash: bytes | None = None
        self._public_key: bytes | None = None

    def measurements(self) -> list[bytes]:
        """Return the values of PCR0, PCR1 and PCR2."""
        return [self._register(index).data for index in MEASUREMENT_PCRS]

    def take_policy(self, policy: bytes) -> bytes:
        """Bind PCR16 to exactly these bytes, lock it, read it back; return the policy's hash."""
        if self._policy_hash is not None or not 0 < len(policy) <= MAX_POLICY:
            raise PolicyRegisterTaken
        before = self._register(POLICY_PCR)
        if before.lock or before.data != bytes(PCR_SIZE):
            raise PolicyRegisterTaken
        digest = policy_hash(policy)
        self._nsm.ask(nsm.ExtendPcr(POLICY_PCR, digest))
        self._nsm.ask(nsm.LockPcr(POLICY_PCR))
        after = self._register(POLICY_PCR)
        if not after.lock or after.data != policy_pcr(digest):
            raise PolicyRegisterTaken
        self._policy_hash = digest
        return digest

    def set_key(self, public_key: bytes) -> None:
        """Take the DER SPKI of the TLS key that every later document names."""
        if self._policy_hash is None or self._public_key is not None or not 0 < len(public_key) <= MAX_FIELD:
            raise ValueError("out of order")
        self._public_key = public_key

    def session(self, nonce: bytes) -> bytes:
        """Return evidence for one participant's nonce."""
        if self._policy_hash is None or self._public_key is None or len(nonce) != NONCE_SIZE:
            raise ValueError("out of order")
        user_data = Binding(Purpose.SESSION, self._policy_hash, None).encode()
        return self._document(nsm.Attest(user_data, nonce, self._public_key))

    def receipt(self, body_hash: bytes) -> bytes:
        """Return a document over the SHA-256 of a receipt's body."""
        if self._policy_hash is None or self._public_key is None or len(body_hash) != HASH_SIZE:
            raise ValueError("out of order")
        user_data = Binding(Purpose.RECEIPT, self._policy_hash, body_hash).encode()
        return self._document(nsm.Attest(user_data, None, self._public_key))

    def time(self) -> int:
        """Return the NSM's timestamp in milliseconds; the document that carries it goes no further."""
        _, _, payload, _ = cbor2.loads(self._document(nsm.Attest()))
        timestamp = cbor2.loads(payload)["timestamp"]
        if type(timestamp) is not int or timestamp <= 0:
            raise ValueError("no timestamp")
        return timestamp

    def random(self) -> bytes:
        """Return the NSM's random bytes."""
        answer = self._nsm.ask(nsm.GetRandom())
        if not isinstance(answer, nsm.Random):
            raise ValueError("wrong answer")
        return answer.random[:RANDOM_SIZE]

    def _register(self, index: int) -> nsm.PcrState:
        answer = self._nsm.ask(nsm.DescribePcr(index))
        if not isinstance(answer, nsm.PcrState):
            raise ValueError("wrong answer")
        return answer

    def _document(self, request: nsm.Attest) -> bytes:
        answer = self._nsm.ask(request)
        if not isinstance(answer, nsm.Document) or len(answer.document) > MAX_DOCUMENT:
            raise ValueError("wrong answer")
        return answer.document


def answer_request(attestor: Attestor, message: bytes) -> Any:
    """Run one request; raise for everything that is not exactly one of the typed ones."""
    match cbor2.loads(message):
        case ["measurements"]:
            return attestor.measurements()
        case ["take_policy", bytes(policy)]:
            return attestor.take_policy(policy)
        case ["set_key", bytes(public_key)]:
            return attestor.set_key(public_key)
        case ["session", bytes(nonce)]:
            return attestor.session(nonce)
        case ["receipt", bytes(body_hash)]:
            return attestor.receipt(body_hash)
        case ["time"]:
            return attestor.time()
        case ["random"]:
            return attestor.random()
    raise ValueError("unknown request")


def serve(sock: socket.socket, transport: Transport, device: str | None) -> None:
    """Open the NSM, then answer until the runtime goes away or something is not as it must be."""
    try:
        module = open_nsm(transport, device)
        attestor = Attestor(module)
        attestor.measurements()  # proves that it answers
        send_frame(sock, cbor2.dumps([READY, module.emulated]))
        while True:
            send_frame(sock, cbor2.dumps([READY, answer_request(attestor, recv_frame(sock, MAX_REQUEST))]))
    except PolicyRegisterTaken:
        send_frame(sock, cbor2.dumps([REFUSED_PCR, None]))
    except BrokenFrame:
        return  # the runtime ended
    except (VeracruzError, OSError, ValueError, TypeError, KeyError, cbor2.CBORError):
        send_frame(sock, cbor2.dumps([FAILED, None]))


def start_attestor(transport: Transport, device: str | None) -> socket.socket:
    """Fork the attestor; return the runtime's end of its one socket."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        try:
            become_child(keep=(theirs.fileno(),))
            serve(theirs, transport, device)
        finally:
            os._exit(0)
    theirs.close()
    return ours
