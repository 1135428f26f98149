# SPDX-License-Identifier: MIT
"""Path validation (RFC 5280 6.1) of certificates that stand in one known order, root first.

A path whose certificates all have Nitro's plain form is judged here: its rules are few, and each signature is verified,
by cryptography's ECDSA, over the very bytes that came. Any other path is left to cryptography's X.509 verification.
Its web profile asks for what Nitro's certificates lack (SAN, EKU, key identifiers), so policies of our own stand in;
what it leaves out of RFC 5280 (constraints on directory names, policies, what a leaf may say) is refused wherever a
certificate has it. What is found sound here cryptography finds sound too: tests hold the two against each other. No
revocation is fetched: AWS's guide says to switch it off, and certificates live for hours.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, PolicyBuilder

from .chain_certificate import ChainCertificate
from .errors import UntrustedChain
from .panics import reraise_interrupt

# cryptography's own policy for a CA: critical basic constraints that say so, a path length that is kept, keyCertSign,
# no critical extension that it does not know. permit_all() would drop those. _check_leaf has what else a leaf must be.
_CA_POLICY = ExtensionPolicy.webpki_defaults_ca()
_LEAF_POLICY = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.CRITICAL, None)
    .require_present(x509.KeyUsage, Criticality.AGNOSTIC, None)
)


# What a path has to be judged by wherever it stands (RFC 5280 6.1.3 and 6.1.4), critical or not, and cryptography does
# not: of names it only knows those of a SAN, of policies none.
_CONSTRAINTS = frozenset(
    {
        ExtensionOID.NAME_CONSTRAINTS,
        ExtensionOID.POLICY_CONSTRAINTS,
        ExtensionOID.POLICY_MAPPINGS,
        ExtensionOID.INHIBIT_ANY_POLICY,
    }
)
_FIRST_YEAR = 1950  # of a UTCTime, which RFC 5280 4.1.2.5 demands for all dates before 2050
_MAY_BE_CRITICAL = frozenset({ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE})  # cryptography takes more


def validate_path(
    certificates: Sequence[ChainCertificate], *, at: datetime, sound: int = 1
) -> ec.EllipticCurvePublicKey:
    """Validate a path, root first, at a time; return the leaf's key, or raise UntrustedChain.

    The first is the trust anchor. `sound` of them were found sound together before, in a path of this length; their
    signatures are not verified again.
    """
    check_order(certificates)
    if is_plain(certificates, at=at):
        _verify_signatures(certificates, sound)
    else:
        validate_by_library(certificates[sound - 1 :], at=at)
    return certificates[-1].key()


def check_order(certificates: Sequence[ChainCertificate]) -> None:
    """Check that each certificate (root first) names the one before as its issuer, and no two have one name.

    With that there is one path at most: cryptography has no budget for the paths that it tries.
    """
    for position, (issuer, certificate) in enumerate(pairwise(certificates), start=1):
        if certificate.fields.issuer != issuer.fields.subject:
            raise UntrustedChain(
                f"certificate {len(certificates) - 1 - position} of the chain was issued by another than the next one",
                expected=certificate.issuer_name or "an empty name",
                actual=issuer.link.subject
                + (" in another encoding" if issuer.link.subject == certificate.issuer_name else ""),
            )
    if len({certificate.name for certificate in certificates}) != len(certificates):
        raise UntrustedChain(
            "two certificates of the chain have the same subject",
            expected="a name of its own for each",
            actual=", ".join(certificate.link.subject for certificate in certificates),
        )


def is_plain(certificates: Sequence[ChainCertificate], *, at: datetime) -> bool:
    """Whether a path in order is sound but for its signatures, by the few rules that the plain form needs.

    False is no refusal: whatever else it may be, cryptography is to say.
    """
    last = len(certificates) - 1
    for position, certificate in enumerate(certificates):
        link, place = certificate.link, certificate.place
        if place is None or not link.not_before <= at <= link.not_after:
            return False
        if place.authority is (position == last) or place.depth < last - 1 - position:
            return False
    return True


def _verify_signatures(certificates: Sequence[ChainCertificate], sound: int) -> None:
    for position in range(sound, len(certificates)):
        issuer, certificate = certificates[position - 1], certificates[position]
        key = issuer.key()
        try:
            key.verify(certificate.signature, certificate.fields.signed, ec.ECDSA(hashes.SHA384()))
        except BaseException as error:  # InvalidSignature, ValueError
            reraise_interrupt(error)
            raise UntrustedChain(
                f"certificate {len(certificates) - 1 - position} of the chain is not signed by the next one",
                expected=f"a signature by the key of {issuer.link.subject}",
                actual="one by another key, or over other bytes",
            ) from error


def validate_by_library(certificates: Sequence[ChainCertificate], *, at: datetime) -> None:
    """Validate a path of any form by cryptography's X.509 verification; raise UntrustedChain."""
    leaf, *intermediates, anchor = [certificate.parsed for certificate in reversed(certificates)]
    try:
        verifier = (
            PolicyBuilder()
            .store(certificates[0].anchor())
            .time(at)
            .max_chain_depth(len(intermediates))
            .extension_policies(ca_policy=_CA_POLICY, ee_policy=_LEAF_POLICY)
            .build_client_verifier()
        )
        verified = verifier.verify(leaf, intermediates)
        for certificate in certificates:
            _check_contents(certificate.parsed)
        _check_leaf(leaf)
    except BaseException as error:  # VerificationError; on malformed certificates also ValueError and others
        reraise_interrupt(error)
        raise UntrustedChain(
            "the certificates do not form a valid chain", expected="a path as RFC 5280 6.1 wants it", actual=error
        ) from error
    if verified.chain != [leaf, *intermediates, anchor]:
        raise UntrustedChain(
            "the chain that was validated is not the whole cabundle", expected=f"{len(certificates)} certificates",
            actual=f"{len(verified.chain)} of them, or others",
        )  # fmt: skip


def _check_contents(certificate: x509.Certificate) -> None:
    """Check serial number and dates, and that nothing is asked for that is not done here; raise ValueError."""
    if certificate.serial_number <= 0:  # RFC 5280 4.1.2.2
        raise ValueError("the serial number is not positive")
    if certificate.not_valid_before_utc.year < _FIRST_YEAR:
        raise ValueError(f"it begins before {_FIRST_YEAR}")
    for extension in certificate.extensions:
        name = extension.oid.dotted_string
        if extension.critical and extension.oid not in _MAY_BE_CRITICAL:
            raise ValueError(f"critical extension {name}")
        if extension.oid in _CONSTRAINTS:
            raise ValueError(f"extension {name} constrains names or policies")
        if (
            isinstance(extension.value, x509.ExtendedKeyUsage)
            and ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in extension.value
        ):
            raise ValueError(f"extension {name} allows other purposes only")  # none is that of signing documents


def _check_leaf(leaf: x509.Certificate) -> None:
    """Check that a leaf has a name, is no CA and signs data alone; raise ValueError."""
    if not leaf.subject.rdns:
        raise ValueError("the leaf has no name")
    if leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
        raise ValueError("the leaf is a CA")
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    if not usage.digital_signature:
        raise ValueError("the leaf's key is not for digital signatures")
    if usage.key_cert_sign:  # RFC 5280 4.2.1.9: never without cA
        raise ValueError("the leaf's key is for certificates too")
