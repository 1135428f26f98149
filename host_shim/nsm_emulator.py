# SPDX-License-Identifier: MIT
"""A Nitro Secure Module without the hardware: every request of the real one, documents under a development root.

Semantics: aws-nitro-enclaves-nsm-api (src/api/mod.rs, nsm-check), and QEMU's hw/virtio/virtio-nsm.c for what the former
leaves open. Documents have the bytes of AWS's from December 2025 on. pycose makes the signature: an implementation that
is independent of the verifier's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import cbor2

from attestation import nsm
from attestation.errors import MalformedNsm, UsageError, VeracruzError
from attestation.limits import MAX_FIELD, NSM_REQUEST_MAX, NSM_RESPONSE_MAX, PCR_COUNT
from attestation.measurements import (
    ZERO_PCR,
    Measurements,
    extend,
    instance_pcr,
    role_pcr,
    signer_pcr,
)

from .board import Board
from .dev_pki import Chain, Clock, Leaf

VERSION = (1, 0, 0)
DIGEST = "SHA384"
RANDOM_SIZE = 256  # bytes; virtio-nsm.c NSM_RND_BUF_SIZE
LOCKED_AT_BOOT = range(16)  # nsm-check: PCR0..15
INSTANCE_ID = re.compile(r"i-(?:[0-9a-f]{8}|[0-9a-f]{17})")  # EC2's, of both generations
INDEFINITE_MAP, BREAK = b"\xbf", b"\xff"  # RFC 8949 3.2.2


@dataclass(frozen=True, slots=True)
class Identity:
    """Of which instance the isolate claims to be, as the registers and the module id tell it."""

    instance_id: str  # i- and 17 hex digits
    enclave_id: str  # enc and 16 hex digits
    role: str | None = None  # ARN of the parent's IAM role; PCR3

    @classmethod
    def random(cls, role: str | None = None, instance_id: str | None = None) -> Identity:
        """Return the identity of a new enclave of this instance, or of a new one; raises UsageError."""
        if instance_id is None:
            instance_id = f"i-{os.urandom(9).hex()[:17]}"
        elif not INSTANCE_ID.fullmatch(instance_id):
            raise UsageError("no instance id", expected="i- and 8 or 17 hex digits", actual=instance_id)
        return cls(instance_id, f"enc{os.urandom(8).hex()}", role)

    @property
    def module_id(self) -> str:
        """What documents name as the module."""
        return f"{self.instance_id}-{self.enclave_id}"


@dataclass(slots=True)
class _Register:
    value: bytes = ZERO_PCR
    lock: bool = False


@dataclass(frozen=True, slots=True)
class BootState:
    """What the registers hold when the guest starts.

    Without measurements the isolate is in debug mode: PCR0, PCR1, PCR2 and PCR8 stay zero, PCR3 and PCR4 do not.
    """

    measurements: Measurements | None
    identity: Identity
    signer: bytes | None = field(default=None, repr=False)  # DER of the certificate that signed the image

    def registers(self) -> list[bytes]:
        """Return the 32 values."""
        values = [ZERO_PCR] * PCR_COUNT
        if self.measurements is not None:
            values[0:3] = self.measurements.registers
            if self.signer is not None:
                values[8] = signer_pcr(self.signer)
        if self.identity.role is not None:
            values[3] = role_pcr(self.identity.role)
        values[4] = instance_pcr(self.identity.instance_id)
        return values


@dataclass(slots=True)
class ModuleCounters:
    """What one boot's module was asked, published for others to read (host_shim.board)."""

    requests: int = 0
    documents: int = 0  # attestation documents that were given
    refused: int = 0  # answered by an error


class NsmEmulator:
    """One boot's module. `answer` maps the bytes of a request to those of its answer, and keeps the registers."""

    def __init__(
        self, boot: BootState, chain: Chain, *, clock: Clock, indefinite: bool = True, board: Board | None = None
    ) -> None:
        self._registers = [_Register(value, index in LOCKED_AT_BOOT) for index, value in enumerate(boot.registers())]
        self._module_id = boot.identity.module_id
        self._chain = chain
        self._clock = clock
        self._indefinite = indefinite  # False: the payload's map as AWS wrote it until April 2025
        self._last = 0  # milliseconds
        self._board = board
        self._counters = ModuleCounters()

    def warm_up(self) -> None:
        """Do now what the first document would wait for: load the signer, issue its certificates."""
        sign_document(b"", self._chain.leaf(self._clock()))

    def answer(self, request: bytes) -> bytes:
        """Answer one request; nothing in it raises."""
        if len(request) > NSM_REQUEST_MAX:
            response: nsm.Response = nsm.Refused(nsm.ErrorCode.INPUT_TOO_LARGE)
        else:
            try:
                response = self._run(nsm.decode_request(request))
            except MalformedNsm:
                response = nsm.Refused(nsm.ErrorCode.INVALID_OPERATION)  # as virtio-nsm.c
            except (VeracruzError, ValueError, OSError):  # the signer's: the guest is not to blame
                response = nsm.Refused(nsm.ErrorCode.INTERNAL_ERROR)
        raw = nsm.encode_response(response)
        if len(raw) > NSM_RESPONSE_MAX:
            response = nsm.Refused(nsm.ErrorCode.BUFFER_TOO_SMALL)
            raw = nsm.encode_response(response)
        self._count(response)
        return raw

    def _count(self, response: nsm.Response) -> None:
        self._counters.requests += 1
        self._counters.documents += isinstance(response, nsm.Document)
        self._counters.refused += isinstance(response, nsm.Refused)
        if self._board is not None:
            self._board.publish(self._counters)

    def _run(self, request: nsm.Request) -> nsm.Response:
        match request:
            case nsm.DescribeNsm():
                return nsm.NsmDescription(VERSION, self._module_id, PCR_COUNT, self._locked(), DIGEST)
            case nsm.GetRandom():
                return nsm.Random(os.urandom(RANDOM_SIZE))
            case nsm.DescribePcr(index):
                return self._with(index, lambda register: nsm.PcrState(register.lock, register.value))
            case nsm.ExtendPcr(index, data):
                return self._with(index, lambda register: self._extend(register, data))
            case nsm.LockPcr(index):
                return self._with(index, self._lock)
            case nsm.LockPcrs(count):
                if count > PCR_COUNT:
                    return nsm.Refused(nsm.ErrorCode.INVALID_INDEX)
                for register in self._registers[:count]:
                    register.lock = True
                return nsm.RangeLocked()
            case nsm.Attest(user_data, nonce, public_key):
                if any(value is not None and len(value) > MAX_FIELD for value in (user_data, nonce, public_key)):
                    return nsm.Refused(nsm.ErrorCode.INPUT_TOO_LARGE)
                return nsm.Document(self._attest(request))

    def _with(self, index: int, run: Callable[[_Register], nsm.Response]) -> nsm.Response:
        if index >= PCR_COUNT:
            return nsm.Refused(nsm.ErrorCode.INVALID_INDEX)
        return run(self._registers[index])

    @staticmethod
    def _extend(register: _Register, data: bytes) -> nsm.Response:
        if register.lock:
            return nsm.Refused(nsm.ErrorCode.READ_ONLY_INDEX)
        register.value = extend(register.value, data)
        return nsm.Extended(register.value)

    @staticmethod
    def _lock(register: _Register) -> nsm.Response:
        if register.lock:
            return nsm.Refused(nsm.ErrorCode.READ_ONLY_INDEX)
        register.lock = True
        return nsm.Locked()

    def _locked(self) -> tuple[int, ...]:
        return tuple(index for index, register in enumerate(self._registers) if register.lock)

    def _attest(self, request: nsm.Attest) -> bytes:
        now = self._clock()
        # The host's clock may be set back while the isolate runs; a module's never is.
        self._last = max(self._last, int(now.timestamp() * 1000))
        leaf = self._chain.leaf(datetime.fromtimestamp(self._last / 1000, now.tzinfo))
        return sign_document(self._payload(request, leaf), leaf)

    def _payload(self, request: nsm.Attest, leaf: Leaf) -> bytes:
        fields = {  # AWS's order
            "module_id": self._module_id,
            "digest": DIGEST,
            "timestamp": self._last,
            "pcrs": {index: self._registers[index].value for index in self._locked()},
            "certificate": leaf.certificate,
            "cabundle": list(leaf.cabundle),
            "public_key": request.public_key,
            "user_data": request.user_data,
            "nonce": request.nonce,
        }
        if not self._indefinite:
            return cbor2.dumps(fields)
        entries = b"".join(cbor2.dumps(name) + cbor2.dumps(value) for name, value in fields.items())
        return INDEFINITE_MAP + entries + BREAK


def sign_document(payload: bytes, leaf: Leaf) -> bytes:
    """Return an untagged COSE_Sign1 (RFC 9052 4.2) over a payload, ES384 by the leaf."""
    from pycose.headers import Algorithm  # 0.15 s to load: `warm_up` does it while the guest boots
    from pycose.keys import EC2Key
    from pycose.messages import Sign1Message

    numbers = leaf.key.private_numbers()
    point = numbers.public_numbers
    key = EC2Key(
        crv="P_384",
        x=point.x.to_bytes(48, "big"),
        y=point.y.to_bytes(48, "big"),
        d=numbers.private_value.to_bytes(48, "big"),
    )
    message = Sign1Message(phdr={Algorithm: "ES384"}, payload=payload, key=key)
    document: bytes = message.encode(tag=False)
    return document
