# SPDX-License-Identifier: MIT
"""The certificate chain of a document: from its leaf to the one root that the relying party chose, at a given time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from importlib import resources

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from .chain_cache import ChainCache
from .chain_certificate import ChainCertificate, Link, check_algorithms, load_certificate
from .chain_path import validate_path
from .der import read_fields
from .errors import ClockOutOfStep, MalformedInput, UntrustedChain, escape
from .limits import MAX_CERTIFICATE_PEM
from .panics import reraise_interrupt

__all__ = ["CLOCK_LEEWAY", "Chain", "ChainCache", "Link", "Root", "aws_root", "load_root", "verify_chain"]

CLOCK_LEEWAY = timedelta(seconds=5)  # leaves are not backdated: a clock that is a little slow meets one from the future

STEP = timedelta(days=1)  # more than a clock is off by mistake: such evidence is old

AWS_ROOT_FILE = "aws-nitro-root-g1.pem"
# Of the DER; AWS publishes it in the Nitro Enclaves user guide, "Verifying the root of trust".
AWS_ROOT_SHA256 = bytes.fromhex("641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b")


@dataclass(frozen=True, slots=True)
class Root:
    """A trust anchor: a self-signed certificate that the relying party chose, never one that came with evidence."""

    certificate: bytes = field(repr=False)  # DER
    name: str
    development: bool = field(init=False)  # whatever is not AWS's root G1
    _parsed: ChainCertificate | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "development", self.fingerprint != AWS_ROOT_SHA256)

    def load(self) -> ChainCertificate:
        """Return the certificate, parsed once; raise UntrustedChain if it is none of the needed form."""
        if self._parsed is None:
            object.__setattr__(self, "_parsed", load_certificate(self.certificate, "root"))
        assert self._parsed is not None
        return self._parsed

    def __reduce__(self) -> tuple[type[Root], tuple[bytes, str]]:
        """Go to another process as bytes: a parsed certificate cannot."""
        return Root, (self.certificate, self.name)

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the DER."""
        return hashlib.sha256(self.certificate).digest()


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


def load_root(raw: bytes) -> Root:
    """Return the root in a PEM or DER file of exactly one self-signed P-384 CA certificate; raise MalformedInput."""
    wanted = "PEM or DER of one self-signed P-384 CA certificate"
    if len(raw) > MAX_CERTIFICATE_PEM:
        raise MalformedInput("root: file too long", expected=f"at most {MAX_CERTIFICATE_PEM} bytes", actual=len(raw))
    text = b"-----BEGIN CERTIFICATE-----" in raw  # a PEM file may begin with words
    binary = not text and raw[:1] == b"0"  # a DER SEQUENCE
    if not text and not binary:
        raise MalformedInput("root: not usable", expected=wanted, actual="no certificate")
    try:
        certificates = [x509.load_der_x509_certificate(raw)] if binary else x509.load_pem_x509_certificates(raw)
        if len(certificates) != 1:
            raise ValueError(f"{len(certificates)} certificates")
        certificate = certificates[0]
        der = certificate.public_bytes(Encoding.DER)
        check_algorithms(certificate, read_fields(der))
        certificate.verify_directly_issued_by(certificate)
        if not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise ValueError("no CA certificate")
        certificate.not_valid_before_utc, certificate.not_valid_after_utc  # noqa: B018 -- DER has a year 0
        name = escape(certificate.subject.rfc4514_string())
    except BaseException as error:  # cryptography raises many types on malformed certificates
        reraise_interrupt(error)
        raise MalformedInput("root: not usable", expected=wanted, actual=error) from error
    return Root(der, name)


def verify_chain(
    leaf: bytes,
    cabundle: Sequence[bytes],
    *,
    roots: Sequence[Root],
    at: datetime,
    made_at: datetime,
    links: ChainCache | None = None,
) -> Chain:
    """Verify that `leaf` chains to one of `roots` at the time `at`; raise UntrustedChain or ClockOutOfStep.

    `cabundle` runs from the root to the leaf's issuer. Its first entry only tells which of the chosen roots is meant:
    what anchors the path is ours. `made_at`, the document's own time, only tells the two errors apart. `links` makes
    it faster for chains whose upper part, or the whole of which, was found sound before; it changes no result.
    """
    root = _choose_root(cabundle[0] if cabundle else b"", roots)
    if links is not None:
        chain = _verify_remembered(root, (root.certificate, *cabundle[1:], leaf), links, at=at)
        if chain is not None:
            return chain
    certificates = [root.load()]
    certificates += [load_certificate(der, f"cabundle[{index}]") for index, der in enumerate(cabundle) if index]
    certificates.append(load_certificate(leaf, "certificate"))
    window = Window.of(certificates)
    moment = window.nearest(at)
    if not window.contains(moment):
        validate_path(certificates, at=window.nearest(made_at))  # raises unless time is all that is wrong
        raise _out_of_step(certificates, window, at)
    key = validate_path(certificates, at=moment)
    if links is not None:
        links.add(certificates)
    return _chain(root, certificates, key)


def _out_of_step(certificates: Sequence[ChainCertificate], window: Window, at: datetime) -> ClockOutOfStep:
    """Return the error for a sound chain at another time; the certificate that is named is the one that limits it."""
    early = at < window.not_before
    links = [certificate.link for certificate in certificates]
    limit = max(links, key=lambda c: c.not_before) if early else min(links, key=lambda c: c.not_after)
    clock, archive = "check this machine's clock", "for archived evidence give --at"
    if early:
        hint = clock
    elif at - window.not_after > STEP:
        hint = f"{archive}; else {clock}"
    else:
        hint = f"{clock}; {archive}"
    return ClockOutOfStep(
        f"the certificates are {'not yet' if early else 'no longer'} valid at the time given: that of "
        f"{escape(limit.subject)} is not",
        expected=str(window), actual=_text(at), hint=hint,
    )  # fmt: skip


def _verify_remembered(root: Root, path: tuple[bytes, ...], links: ChainCache, *, at: datetime) -> Chain | None:
    """Verify a path (DER, root first) below its longest head that is known to be sound; None if it must be done whole.

    None is no refusal. Whatever is not as it should be here is found again, and said, where nothing is remembered.
    """
    head = links.find(path)
    if not head:
        return None
    try:
        certificates = [*head, *(load_certificate(der, "certificate") for der in path[len(head) :])]
        window = Window.of(certificates)  # of the head too, at every use
        moment = window.nearest(at)
        if not window.contains(moment):
            return None
        if len(head) == len(path):
            return _chain(root, certificates, certificates[-1].key())
        key = validate_path(certificates, at=moment, sound=len(head))
    except UntrustedChain:
        return None
    links.add(certificates)
    return _chain(root, certificates, key)


def _chain(root: Root, certificates: Sequence[ChainCertificate], key: ec.EllipticCurvePublicKey) -> Chain:
    return Chain(root, tuple([certificate.link for certificate in reversed(certificates)]), key)


@dataclass(frozen=True, slots=True)
class Window:
    """The time in which every certificate of a chain is valid."""

    not_before: datetime
    not_after: datetime

    @classmethod
    def of(cls, certificates: Sequence[ChainCertificate]) -> Window:
        """Return the time in which all of these are valid; it is empty if they never are at once."""
        links = [certificate.link for certificate in certificates]
        return cls(max([link.not_before for link in links]), min([link.not_after for link in links]))

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
