# SPDX-License-Identifier: MIT
"""COSE_Sign1 (RFC 9052 4.2): read it strictly, check its ECDSA signature."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from . import cbor
from .errors import BadSignature, MalformedEvidence, MalformedInput, UnsignedEvidence
from .limits import MAX_DOCUMENT
from .panics import reraise_interrupt

TAG_SIGN1 = b"\xd2"  # tag 18 in its shortest form; allowed by AWS, never seen
HEADER_ALGORITHM = 1  # RFC 9052 3.1
UNSIGNED_ALGORITHM = -1  # what QEMU's nitro-enclave machine writes, with a signature of zeros


class Algorithm(IntEnum):
    """ECDSA, each with its one curve (RFC 9053 2.1; the curve is ours to demand, the RFC leaves it open)."""

    ES256 = -7
    ES384 = -35
    ES512 = -36

    @property
    def curve(self) -> ec.EllipticCurve:
        """The curve that a key must have."""
        return _CURVES[self]

    @property
    def hash(self) -> hashes.HashAlgorithm:
        """The hash of the Sig_structure."""
        return _HASHES[self]

    @property
    def coordinate_size(self) -> int:
        """Bytes of r and of s in the signature."""
        return (self.curve.key_size + 7) // 8


_ES384_HEADER = bytes.fromhex("a1013822")  # {1: -35}: the one encoding of what every real document has
_BY_NUMBER = {algorithm.value: algorithm for algorithm in Algorithm}
_CURVES: dict[Algorithm, ec.EllipticCurve] = {
    Algorithm.ES256: ec.SECP256R1(),
    Algorithm.ES384: ec.SECP384R1(),
    Algorithm.ES512: ec.SECP521R1(),
}
_HASHES: dict[Algorithm, hashes.HashAlgorithm] = {
    Algorithm.ES256: hashes.SHA256(),
    Algorithm.ES384: hashes.SHA384(),
    Algorithm.ES512: hashes.SHA512(),
}
_ECDSA = {algorithm: ec.ECDSA(hash_algorithm) for algorithm, hash_algorithm in _HASHES.items()}
_CONTEXT = b"\x84\x6aSignature1"  # how a Sig_structure begins: an array of four, the first a text
_NO_DATA = cbor.encode_bytes(b"")  # external data


@dataclass(frozen=True, slots=True)
class Sign1:
    """The four parts of a COSE_Sign1, as received; `algorithm` is None where QEMU marks a document as unsigned."""

    protected: bytes
    unprotected: dict[cbor.Value, cbor.Value]
    payload: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    algorithm: Algorithm | None

    @property
    def to_be_signed(self) -> bytes:
        """The Sig_structure over the received bytes (RFC 9052 4.4), without external data."""
        return _CONTEXT + cbor.encode_bytes(self.protected) + _NO_DATA + cbor.encode_bytes(self.payload)

    def verify(self, key: ec.EllipticCurvePublicKey) -> None:
        """Check the signature; raise UnsignedEvidence or BadSignature.

        Both (r, s) and (r, n - s) are signatures: half of the real documents have the larger s. So a signature's bytes
        identify nothing.
        """
        if self.algorithm is None:
            raise UnsignedEvidence(
                "the document is not signed",
                expected="ES384",
                actual="no signature",
                hint="QEMU's nitro-enclave machine writes such documents; anybody can",
            )
        if key.curve.name != self.algorithm.curve.name:
            raise BadSignature("the key is on another curve", expected=self.algorithm.curve.name, actual=key.curve.name)
        size = self.algorithm.coordinate_size
        r, s = int.from_bytes(self.signature[:size], "big"), int.from_bytes(self.signature[size:], "big")
        try:
            key.verify(encode_dss_signature(r, s), self.to_be_signed, _ECDSA[self.algorithm])
        except BaseException as error:  # InvalidSignature, ValueError
            reraise_interrupt(error)
            raise BadSignature(
                "the signature over the payload is not the leaf certificate's",
                expected=f"{self.algorithm.name} by its key", actual="by another key, or over other bytes",
            ) from error  # fmt: skip


def parse_sign1(raw: bytes) -> Sign1:
    """Parse a COSE_Sign1, tagged or not; raise MalformedEvidence, or MalformedInput for what are no bytes.

    The protected header is exactly one algorithm: with no other header there is none to misunderstand (`crit`). The
    unprotected one is the caller's to judge, but for an algorithm in it.
    """
    if not isinstance(raw, bytes):
        raise MalformedInput("no document", expected="bytes", actual=type(raw).__name__)
    if len(raw) > MAX_DOCUMENT:
        raise MalformedEvidence("document too long", expected=f"at most {MAX_DOCUMENT} bytes", actual=len(raw))
    parts = cbor.decode(raw.removeprefix(TAG_SIGN1), what="COSE_Sign1")
    if type(parts) is not tuple or len(parts) != 4:
        raise MalformedEvidence("COSE_Sign1: not an array of four", expected="array of 4", actual=cbor.describe(parts))
    protected, unprotected, payload, signature = parts
    if type(protected) is not bytes or type(unprotected) is not dict:
        raise MalformedEvidence(
            "COSE_Sign1: headers are not a byte string and a map",
            expected="bytes and a map",
            actual=f"{cbor.describe(protected)} and {cbor.describe(unprotected)}",
        )
    if type(payload) is not bytes or type(signature) is not bytes:
        raise MalformedEvidence(
            "COSE_Sign1: payload and signature are not byte strings",
            expected="bytes and bytes",
            actual=f"{cbor.describe(payload)} and {cbor.describe(signature)}",
        )
    if not payload:
        raise MalformedEvidence("COSE_Sign1: empty payload", expected="a map in it", actual="0 bytes")
    if HEADER_ALGORITHM in unprotected:  # RFC 9052 3: no label stands in both, and only one of them is signed
        raise MalformedEvidence(
            "COSE_Sign1: an algorithm in the unprotected header", expected="in the protected one alone",
            actual=unprotected[HEADER_ALGORITHM],
        )  # fmt: skip
    algorithm = _parse_algorithm(protected)
    if algorithm is not None and len(signature) != 2 * algorithm.coordinate_size:  # RFC 9053 2.1: r || s, full width
        raise MalformedEvidence(
            "COSE_Sign1: wrong signature length",
            expected=f"{2 * algorithm.coordinate_size} bytes",
            actual=len(signature),
        )
    return Sign1(protected, unprotected, payload, signature, algorithm)


def _parse_algorithm(protected: bytes) -> Algorithm | None:
    if protected == _ES384_HEADER:
        return Algorithm.ES384
    header = cbor.decode(protected, what="protected header")
    if type(header) is not dict or set(header) != {HEADER_ALGORITHM}:
        raise MalformedEvidence("protected header: not exactly one algorithm", expected="{1: alg}", actual=protected)
    name = header[HEADER_ALGORITHM]
    if type(name) is int:
        if name == UNSIGNED_ALGORITHM:
            return None
        if name in _BY_NUMBER:
            return _BY_NUMBER[name]
    raise MalformedEvidence("protected header: unknown algorithm", expected="ES384 (-35)", actual=name)
