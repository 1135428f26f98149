# SPDX-License-Identifier: MIT
"""Sign an image: a new file with the old sections and one signature, made by a key that may be elsewhere.

PCR0-2 do not change: the signature section is not measured by them. What is signed is the Sig_structure over PCR0
(RFC 9052 4.4), about 150 bytes, so that a signer hashes it itself, as tokens and `openssl dgst -sign` do.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from attestation.cose import Algorithm
from attestation.errors import UsageError
from attestation.files import replacing

from ..cache import demand_space
from ..eif import MAX_SECTIONS, SectionType
from ..errors import BadImageSignature, MalformedEif, SignerFailed, SigningRefused
from .inspection import Inspection, check_certificate
from .layout import HEADER, SECTION, Layout, Source, pieces
from .signature_section import (
    ImageSignature,
    algorithm_of,
    dump_section,
    dump_sign1,
    load_certificate,
    unsigned_of,
    verify_signature,
)

_REPAIRED = {"size-stale", "signature-endless"}  # in the signature that is replaced
MAX_KEY = 16 * 1024  # bytes of PEM


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be signed, with which certificate."""

    certificate: x509.Certificate
    algorithm: Algorithm
    pcr0: bytes

    @property
    def to_be_signed(self) -> bytes:
        """The Sig_structure."""
        return unsigned_of(self.pcr0, self.algorithm).to_be_signed


def read_certificate(pem: bytes) -> x509.Certificate:
    """Return the one certificate of a PEM file; raise UsageError, MalformedEif."""
    if pem.count(b"-----BEGIN") != 1:
        raise UsageError("the certificate file", expected="exactly one PEM certificate", hint="PCR8 is of one alone")
    return load_certificate(pem)


def make_request(found: Inspection, certificate: x509.Certificate, *, at: datetime) -> Request:
    """Check that an image can be signed, and with this certificate at this time; raise SigningRefused, MalformedEif."""
    pcr0 = _demand_sound(found)
    for finding in check_certificate(certificate, at):
        raise SigningRefused(finding.text, hint="nitro-cli starts no image whose certificate is out of its dates")
    try:
        algorithm = algorithm_of(certificate)
    except BadImageSignature as error:
        raise SigningRefused(error.what, expected=error.expected, actual=error.actual) from error
    return Request(certificate, algorithm, pcr0)


def _demand_sound(found: Inspection) -> bytes:
    """Return PCR0; raise MalformedEif unless all but the old signature is as our strict reader demands."""
    signatures = [part.place for part in found.layout.of(SectionType.SIGNATURE)]
    for finding in found.findings:
        old = finding.slug == "section-duplicate" and finding.text.startswith("signature")
        old = old or (finding.slug in _REPAIRED and any(finding.text.startswith(place) for place in signatures))
        if finding.refused and not old:
            raise MalformedEif(f"not signed: {finding.text}", hint="veracruz image describe FILE tells more")
    if found.measurements is None:
        raise MalformedEif("not signed: PCR0 is not known")
    if len(found.layout.parts) - len(signatures) >= MAX_SECTIONS:
        raise MalformedEif("not signed: no room for one more section", expected=f"at most {MAX_SECTIONS}")
    return found.measurements.pcr0


def sign_with_key(request: Request, pem: bytes) -> bytes:
    """Return the signature by a private key's PEM; raise SigningRefused.

    Deterministic (RFC 6979) where the library can: the same image, certificate and key give the same bytes.
    """
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise SigningRefused(
            "the private key is encrypted", hint="--signer 'openssl dgst -sha384 -sign KEY.pem'"
        ) from error
    except Exception as error:
        raise SigningRefused(
            "the private key is not readable", expected="a PEM file", actual=type(error).__name__
        ) from error
    own = request.certificate.public_key()
    if not (isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == own):
        raise SigningRefused("the private key is not the certificate's", hint="name the pair: --certificate and --key")
    data, digest = request.to_be_signed, request.algorithm.hash
    try:
        return key.sign(data, ec.ECDSA(digest, deterministic_signing=True))
    except UnsupportedAlgorithm:
        return key.sign(data, ec.ECDSA(digest))


def seal(request: Request, signature: bytes) -> bytes:
    """Return the signature section of a raw (r || s) or DER signature that the certificate verifies.

    Raises SignerFailed where it is neither, BadImageSignature where it is another key's or over something else.
    """
    unsigned = unsigned_of(request.pcr0, request.algorithm)
    candidates = list(_read_signature(signature, request.algorithm))
    if not candidates:
        size = 2 * request.algorithm.coordinate_size
        raise SignerFailed(
            "this is no signature", expected=f"{size} bytes of r || s, or DER", actual=f"{len(signature)} bytes"
        )
    error: BadImageSignature | None = None
    for candidate in candidates:
        cose = dump_sign1(unsigned, candidate)
        try:
            verify_signature(ImageSignature(b"", cose), request.certificate, request.pcr0)
        except BadImageSignature as refused:
            error = refused
            continue
        return dump_section(request.certificate, cose)
    raise BadImageSignature(
        "the signature is not by the certificate's key over what is to be signed",
        hint=f"the signer hashes what it reads with {request.algorithm.hash.name}, and signs once",
    ) from error


def _read_signature(signature: bytes, algorithm: Algorithm) -> Iterator[bytes]:
    """Yield what a signature can be read as; one of DER may be as long as a raw one, so it is tried which verifies."""
    size = algorithm.coordinate_size
    if len(signature) == 2 * size:
        yield signature
    try:
        yield b"".join(number.to_bytes(size, "big") for number in decode_dss_signature(signature))
    except (ValueError, OverflowError):
        return


def write_signed(source: Source, layout: Layout, section: bytes, out: Path) -> None:
    """Write the image with this signature section, the last, instead of any that it has; header and CRC follow.

    The sections' bytes and the header's memory and CPUs stay. The file at `out` appears whole or not at all.
    """
    parts = [part for part in layout.parts if part.type != SectionType.SIGNATURE]
    sizes = [*(part.size for part in parts), len(section)]
    offsets = [HEADER.size]
    for size in sizes[:-1]:
        offsets.append(offsets[-1] + SECTION.size + size)
    spare = [0] * (MAX_SECTIONS - len(sizes))
    old = layout.header
    fields = (
        old.raw[:4], old.version, old.flags, old.default_memory, old.default_cpus, 0, len(sizes),
        *offsets, *spare, *sizes, *spare, 0,
    )  # fmt: skip
    header = HEADER.pack(*fields, 0)
    crc = zlib.crc32(header[:-4])
    demand_space(out.parent, sum(sizes) + HEADER.size)
    with replacing(out) as file:
        file.write(header)
        for part in parts:
            head = SECTION.pack(part.type, 0, part.size)
            for piece in itertools.chain([head], pieces(source, part.start, part.size)):
                crc = zlib.crc32(piece, crc)
                file.write(piece)
        for piece in (SECTION.pack(SectionType.SIGNATURE, 0, len(section)), section):
            crc = zlib.crc32(piece, crc)
            file.write(piece)
        file.seek(0)
        file.write(HEADER.pack(*fields, crc))
