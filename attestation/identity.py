# SPDX-License-Identifier: MIT
"""A participant's identity: a P-256 key and the self-signed certificate whose SHA-256 the policy knows it by."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from .certificates import key_bytes, parse_certificate
from .errors import EnvironmentLacks, MalformedInput, UsageError
from .files import naming, read_limited, write_new
from .limits import MAX_CERTIFICATE_PEM
from .panics import reraise_interrupt

MAX_KEY_PEM = 16 * 1024  # bytes
MAX_NAME = 64  # characters; ub-common-name of X.520

# Long, and not tied to the maker's clock: what ends an identity is its removal from the policy.
NOT_BEFORE = datetime(2020, 1, 1, tzinfo=UTC)
NOT_AFTER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)  # RFC 5280 4.1.2.5: no well-defined expiration date


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate (DER) and the two files that a TLS library reads; the key itself is not held here."""

    certificate: bytes
    certificate_file: Path
    key_file: Path = field(repr=False)

    @property
    def fingerprint(self) -> bytes:
        """The SHA-256 of the certificate: who this is."""
        return hashlib.sha256(self.certificate).digest()

    @property
    def name(self) -> str:
        """The common name in the certificate: for people, believed by nobody."""
        names = x509.load_der_x509_certificate(self.certificate).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(names[0].value) if names else ""


def make_identity(name: str) -> tuple[bytes, bytes]:
    """Return a new key and its certificate, both as PEM."""
    if not (0 < len(name) <= MAX_NAME and name.isprintable()):
        raise UsageError("no name for an identity", expected=f"1..{MAX_NAME} printable characters", actual=name)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOT_BEFORE)
        .not_valid_after(NOT_AFTER)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_DIGITAL_SIGNATURE, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem, certificate.public_bytes(Encoding.PEM)


def write_identity(name: str, folder: Path) -> Identity:
    """Make an identity in a folder, NAME.key (mode 0600) and NAME.pem; refuse to replace either."""
    stem = file_stem(name)
    key_file, certificate_file = folder / f"{stem}.key", folder / f"{stem}.pem"
    for path in (key_file, certificate_file):
        if path.exists() or path.is_symlink():
            raise UsageError(
                f"{path} exists; a new identity replaces nothing",
                hint="choose another --out; whoever holds an old key keeps its rights until a policy leaves it out",
            )
    key, certificate = make_identity(name)
    there = folder.exists()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.ExitStack() as undo:
        if not there:
            undo.callback(folder.rmdir)
        write_new(key_file, key, mode=0o600)
        undo.callback(key_file.unlink)
        write_new(certificate_file, certificate, mode=0o644)
        undo.pop_all()
    return Identity(parse_certificate(certificate.decode("ascii")), certificate_file, key_file)


def load_identity(where: Path) -> Identity:
    """Load the identity in a folder that holds one, or under a prefix: WHERE.key and WHERE.pem.

    Raises MalformedInput where the files are not an identity: not PEM, encrypted, too large, not each other's.
    """
    certificate_file, key_file = _find(where)
    certificate = load_certificate(certificate_file)
    _check_mode(key_file)
    key = _load_key(key_file)
    if key != key_bytes(certificate):
        raise MalformedInput(
            f"{key_file} is not the key of {certificate_file}",
            expected=hashlib.sha256(key_bytes(certificate)).hexdigest(),
            actual=hashlib.sha256(key).hexdigest(),
        )
    return Identity(certificate, certificate_file, key_file)


def load_certificate(path: Path) -> bytes:
    """Return the DER of the one participant's certificate in a PEM file; raise MalformedInput, naming the file."""
    raw = read_limited(path, limit=MAX_CERTIFICATE_PEM, what="certificate")
    try:
        text = raw.decode("ascii")
    except UnicodeDecodeError as error:
        raise MalformedInput(f"{path} is no PEM file", expected="text", actual="binary data") from error
    if "PRIVATE KEY-----" in text:
        raise MalformedInput(
            f"{path} is a private key", expected="a certificate", actual="a key", hint="give the .pem, keep the .key"
        )
    with naming(path):
        return parse_certificate(text)


def file_stem(name: str) -> str:
    """Return the name of an identity's files: what a file name may safely hold, the rest as hyphens."""
    stem = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in name)
    return stem.lstrip(".-") or f"identity-{secrets.token_hex(4)}"


_DIGITAL_SIGNATURE = x509.KeyUsage(
    digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
    key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
)  # fmt: skip


def _find(where: Path) -> tuple[Path, Path]:
    if where.is_dir():
        if not os.access(where, os.R_OK | os.X_OK):
            raise UsageError(f"cannot read the identity in {where}: Permission denied")
        keys = sorted(where.glob("*.key"))
        if len(keys) != 1:
            raise UsageError(
                f"{where} holds {'no' if not keys else 'more than one'} identity",
                expected="one NAME.key beside its NAME.pem",
                actual=", ".join(key.name for key in keys) or None,
                hint=f"name one: --identity {where}/NAME" if keys else "make one: veracruz identity new NAME --out DIR",
            )
        return keys[0].with_suffix(".pem"), keys[0]
    prefix = where.with_suffix("") if where.suffix in (".key", ".pem") else where
    return prefix.with_name(prefix.name + ".pem"), prefix.with_name(prefix.name + ".key")


def _check_mode(path: Path) -> None:
    if os.name != "posix":
        return
    try:
        mode = path.stat().st_mode & 0o077
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}", hint="veracruz identity new NAME --out DIR"
        ) from error
    if mode:
        raise EnvironmentLacks(
            f"{path} can be read by others on this machine",
            expected="mode 0600",
            actual=f"{path.stat().st_mode & 0o777:04o}",
            hint=f"chmod 600 {path}",
        )


def _load_key(path: Path) -> bytes:
    """Return the SPKI of the private key in a file; what it was loaded for is to check it before TLS does."""
    raw = read_limited(path, limit=MAX_KEY_PEM, what="key")
    if b"-----BEGIN" not in raw:
        raise MalformedInput(f"{path} is no PEM file", expected="a private key", actual=f"{len(raw)} other bytes")
    if b"ENCRYPTED" in raw:
        raise MalformedInput(
            f"{path} is encrypted",
            expected="a key without passphrase",
            actual="one with a passphrase",
            hint=f"openssl pkey -in {path} -out PLAIN.key",
        )
    try:
        return (
            load_pem_private_key(raw, password=None)
            .public_key()
            .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        )
    except BaseException as error:  # ValueError, TypeError, UnsupportedAlgorithm
        reraise_interrupt(error)
        raise MalformedInput(
            f"{path} holds no private key that can be read", expected="one in PEM", actual=type(error).__name__
        ) from error
