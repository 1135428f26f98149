# SPDX-License-Identifier: MIT
"""The one form of a participant's certificate: self-signed, CA:FALSE, a key that TLS 1.3 can sign with.

A participant is the SHA-256 of this certificate, so nothing in it is believed but its key: the checks here make sure
that it can be an anchor of exactly itself. A CA:TRUE certificate in a policy would let its owner issue others.
"""

from __future__ import annotations

import re

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from .errors import MalformedInput
from .limits import MAX_CERTIFICATE_PEM
from .panics import reraise_interrupt

SHOWN = 28  # characters; a PEM file's first line
MAX_DER = 4096  # bytes; ours are about 400, one with many names about 1,000

_ONE_PEM = re.compile(r"\s*-----BEGIN CERTIFICATE-----\s[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----\s*", re.ASCII)
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_CRITICAL = (x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage, x509.SubjectAlternativeName)


def parse_certificate(pem: str) -> bytes:
    """Return the DER of a text that is exactly one participant's certificate; raise MalformedInput."""
    if len(pem) > MAX_CERTIFICATE_PEM:
        raise MalformedInput(
            "certificate: too long", expected=f"at most {MAX_CERTIFICATE_PEM} characters", actual=len(pem)
        )
    if not _ONE_PEM.fullmatch(pem):
        begin = pem[:SHOWN]  # no more: it may be a private key
        raise MalformedInput(
            "certificate: not of the needed form", expected="exactly one PEM certificate", actual=begin
        )
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode("ascii"))
        der = certificate.public_bytes(Encoding.DER)
        check_certificate(certificate)
    except MalformedInput:
        raise
    except BaseException as error:  # the library raises six types on hostile certificates (facts, libraries.md 2.1)
        reraise_interrupt(error)
        raise MalformedInput("certificate: not readable", expected="X.509 in PEM", actual=error) from error
    if len(der) > MAX_DER:
        raise MalformedInput("certificate: too long", expected=f"at most {MAX_DER} bytes", actual=len(der))
    return der


def check_certificate(certificate: x509.Certificate, *, client: bool = True) -> None:
    """Raise MalformedInput unless a certificate is self-signed, CA:FALSE, v3, and fit for TLS."""
    if certificate.version is not x509.Version.v3:
        raise MalformedInput("certificate: wrong version", expected="X.509 v3", actual=certificate.version.name)
    _check_key(certificate)
    try:
        certificate.not_valid_before_utc, certificate.not_valid_after_utc  # noqa: B018 -- DER has a year 0
    except ValueError as error:
        raise MalformedInput("certificate: no time of validity", expected="years 1 to 9999", actual=error) from error
    if certificate.subject != certificate.issuer:
        raise MalformedInput(
            "certificate: not self-signed",
            expected=certificate.subject.rfc4514_string(),
            actual=certificate.issuer.rfc4514_string(),
        )
    try:
        certificate.verify_directly_issued_by(certificate)
    except BaseException as error:
        reraise_interrupt(error)
        raise MalformedInput(
            "certificate: its own key did not sign it", expected="self-signed", actual=type(error).__name__
        ) from error
    for extension in certificate.extensions:
        if extension.critical and not isinstance(extension.value, _CRITICAL):
            raise MalformedInput(
                "certificate: a critical extension", expected="none that is unknown", actual=extension.oid.dotted_string
            )
        _check_extension(extension.value, client=client)
    try:
        certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except x509.ExtensionNotFound as error:  # OpenSSL then guesses, and takes some for authorities
        raise MalformedInput("certificate: no basic constraints", expected="CA:FALSE", actual="none") from error


def subject_name(der: bytes) -> str:
    """Return the subject in a certificate, equal for names that X509_NAME_cmp takes for equal (case, blanks, types)."""
    return " ".join(x509.load_der_x509_certificate(der).subject.rfc4514_string().casefold().split())


def key_bytes(der: bytes) -> bytes:
    """Return the SPKI (DER) in a certificate."""
    key = x509.load_der_x509_certificate(der).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _check_key(certificate: x509.Certificate) -> None:
    key = certificate.public_key()
    named = ec.SECP256R1, ec.SECP384R1
    if isinstance(key, ed25519.Ed25519PublicKey):
        return
    if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, named)):
        kind = key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__
        raise MalformedInput("certificate: wrong kind of key", expected="P-256, P-384 or Ed25519", actual=kind)
    if not isinstance(certificate.signature_hash_algorithm, _HASHES):
        name = getattr(certificate.signature_hash_algorithm, "name", None)
        raise MalformedInput("certificate: wrong hash", expected="SHA-256, SHA-384 or SHA-512", actual=name)


def _check_extension(value: x509.ExtensionType, *, client: bool) -> None:
    if isinstance(value, x509.BasicConstraints) and value.ca:
        raise MalformedInput("certificate: an authority's", expected="CA:FALSE", actual="CA:TRUE")
    if isinstance(value, x509.KeyUsage) and (value.key_cert_sign or not value.digital_signature):
        raise MalformedInput(
            "certificate: wrong key usage", expected="digitalSignature without keyCertSign", actual=value
        )
    needed = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
    if isinstance(value, x509.ExtendedKeyUsage) and needed not in value:
        raise MalformedInput("certificate: wrong extended key usage", expected=needed.dotted_string, actual=value)
