# SPDX-License-Identifier: MIT
"""The certificate chain of a document: from its leaf to the one root that the relying party chose, at a given time.

Paths are validated by cryptography's X.509 verification. Its web profile asks for what Nitro's certificates lack (SAN,
EKU, key identifiers) and not for what they all have (P-384, SHA-384), so policies of our own stand in. No revocation is
fetched: AWS's guide says to switch it off, and certificates live for hours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from importlib import resources
from itertools import pairwise

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import SignatureAlgorithmOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, Policy, PolicyBuilder, Store

from .errors import ClockOutOfStep, MalformedInput, UntrustedChain, escape
from .limits import MAX_CERTIFICATE_PEM
from .panics import reraise_interrupt

CLOCK_LEEWAY = timedelta(seconds=5)  # leaves are not backdated: a clock that is a little slow meets one from the future

AWS_ROOT_FILE = "aws-nitro-root-g1.pem"
# Of the DER; AWS publishes it in the Nitro Enclaves user guide, "Verifying the root of trust".
AWS_ROOT_SHA256 = bytes.fromhex("641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b")


@dataclass(frozen=True, slots=True)
class Root:
    """A trust anchor: a self-signed certificate that the relying party chose, never one that came with evidence."""

    certificate: bytes = field(repr=False)  # DER
    name: str
    development: bool  # whatever is not AWS's root G1

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the DER."""
        return hashlib.sha256(self.certificate).digest()


@dataclass(frozen=True, slots=True)
class Link:
    """One certificate of a verified chain, as it is told to a reader."""

    subject: str  # RFC 4514
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Chain:
    """A verified chain: its links from the leaf to the root, and the leaf's key."""

    root: Root
    links: tuple[Link, ...]
    key: ec.EllipticCurvePublicKey = field(repr=False)


@cache
def aws_root() -> Root:
    """Return AWS's root G1, which comes with this package; raise UntrustedChain if its file was changed."""
    pem = resources.files(__package__).joinpath("roots", AWS_ROOT_FILE).read_bytes()
    root = load_root(pem)
    if root.development:
        raise UntrustedChain(
            "the installed root of AWS is another one", expected=AWS_ROOT_SHA256, actual=root.fingerprint
        )
    return root


def load_root(pem: bytes) -> Root:
    """Return the root in a PEM file of exactly one self-signed P-384 CA certificate; raise MalformedInput."""
    if len(pem) > MAX_CERTIFICATE_PEM:
        raise MalformedInput("root: file too long", expected=f"at most {MAX_CERTIFICATE_PEM} bytes", actual=len(pem))
    try:
        certificates = x509.load_pem_x509_certificates(pem)
        if len(certificates) != 1:
            raise ValueError(f"{len(certificates)} certificates")
        certificate = certificates[0]
        _check_algorithms(certificate)
        certificate.verify_directly_issued_by(certificate)
        if not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise ValueError("no CA certificate")
        certificate.not_valid_before_utc, certificate.not_valid_after_utc  # noqa: B018 -- DER has a year 0
        name = escape(certificate.subject.rfc4514_string())
        der = certificate.public_bytes(Encoding.DER)
    except BaseException as error:  # cryptography raises many types on malformed certificates
        reraise_interrupt(error)
        raise MalformedInput(
            "root: not usable", expected="PEM of one self-signed P-384 CA certificate", actual=error
        ) from error
    return Root(der, name, development=hashlib.sha256(der).digest() != AWS_ROOT_SHA256)


def verify_chain(
    leaf: bytes, cabundle: Sequence[bytes], *, roots: Sequence[Root], at: datetime, made_at: datetime
) -> Chain:
    """Verify that `leaf` chains to one of `roots` at the time `at`; raise UntrustedChain or ClockOutOfStep.

    `cabundle` runs from the root to the leaf's issuer. Its first entry only tells which of the chosen roots is meant:
    what anchors the path is ours. `made_at`, the document's own time, only tells the two errors apart.
    """
    root = _choose_root(cabundle[0] if cabundle else b"", roots)
    anchor, *intermediates = [_load(root.certificate, "root")] + [
        _load(der, f"cabundle[{index}]") for index, der in enumerate(cabundle) if index
    ]
    certificate = _load(leaf, "certificate")
    path = [certificate, *reversed(intermediates), anchor]
    _check_order(path)
    window = Window(max(c.not_valid_before_utc for c in path), min(c.not_valid_after_utc for c in path))
    moment = window.nearest(at)
    if not window.contains(moment):
        _validate(path, at=window.nearest(made_at))  # raises unless time is all that is wrong
        raise ClockOutOfStep(
            f"the certificates are {'not yet' if at < window.not_before else 'no longer'} valid at the time given",
            expected=str(window),
            actual=_text(at),
            hint="check this machine's clock" + ("" if at < window.not_before else "; for archived evidence give --at"),
        )
    key = _validate(path, at=moment)
    links = tuple(Link(c.subject.rfc4514_string(), c.not_valid_before_utc, c.not_valid_after_utc) for c in path)
    return Chain(root, links, key)


@dataclass(frozen=True, slots=True)
class Window:
    """The time in which every certificate of a chain is valid."""

    not_before: datetime
    not_after: datetime

    def contains(self, moment: datetime) -> bool:
        """Whether the whole chain is valid then."""
        return self.not_before <= moment <= self.not_after

    def nearest(self, moment: datetime) -> datetime:
        """Return the valid time nearest to `moment` if that is no further away than the leeway, else `moment`."""
        nearest = min(max(moment, self.not_before), self.not_after)
        return nearest if abs(nearest - moment) <= CLOCK_LEEWAY else moment

    def __str__(self) -> str:
        return f"{_text(self.not_before)} to {_text(self.not_after)}"


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")


def _choose_root(first: bytes, roots: Sequence[Root]) -> Root:
    for root in roots:
        if root.certificate == first:
            return root
    raise UntrustedChain(
        "the chain starts at a root that was not chosen",
        expected=" or ".join(f"{root.name} (SHA-256 {root.fingerprint.hex()})" for root in roots) or "no root at all",
        actual=hashlib.sha256(first).hexdigest(),
        hint="another root is a decision of yours: --root FILE",
    )


def _load(der: bytes, place: str) -> x509.Certificate:
    try:
        certificate = x509.load_der_x509_certificate(der)
        certificate.subject, certificate.issuer, certificate.extensions  # noqa: B018 -- parsed when first read
        certificate.not_valid_before_utc, certificate.not_valid_after_utc  # noqa: B018 -- DER has a year 0
    except BaseException as error:  # ValueError, InvalidVersion, UnsupportedAlgorithm, DuplicateExtension, ...
        reraise_interrupt(error)
        raise UntrustedChain(f"{place}: no X.509 certificate", actual=error) from error
    return certificate


def _check_order(path: Sequence[x509.Certificate]) -> None:
    """Check that each certificate names the next as its issuer, and none appears twice.

    With that there is one path at most: cryptography has no budget for the paths that it tries.
    """
    for position, (certificate, issuer) in enumerate(pairwise(path)):
        if certificate.issuer != issuer.subject:
            raise UntrustedChain(
                f"certificate {position} of the chain was issued by another than the next one",
                expected=certificate.issuer.rfc4514_string(),
                actual=issuer.subject.rfc4514_string(),
            )
    if len({certificate.subject for certificate in path}) != len(path):
        raise UntrustedChain("two certificates of the chain have the same subject")


def _validate(path: Sequence[x509.Certificate], *, at: datetime) -> ec.EllipticCurvePublicKey:
    """Validate the path at a time (RFC 5280 6.1) and return the leaf's key; raise UntrustedChain."""
    leaf, *intermediates, anchor = path
    try:
        verifier = (
            PolicyBuilder()
            .store(Store([anchor]))
            .time(at)
            .max_chain_depth(len(intermediates))
            .extension_policies(ca_policy=_CA_POLICY, ee_policy=_LEAF_POLICY)
            .build_client_verifier()
        )
        verified = verifier.verify(leaf, intermediates)
        key = leaf.public_key()
    except BaseException as error:  # VerificationError; on malformed certificates also ValueError and others
        reraise_interrupt(error)
        raise UntrustedChain("the certificates do not form a valid chain", actual=error) from error
    if list(verified.chain) != list(path) or not isinstance(key, ec.EllipticCurvePublicKey):
        raise UntrustedChain("the chain that was validated is not the whole cabundle")
    return key


def _check_algorithms(certificate: x509.Certificate) -> None:
    """Check that key and signature are P-384 and ECDSA with SHA-384; raise ValueError, as the policies want it."""
    if certificate.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA384:
        raise ValueError(f"signature algorithm is not ecdsa-with-SHA384 but {certificate.signature_algorithm_oid}")
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ValueError("key is not on P-384")
    # The one form of RFC 5480 2: a named curve and an uncompressed point.
    if key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) not in certificate.tbs_certificate_bytes:
        raise ValueError("key is not encoded as a named curve and an uncompressed point")


def _require_ca(_: Policy, certificate: x509.Certificate, constraints: x509.BasicConstraints) -> None:
    if not constraints.ca:
        raise ValueError("not a CA")
    _check_algorithms(certificate)


def _require_leaf(_: Policy, certificate: x509.Certificate, constraints: x509.BasicConstraints) -> None:
    if constraints.ca:
        raise ValueError("the leaf is a CA")
    _check_algorithms(certificate)


def _require_digital_signature(_: Policy, __: x509.Certificate, usage: x509.KeyUsage) -> None:
    if not usage.digital_signature:
        raise ValueError("the leaf's key is not for digital signatures")


# webpki_defaults_ca() also demands keyCertSign and path lengths, permit_all() would drop both.
_CA_POLICY = ExtensionPolicy.webpki_defaults_ca().require_present(
    x509.BasicConstraints, Criticality.CRITICAL, _require_ca
)
_LEAF_POLICY = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.CRITICAL, _require_leaf)
    .require_present(x509.KeyUsage, Criticality.AGNOSTIC, _require_digital_signature)
)
