# SPDX-License-Identifier: MIT
"""One certificate of a chain: parsed whole, and with the algorithms that Nitro's have (P-384, ECDSA with SHA-384).

Most have the plain form of all that Nitro's are: then what RFC 5280 wants to know of each is its place (`Place`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID
from cryptography.x509.verification import Store

from .der import Fields, read_fields, read_plain_name
from .errors import UntrustedChain, escape
from .panics import reraise_interrupt
from .plain_certificate import ECDSA_SHA384, Place, read_place

# RFC 5480 2: SubjectPublicKeyInfo of a named curve, secp384r1, up to an uncompressed point's first byte.
_P384_KEY = bytes.fromhex("3076301006072a8648ce3d020106052b8104002203620004")
_P384_KEY_SIZE = 0x78  # bytes

# Extensions that say nothing of any certificate below but by its depth. Policies and whatever is unknown may: a chain
# with one is checked whole every time.
_OF_ITSELF = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.CRL_DISTRIBUTION_POINTS,
    }
)


@dataclass(frozen=True, slots=True)
class Link:
    """One certificate of a verified chain, as it is told to a reader."""

    subject: str  # RFC 4514
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True)
class ChainCertificate:
    """A parsed certificate. Nothing vouches for it yet."""

    der: bytes = field(repr=False)
    parsed: x509.Certificate = field(repr=False)
    fields: Fields = field(repr=False)
    link: Link
    place: Place | None  # None: not plain, so not for a simple rule to say
    _anchor: Store | None = field(default=None, init=False, repr=False, compare=False)

    def anchor(self) -> Store:
        """Return the store with this one anchor, made once: cryptography keeps the key that it read with it."""
        if self._anchor is None:
            object.__setattr__(self, "_anchor", Store([self.parsed]))
        assert self._anchor is not None
        return self._anchor

    def key(self) -> ec.EllipticCurvePublicKey:
        """Return the public key, read once; raise UntrustedChain if it is no point of P-384."""
        try:
            key = self.parsed.public_key()
        except BaseException as error:  # ValueError, UnsupportedAlgorithm
            reraise_interrupt(error)
            raise UntrustedChain(
                f"the key of {escape(self.link.subject)} cannot be read", expected="a point of P-384", actual=error
            ) from error
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise UntrustedChain(
                f"the key of {escape(self.link.subject)} is not on P-384", expected="an EC key",
                actual=type(key).__name__,
            )  # fmt: skip
        return key

    @property
    def signature(self) -> bytes:
        """The issuer's signature over `fields.signed` (DER of r and s), of a plain certificate."""
        return self.fields.signature[3:]  # behind tag, length and the number of unused bits

    @property
    def speaks_of_itself(self) -> bool:
        """Whether it constrains what is below it by the depth alone."""
        return self.place is not None or all(extension.oid in _OF_ITSELF for extension in self.parsed.extensions)

    @property
    def name(self) -> object:
        """What equals another certificate's where their subjects say the same, in whatever string types."""
        text = self.link.subject
        return self.parsed.subject if "+" in text else text  # `+`: several values, whose order says nothing

    @property
    def issuer_name(self) -> str:
        """The issuer's name for a message."""
        try:
            return self.parsed.issuer.rfc4514_string()
        except BaseException as error:  # ValueError, UnicodeDecodeError
            reraise_interrupt(error)
            return self.fields.issuer.hex()


def load_certificate(der: bytes, place: str) -> ChainCertificate:
    """Parse a certificate and check its algorithms; raise UntrustedChain, naming the place."""
    try:
        parsed = x509.load_der_x509_certificate(der)
        fields = read_fields(der)
        # What is not plain is read here since cryptography parses it when first read. The issuer's name is not: to be
        # of use it has to be, byte for byte, the subject of the next certificate. DER has a year 0, datetime has not.
        name = read_plain_name(fields.subject) or parsed.subject.rfc4514_string()
        link = Link(name, parsed.not_valid_before_utc, parsed.not_valid_after_utc)
        plain = read_place(fields, before=link.not_before, after=link.not_after)
        if plain is None:
            parsed.extensions  # noqa: B018
    except BaseException as error:  # ValueError, InvalidVersion, UnsupportedAlgorithm, DuplicateExtension, ...
        reraise_interrupt(error)
        raise UntrustedChain(f"{place}: no X.509 certificate", expected="one, in DER", actual=error) from error
    try:
        check_algorithms(parsed, fields)
    except BaseException as error:
        reraise_interrupt(error)
        raise UntrustedChain(
            f"{place}: wrong algorithms", expected="P-384, and ECDSA with SHA-384", actual=error
        ) from error
    return ChainCertificate(der, parsed, fields, link, plain)


def check_algorithms(certificate: x509.Certificate, fields: Fields) -> None:
    """Check that key and signature of a certificate are P-384 and ECDSA with SHA-384; raise ValueError.

    Whether the point is on the curve is seen when the key is loaded, which is before it verifies anything.
    """
    if fields.algorithm != ECDSA_SHA384:
        raise ValueError(f"signature algorithm is not ecdsa-with-SHA384 but {certificate.signature_algorithm_oid}")
    if fields.key.startswith(_P384_KEY) and len(fields.key) == _P384_KEY_SIZE:
        return
    public = certificate.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP384R1):
        raise ValueError("key is not on P-384")
    raise ValueError("key is not encoded as a named curve and an uncompressed point")
