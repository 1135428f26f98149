# SPDX-License-Identifier: MIT
"""Path validation: the plain form's few rules and cryptography's own verification come to the same verdict."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from attestation.chain import Window, aws_root
from attestation.chain_certificate import ChainCertificate, load_certificate
from attestation.chain_path import check_order, is_plain, validate_by_library, validate_path
from attestation.errors import UntrustedChain

from .documents import CA_USAGE, LEAF_USAGE, MADE_AT, Pki, make_pki, sign_tbs

NAMES = ("root", "regional", "zonal", "instance", "leaf")
SOUND = make_pki()


def _changed(name: str, form: dict[str, Any], **options: Any) -> Pki:
    changes: dict[str, Any] = {name: form, **options}
    return make_pki(**changes)


def _load(pki: Pki) -> list[ChainCertificate]:
    return [load_certificate(pki.certificates[name], name) for name in NAMES]


def _sound(path: list[ChainCertificate], *, at: datetime, by_library: bool) -> bool:
    try:
        if by_library:
            validate_by_library(path, at=at)
            path[-1].key()  # cryptography does not look at the leaf's
        else:
            validate_path(path, at=at)
    except UntrustedChain:
        return False
    return True


def _agree(path: list[ChainCertificate], *, at: datetime = MADE_AT) -> bool:
    """Whether the path is sound; both must say the same, and both look at times by themselves."""
    try:
        check_order(path)
    except UntrustedChain:
        return False  # refused before either
    verdict = _sound(path, at=at, by_library=False)
    assert verdict == _sound(path, at=at, by_library=True)
    return verdict


def test_a_sound_chain_is_plain_and_sound_by_either() -> None:
    path = _load(SOUND)
    assert is_plain(path, at=MADE_AT)
    assert _agree(path)
    assert aws_root().load().place is not None


_EXTENSIONS: dict[str, tuple[x509.ExtensionType, bool]] = {
    "name constraints": (x509.NameConstraints([x509.DNSName("example")], None), True),
    "EKU": (x509.ExtendedKeyUsage([x509.OID_SERVER_AUTH]), False),
    "unknown": (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\5\0"), False),
    "unknown, critical": (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\5\0"), True),
    "SAN": (x509.SubjectAlternativeName([x509.DNSName("a.example")]), False),
    "inhibit any policy": (x509.InhibitAnyPolicy(0), True),
    "CRL distribution points": (
        x509.CRLDistributionPoints(
            [x509.DistributionPoint([x509.UniformResourceIdentifier("http://a/" + "x" * 120)], None, None, None)]
        ),
        False,
    ),
    "issuer's key, by name only": (
        x509.AuthorityKeyIdentifier(None, [x509.DirectoryName(x509.Name([]))], 1), False,
    ),
    "issuer's key": (x509.AuthorityKeyIdentifier(bytes(20), None, None), False),
    "issuer's key, long": (x509.AuthorityKeyIdentifier(bytes(32), None, None), False),
    "issuer's key, critical": (x509.AuthorityKeyIdentifier(bytes(20), None, None), True),
}  # fmt: skip


@pytest.mark.parametrize("extension", _EXTENSIONS.values(), ids=_EXTENSIONS)
@pytest.mark.parametrize("name", NAMES)
def test_both_agree_on_a_chain_with_one_more_extension(name: str, extension: Any) -> None:
    _agree(_load(_changed(name, {"extensions": (extension,)})))


_FORMS = st.fixed_dictionaries(
    {},
    optional={
        "ca": st.booleans(),
        "path_length": st.none() | st.integers(0, 3) | st.sampled_from([127, 128, 70000]),
        "basic_constraints": st.booleans(),
        "basic_constraints_critical": st.booleans(),
        "usage": st.none()
        | st.sampled_from([CA_USAGE, LEAF_USAGE, ("crl_sign",), ("key_agreement", "decipher_only", "key_cert_sign")]),
        "usage_critical": st.booleans(),
        "key_identifiers": st.booleans(),
        "signed_by": st.just(ec.derive_private_key(99, ec.SECP384R1())),
        "after": st.sampled_from([timedelta(days=1), timedelta(days=9000), timedelta(seconds=-1)]),
    },
)


@given(name=st.sampled_from(NAMES), form=_FORMS)
def test_both_agree_on_a_chain_with_one_certificate_of_another_form(name: str, form: dict[str, Any]) -> None:
    _agree(_load(_changed(name, form, seed="forms")))


@given(
    name=st.sampled_from(NAMES),
    edits=st.lists(st.tuples(st.integers(0), st.integers(0, 255), st.integers(0, 2)), min_size=1, max_size=3),
)
def test_both_agree_on_a_chain_with_changed_bytes_that_the_issuer_signed(
    name: str, edits: list[tuple[int, int, int]]
) -> None:
    signer = SOUND.keys[NAMES[max(NAMES.index(name) - 1, 0)]]
    tbs = bytearray(load_certificate(SOUND.certificates[name], name).fields.signed)
    for place, value, kind in edits:
        offset = place % len(tbs)
        tbs[offset : offset + (kind > 0)] = bytes([value]) * (kind < 2)  # put in, changed, taken out
    changed = sign_tbs(bytes(tbs), signer)
    try:
        path = _load(Pki({**SOUND.certificates, name: changed}, SOUND.keys))
    except UntrustedChain:
        return  # no certificate for either
    _agree(path)


@given(seconds=st.integers(-2, 2), end=st.booleans(), microseconds=st.sampled_from([0, 1, 999_999]))
def test_both_agree_at_the_edge_of_validity(seconds: int, microseconds: int, *, end: bool) -> None:
    path = _load(SOUND)
    window = Window.of(path)
    at = (window.not_after if end else window.not_before) + timedelta(seconds=seconds, microseconds=microseconds)
    plain = _sound(path, at=at, by_library=False)
    assert plain == _sound(path, at=at, by_library=True)
    assert plain is (window.not_before <= at.replace(microsecond=0) <= window.not_after)


@pytest.mark.parametrize("sound", [1, 2, 3, 4])
def test_signatures_of_what_was_sound_before_are_taken_for_good(sound: int) -> None:
    stranger = ec.generate_private_key(ec.SECP384R1())
    for position, name in enumerate(NAMES[1:], start=1):
        path = _load(_changed(name, {"signed_by": stranger}))
        if position < sound:
            validate_path(path, at=MADE_AT, sound=sound)
        else:
            with pytest.raises(UntrustedChain, match=f"certificate {4 - position} of the chain is not signed"):
                validate_path(path, at=MADE_AT, sound=sound)
