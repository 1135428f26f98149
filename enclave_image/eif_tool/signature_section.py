# SPDX-License-Identifier: MIT
"""An image's signature section: read it, check it, make it, byte for byte as AWS's tools do.

Source: aws-nitro-enclaves-image-format src/defs/mod.rs (PcrSignature, PcrInfo). The section is CBOR:
[{"signing_certificate": [PEM's bytes as numbers], "signature": [an untagged COSE_Sign1's bytes as numbers]}], whose
payload is {"register_index": 0, "register_value": [PCR0's 48 bytes as numbers]}. Loaders read the first entry alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from attestation import cbor
from attestation.cose import HEADER_ALGORITHM, Algorithm, Sign1, parse_sign1
from attestation.errors import AttestationError
from attestation.limits import MAX_CERTIFICATE_PEM
from attestation.panics import reraise_interrupt

from ..eif import MAX_SIGNATURE
from ..errors import BadImageSignature, MalformedEif

_KEYS = ("signing_certificate", "signature")  # in this order: QEMU reads the first key alone
MAX_SIGNATURES = 32  # entries of the section; one for each register


@dataclass(frozen=True, slots=True)
class ImageSignature:
    """One entry of the section, unchecked."""

    pem: bytes = field(repr=False)
    cose: bytes = field(repr=False)


def read_signatures(section: bytes) -> tuple[ImageSignature, ...]:
    """Return the entries of a signature section, at least one; raise MalformedEif."""
    if len(section) > MAX_SIGNATURE:
        raise MalformedEif("signature section", expected=f"at most {MAX_SIGNATURE} bytes", actual=len(section))
    try:
        entries = cbor.decode(section, what="signature section", max_items=MAX_SIGNATURE)
    except AttestationError as error:
        raise MalformedEif("the signature section is malformed", actual=error) from error
    if type(entries) is not tuple or not 1 <= len(entries) <= MAX_SIGNATURES:
        raise MalformedEif("the signature section is malformed", expected=f"an array of 1 to {MAX_SIGNATURES}")
    return tuple(_read_entry(entry) for entry in entries)


def _read_entry(entry: cbor.Value) -> ImageSignature:
    if type(entry) is not dict or tuple(entry) != _KEYS:
        raise MalformedEif("the signature section is malformed", expected=f"a map with the keys {', '.join(_KEYS)}")
    return ImageSignature(*(_read_bytes(entry[key], key) for key in _KEYS))


def _read_bytes(numbers: cbor.Value, what: str) -> bytes:
    try:
        if type(numbers) is not tuple or not all(type(number) is int for number in numbers):
            raise ValueError("something else")
        return bytes(number for number in numbers if type(number) is int)
    except ValueError as error:
        raise MalformedEif(f"the signature section is malformed: {what}", expected="an array of bytes") from error


def load_certificate(pem: bytes) -> x509.Certificate:
    """Return the certificate in a PEM text; raise MalformedEif."""
    try:
        if len(pem) > MAX_CERTIFICATE_PEM:
            raise ValueError(f"longer than {MAX_CERTIFICATE_PEM} bytes")
        certificate = x509.load_pem_x509_certificate(pem)
        certificate.public_key()  # what is asked of it later has to be readable
        certificate.subject.rfc4514_string()
        list(certificate.extensions)
        _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except BaseException as error:  # the library raises many types on hostile certificates
        reraise_interrupt(error)
        raise MalformedEif("the signing certificate is not readable", actual=error) from error
    return certificate


def signer_of(section: bytes | None) -> bytes | None:
    """Return the DER of the first signature's certificate, None where there is no section; raise MalformedEif.

    As QEMU's loader, this takes the certificate that PCR8 measures and does not verify the signature.
    """
    if section is None:
        return None
    return load_certificate(read_signatures(section)[0].pem).public_bytes(Encoding.DER)


def algorithm_of(certificate: x509.Certificate) -> Algorithm:
    """Return the algorithm that a certificate's key signs with; raise BadImageSignature for any other kind of key."""
    key = certificate.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        for algorithm in Algorithm:
            if key.curve.name == algorithm.curve.name:
                return algorithm
    kind = key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__
    raise BadImageSignature("the certificate's key cannot sign images", expected="P-256, P-384 or P-521", actual=kind)


def verify_signature(signature: ImageSignature, certificate: x509.Certificate, pcr0: bytes) -> Algorithm:
    """Check a signature over PCR0 with its certificate; return its algorithm.

    Raises MalformedEif where it is no COSE_Sign1, BadImageSignature where it is another's or over something else.
    """
    try:
        signed = parse_sign1(signature.cose)
    except AttestationError as error:
        raise MalformedEif("the signature is no COSE_Sign1", actual=error) from error
    if signed.algorithm is None:
        raise MalformedEif("the signature is no COSE_Sign1", expected="an algorithm with a curve")
    if signed.payload != payload_of(pcr0):  # PCR0 is computed, never taken from the file
        raise BadImageSignature("the signature is over something else than this image's PCR0")
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise BadImageSignature("the certificate's key is not on a curve", actual=type(key).__name__)
    try:
        signed.verify(key)
    except AttestationError as error:
        raise BadImageSignature("the signature over PCR0 is not the certificate's", actual=error) from error
    return signed.algorithm


def payload_of(pcr0: bytes) -> bytes:
    """Return what is signed of an image."""
    return cbor2.dumps({"register_index": 0, "register_value": list(pcr0)})


def unsigned_of(pcr0: bytes, algorithm: Algorithm) -> Sign1:
    """Return the COSE_Sign1 with an empty signature: its `to_be_signed` is what a key signs."""
    return Sign1(cbor2.dumps({HEADER_ALGORITHM: int(algorithm)}), {}, payload_of(pcr0), b"", algorithm)


def dump_sign1(unsigned: Sign1, signature: bytes) -> bytes:
    """Return an untagged COSE_Sign1 with this signature (r || s)."""
    return cbor2.dumps([unsigned.protected, {}, unsigned.payload, signature])


def dump_section(certificate: x509.Certificate, cose: bytes) -> bytes:
    """Return a section of one signature; raise MalformedEif where that is longer than loaders read."""
    pem = certificate.public_bytes(Encoding.PEM)
    section = cbor2.dumps([dict(zip(_KEYS, (list(pem), list(cose)), strict=True))])
    if len(section) > MAX_SIGNATURE:
        raise MalformedEif("the signature section", expected=f"at most {MAX_SIGNATURE} bytes", actual=len(section))
    return section
