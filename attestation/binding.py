# SPDX-License-Identifier: MIT
"""What an isolate's evidence says about itself: its purpose and its policy, in `user_data` and PCR16."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

import cbor2

from .errors import PolicyMismatch
from .limits import MAX_FIELD, PCR_SIZE
from .panics import reraise_interrupt

PROTOCOL = "veracruz/1"
HASH_SIZE = 32  # bytes; SHA-256


class Purpose(StrEnum):
    """Why a document was made. A verifier demands one, and the nonce and public key that go with it.

    session: nonce and public key present, no body. receipt: body hash present, no nonce.
    recipient: public key (RSA, for KMS) present, no nonce, no body.
    """

    SESSION = "session"
    RECEIPT = "receipt"
    RECIPIENT = "recipient"


@dataclass(frozen=True, slots=True)
class Binding:
    """The content of `user_data`: CBOR `["veracruz/1", purpose, policy hash, body hash or null]` (SHA-256s)."""

    purpose: Purpose
    policy_hash: bytes
    body_hash: bytes | None

    def __post_init__(self) -> None:
        if len(self.policy_hash) != HASH_SIZE:
            raise ValueError("policy_hash is a SHA-256")
        if (self.body_hash is not None) != (self.purpose is Purpose.RECEIPT):
            raise ValueError("exactly a receipt has a body hash")
        if self.body_hash is not None and len(self.body_hash) != HASH_SIZE:
            raise ValueError("body_hash is a SHA-256")

    def encode(self) -> bytes:
        """Return the bytes of `user_data`, in the one encoding that `decode` accepts."""
        return cbor2.dumps([PROTOCOL, self.purpose.value, self.policy_hash, self.body_hash])

    @classmethod
    def decode(cls, raw: bytes) -> Binding:
        """Parse `user_data`; raise PolicyMismatch unless it is exactly what `encode` writes."""
        try:
            if len(raw) > MAX_FIELD:
                raise ValueError("too long")
            protocol, purpose, policy_hash, body_hash = cbor2.loads(raw)
            if protocol != PROTOCOL or not isinstance(policy_hash, bytes):
                raise ValueError("another protocol")
            if not (body_hash is None or isinstance(body_hash, bytes)):
                raise ValueError("body hash")
            binding = cls(Purpose(purpose), policy_hash, body_hash)
            canonical = binding.encode() == raw
        except BaseException as error:  # any failure of the decoder on hostile bytes is the same refusal
            reraise_interrupt(error)
            raise PolicyMismatch("user_data is no binding of this protocol", expected=PROTOCOL, actual=raw) from error
        if not canonical:
            raise PolicyMismatch("user_data is not in its one encoding", expected=binding.encode(), actual=raw)
        return binding


def policy_hash(policy: bytes) -> bytes:
    """Return the SHA-256 of a policy's exact bytes."""
    return hashlib.sha256(policy).digest()


def policy_pcr(digest: bytes) -> bytes:
    """Return PCR16 after its one extension with a policy hash: SHA384(48 zero bytes || SHA-256 of the policy)."""
    if len(digest) != HASH_SIZE:
        raise ValueError("a policy hash is 32 bytes")
    return hashlib.sha384(bytes(PCR_SIZE) + digest).digest()
