# SPDX-License-Identifier: MIT
"""Certificates of AWS's shape under a root of the user's own: they prove nothing, and the root's name says so.

root (30 years) -> regional (20 days, path length 2) -> zonal (6 days, 1) -> instance (24 hours, 0) -> leaf (3 hours),
all P-384 and ECDSA with SHA-384, each with the extensions that AWS's have (facts from documents of 2021 to 2025).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from attestation.errors import EnvironmentLacks
from attestation.limits import MAX_CERTIFICATE

from .errors import UnsafeState
from .state import make_private, state_home

ROOT_NAME = "veracruz development root - UNSAFE - protects nothing"
ORGANISATION = "veracruz development - UNSAFE"
ROOT_LIFE = timedelta(days=30 * 365)
LEAF_LIFE = timedelta(hours=3)
LEAF_MARGIN = timedelta(minutes=15)  # a leaf is replaced that long before it expires (MaplePrivacyLabs/Maple PR 936)
MAX_FILE = 16 * 1024  # bytes

Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA: its certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    def covers(self, start: datetime, end: datetime) -> bool:
        """Whether the certificate is valid from `start` to `end`."""
        return self.certificate.not_valid_before_utc <= start and end <= self.certificate.not_valid_after_utc


@dataclass(frozen=True, slots=True)
class Leaf:
    """What signs documents for up to three hours: the key, its certificate (DER), and the CAs from the root down."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: bytes
    cabundle: tuple[bytes, ...]
    renew_at: datetime


@dataclass(frozen=True, slots=True)
class _Level:
    name: str
    life: timedelta
    path_length: int
    usage: x509.KeyUsage


def _usage(*, sign: bool = False, commit: bool = False, certify: bool = False, revoke: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=sign, content_commitment=commit, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=certify, crl_sign=revoke, encipher_only=False, decipher_only=False,
    )  # fmt: skip


_AUTHORITY = _usage(sign=True, certify=True, revoke=True)
_LEVELS = (
    _Level("regional", timedelta(days=20), 2, _AUTHORITY),
    _Level("zonal", timedelta(days=6), 1, _AUTHORITY),
    _Level("instance", timedelta(hours=24), 0, _usage(certify=True)),
)
_LEAF_USAGE = _usage(sign=True, commit=True)


def _name(common: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANISATION), x509.NameAttribute(NameOID.COMMON_NAME, common)]
    )


def _whole_second(at: datetime) -> datetime:
    return at.replace(microsecond=0)  # X.509 knows no fractions


def _build(
    subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, issuer: x509.Name, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _key_id(key: ec.EllipticCurvePrivateKey) -> x509.SubjectKeyIdentifier:
    return x509.SubjectKeyIdentifier.from_public_key(key.public_key())


def make_root(at: datetime) -> Authority:
    """Return a new root, valid from a day before `at` on: its readers' clocks may be slow."""
    key = ec.generate_private_key(ec.SECP384R1())
    start = _whole_second(at) - timedelta(days=1)
    name = _name(ROOT_NAME)
    builder = (
        _build(name, key, issuer=name, start=start, end=start + ROOT_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_key_id(key), critical=False)
        .add_extension(_AUTHORITY, critical=True)
    )
    return Authority(builder.sign(key, hashes.SHA384()), key)


def _make_authority(level: _Level, parent: Authority, common: str, at: datetime) -> Authority:
    key = ec.generate_private_key(ec.SECP384R1())
    issuer_id = parent.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _build(_name(common), key, issuer=parent.certificate.subject, start=at, end=at + level.life)
        .add_extension(x509.BasicConstraints(ca=True, path_length=level.path_length), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id), critical=False)
        .add_extension(_key_id(key), critical=False)
        .add_extension(level.usage, critical=True)
    )
    return Authority(builder.sign(parent.key, hashes.SHA384()), key)


class Chain:
    """Issues the leaves of one isolate, and the CAs above them whenever one would not outlive its next leaf."""

    def __init__(self, root: Authority, *, module_id: str) -> None:
        self._root = root
        self._instance, _, _ = module_id.partition("-enc")
        self._module_id = module_id
        self._authorities: list[Authority] = []
        self._leaf: Leaf | None = None

    def leaf(self, at: datetime) -> Leaf:
        """Return the leaf to sign with at a time, a new one if the last is about to expire; never backdated."""
        if self._leaf is None or at >= self._leaf.renew_at:
            self._leaf = self._issue(_whole_second(at))
        return self._leaf

    def _issue(self, at: datetime) -> Leaf:
        self._renew_authorities(at)
        parent = self._authorities[-1]
        key = ec.generate_private_key(ec.SECP384R1())
        builder = (
            _build(_name(self._module_id), key, issuer=parent.certificate.subject, start=at, end=at + LEAF_LIFE)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_LEAF_USAGE, critical=False)  # as AWS has it
        )
        certificate = builder.sign(parent.key, hashes.SHA384()).public_bytes(Encoding.DER)
        bundle = [self._root, *self._authorities]
        cabundle = tuple(authority.certificate.public_bytes(Encoding.DER) for authority in bundle)
        assert all(len(der) <= MAX_CERTIFICATE for der in (certificate, *cabundle))
        return Leaf(key, certificate, cabundle, at + LEAF_LIFE - LEAF_MARGIN)

    def _renew_authorities(self, at: datetime) -> None:
        parent = self._root
        kept: list[Authority] = []
        for index, level in enumerate(_LEVELS):
            old = self._authorities[index] if index < len(self._authorities) else None
            renewed = index > 0 and kept[index - 1] not in self._authorities
            if old is None or renewed or not old.covers(at, at + LEAF_LIFE):
                old = _make_authority(level, parent, f"{self._instance}.{level.name}", at)
            kept.append(old)
            parent = old
        self._authorities = kept


@dataclass(frozen=True, slots=True)
class DevelopmentRoot:
    """This user's root, and the file that participants name with `--root`."""

    authority: Authority
    path: Path


def open_root(clock: Clock, home: Path | None = None) -> DevelopmentRoot:
    """Return this user's development root, made at the first call; two callers at once get the same one."""
    directory = (home or state_home()) / "dev-root"
    if not directory.exists():
        make_private(directory.parent)
        _create(directory, make_root(clock()))
    return DevelopmentRoot(_load(directory, clock()), directory / "root.pem")


def _create(directory: Path, root: Authority) -> None:
    """Put key and certificate in place together: a directory is renamed whole, and never onto one with files in it."""
    try:
        making = Path(tempfile.mkdtemp(prefix=".dev-root-", dir=directory.parent))  # mode 0700
    except OSError as error:
        raise EnvironmentLacks(f"cannot write in {directory.parent}: {error.strerror}") from error
    try:
        pem = root.key.private_bytes(Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        for name, data, mode in (
            ("root.key", pem, 0o600),
            ("root.pem", root.certificate.public_bytes(Encoding.PEM), 0o644),
        ):
            descriptor = os.open(making / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError, OSError):  # ENOTEMPTY: somebody was faster; theirs stays
            making.rename(directory)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _load(directory: Path, at: datetime) -> Authority:
    make_private(directory)
    try:
        key = serialization.load_pem_private_key(_read_private(directory / "root.key"), password=None)
        certificate = x509.load_pem_x509_certificate((directory / "root.pem").read_bytes()[:MAX_FILE])
        if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
            raise ValueError("the key is not the certificate's")
        if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
            raise ValueError("the root is not valid now")
    except (OSError, ValueError, TypeError) as error:
        raise UnsafeState(
            "the development root is not usable",
            actual=error,
            hint=f"remove it, and a new one is made: rm -r {directory}",
        ) from error
    return Authority(certificate, key)


def _read_private(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise ValueError(f"{path} is readable by others")
        return file.read(MAX_FILE)
