# SPDX-License-Identifier: MIT
"""The isolate's TLS key and its one self-signed certificate: made inside, never stored, never sent.

An isolate is this key: participants pin it, and evidence names it.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

# A client's clock may be slow, and the certificate's dates say nothing: evidence does.
NOT_BEFORE = datetime(2020, 1, 1, tzinfo=UTC)
NOT_AFTER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)  # RFC 5280 4.1.2.5: no well-defined expiration
COMMON_NAME = "veracruz isolate"


@dataclass(frozen=True, slots=True)
class Identity:
    """The key (P-256), the certificate's DER and the SPKI that evidence names."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: bytes
    public_key: bytes

    def load_into(self, context: ssl.SSLContext) -> None:
        """Give OpenSSL key and certificate; it reads files only, so they pass through memory that has no name."""
        pem = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        pem += ssl.DER_cert_to_PEM_cert(self.certificate).encode()
        descriptor = os.memfd_create("identity", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, pem)
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)


def mix_entropy(data: bytes) -> None:
    """Wait for the kernel's generator, then mix in bytes that are never credited (random(4))."""
    os.getrandom(32)
    with Path("/dev/urandom").open("wb", buffering=0) as pool:
        pool.write(data)


def make_identity() -> Identity:
    """Make a key and its certificate: self-signed, CA:FALSE, 2020 to 9999."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, COMMON_NAME)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOT_BEFORE)
        .not_valid_after(NOT_AFTER)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public_key = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Identity(key, certificate.public_bytes(Encoding.DER), public_key)
