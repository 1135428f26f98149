# SPDX-License-Identifier: MIT
"""The certificate chain: a sound one of Nitro's shape, a table of unsound ones, roots, and time."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.chain import AWS_ROOT_SHA256, CLOCK_LEEWAY, Chain, Root, aws_root, load_root, verify_chain
from attestation.errors import ClockOutOfStep, MalformedInput, UntrustedChain

from .documents import (
    MADE_AT,
    PLACEHOLDER,
    Pki,
    compress_key,
    duplicate_key_usage,
    from_year_zero,
    make_pki,
    replace_in_tbs,
)

SOUND = make_pki()
SECOND = timedelta(seconds=1)


def _verify(pki: Pki, *, at: datetime = MADE_AT, roots: list[Root] | None = None, **changes: Any) -> Chain:
    arguments = {"leaf": pki.leaf, "cabundle": pki.cabundle, "made_at": MADE_AT, **changes}
    leaf, cabundle = arguments.pop("leaf"), arguments.pop("cabundle")
    return verify_chain(leaf, cabundle, roots=[pki.root] if roots is None else roots, at=at, **arguments)


def test_a_sound_chain_gives_its_links_from_the_leaf_and_the_leafs_key() -> None:
    chain = _verify(SOUND)
    assert chain.root == SOUND.root
    assert [link.subject.partition(",")[0].partition(".")[0] for link in chain.links] == [
        "CN=i-0123456789abcdef0-enc0123456789abcdef", "CN=i-0123456789abcdef0", "CN=zonal", "CN=regional",
        "CN=development",
    ]  # fmt: skip
    assert chain.links[0].not_before == MADE_AT.replace(microsecond=0) - 3 * SECOND
    assert chain.key.public_numbers() == SOUND.keys["leaf"].public_key().public_numbers()


def test_any_of_several_chosen_roots_will_do() -> None:
    assert _verify(SOUND, roots=[aws_root(), make_pki().root, SOUND.root]).root == SOUND.root


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"instance": {"key_identifiers": True}}, id="instance with key identifier, as since 2022"),
        pytest.param({"leaf": {"usage_critical": True}}, id="critical key usage"),
        pytest.param({"zonal": {"path_length": None}}, id="no path length"),
        pytest.param(
            {
                "regional": {
                    "extensions": (
                        (
                            x509.CRLDistributionPoints(
                                [
                                    x509.DistributionPoint(
                                        [x509.UniformResourceIdentifier("http://crl.example/crl")], None, None, None
                                    )
                                ]
                            ),
                            False,
                        ),
                    )
                }
            },
            id="CRL distribution point, never fetched",
        ),
        pytest.param(
            {"leaf": {"extensions": ((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"x"), False),)}},
            id="unknown extension that is not critical",
        ),
    ],
)
def test_accepts(changes: Any) -> None:
    _verify(make_pki(**changes))


_UNKNOWN_CRITICAL = ((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\x05\x00"), True),)


def _v1(tbs: bytes) -> bytes:
    return replace_in_tbs(bytes.fromhex("a003020102"), b"")(tbs)


_STRANGER = ec.generate_private_key(ec.SECP384R1())
UNSOUND: dict[str, tuple[Mapping[str, Mapping[str, Any]], str]] = {
    "path length of the zonal certificate exceeded": ({"zonal": {"path_length": 0}}, "path length"),
    "path length of the regional certificate exceeded": ({"regional": {"path_length": 1}}, "path length"),
    "intermediate is no CA": ({"zonal": {"ca": False}}, "cA must be asserted"),
    "intermediate without basic constraints": ({"zonal": {"basic_constraints": False}}, "no basicConstraints"),
    "intermediate with basic constraints that are not critical": (
        {"zonal": {"basic_constraints_critical": False}}, "incorrect criticality",
    ),
    "intermediate without keyCertSign": ({"instance": {"usage": ("digital_signature",)}}, "keyCertSign"),
    "intermediate without key usage": ({"instance": {"usage": None}}, "29.15: .*missing"),
    "leaf is a CA": ({"leaf": {"ca": True}}, "the leaf is a CA"),
    "leaf without basic constraints": ({"leaf": {"basic_constraints": False}}, "29.19: .*missing"),
    "leaf with basic constraints that are not critical": (
        {"leaf": {"basic_constraints_critical": False}}, "incorrect criticality",
    ),
    "leaf without digitalSignature": ({"leaf": {"usage": ("content_commitment",)}}, "not for digital signatures"),
    "leaf without key usage": ({"leaf": {"usage": None}}, "29.15: .*missing"),
    "unknown critical extension in the leaf": ({"leaf": {"extensions": _UNKNOWN_CRITICAL}}, "critical extensions"),
    "unknown critical extension in a CA": ({"zonal": {"extensions": _UNKNOWN_CRITICAL}}, "critical extensions"),
    "duplicate extension in the leaf": (
        {"leaf": {"extensions": PLACEHOLDER, "edit": duplicate_key_usage}}, "Duplicate 2.5.29.15",
    ),
    "duplicate extension in a CA": (
        {"zonal": {"extensions": PLACEHOLDER, "edit": duplicate_key_usage}}, "Duplicate 2.5.29.15",
    ),
    "leaf key on P-256": ({"leaf": {"curve": ec.SECP256R1()}}, "not on P-384"),
    "leaf key on secp256k1": ({"leaf": {"curve": ec.SECP256K1()}}, "not on P-384"),
    "leaf key on brainpoolP384r1": ({"leaf": {"curve": ec.BrainpoolP384R1()}}, "not on P-384"),
    "CA key on P-256": ({"instance": {"curve": ec.SECP256R1()}}, "not on P-384"),
    "CA key on P-521": ({"instance": {"curve": ec.SECP521R1()}}, "not on P-384"),
    "leaf key in compressed form": ({"leaf": {"edit": compress_key}}, "uncompressed"),
    "CA key in compressed form": ({"zonal": {"edit": compress_key}}, "uncompressed"),
    "leaf signed with SHA-256": ({"leaf": {"hash": hashes.SHA256()}}, "not ecdsa-with-SHA384"),
    "CA signed with SHA-256": ({"zonal": {"hash": hashes.SHA256()}}, "not ecdsa-with-SHA384"),
    "CA signed with SHA-224": ({"zonal": {"hash": hashes.SHA224()}}, "not ecdsa-with-SHA384"),
    "leaf signed by a stranger": ({"leaf": {"signed_by": _STRANGER}}, "certificate 0 .* not signed by"),
    "CA signed by a stranger": ({"regional": {"signed_by": _STRANGER}}, "certificate 3 .* not signed by"),
    "leaf issued in another name": ({"leaf": {"issuer_name": "somebody.else"}}, "certificate 0 .* issued by another"),
    "CA issued in another name": ({"zonal": {"issuer_name": "somebody.else"}}, "certificate 2 .* issued by another"),
    "two CAs of one name": ({"zonal": {"name": "one"}, "regional": {"name": "one"}}, "same subject"),
    "version 1 certificate": ({"leaf": {"edit": _v1}}, "X509v3"),
    "CA that begins after another ended": (
        {"zonal": {"before": timedelta(days=-30), "after": timedelta(days=60)}}, "not valid at validation time",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "reason"), UNSOUND.values(), ids=UNSOUND.keys())
def test_refuses_an_unsound_chain(changes: Any, reason: str) -> None:
    with pytest.raises(UntrustedChain, match=reason) as refusal:
        _verify(make_pki(**changes))
    assert type(refusal.value) is UntrustedChain


@pytest.mark.parametrize(
    ("issuer", "subject"),
    [
        (b"\x0c\x16" + b"zonal.nitro-enclaves".ljust(22, b"."), b"\x13\x16" + b"zonal.nitro-enclaves".ljust(22, b".")),
        (b"\x0c\x14zonal.nitro-enclaves", b"\x0c\x14Zonal.nitro-enclaves"),
    ],
    ids=["another type of string", "another case"],
)
def test_a_name_in_another_encoding_is_another_name(issuer: bytes, subject: bytes) -> None:
    """RFC 5280 7.1 would let some such names match; bytes that differ never do here."""
    plain = b"\x0c" + bytes([len(issuer) - 2]) + issuer[2:]
    pki = make_pki(
        zonal={"name": issuer[2:].decode(), "edit": lambda tbs: tbs.replace(plain, subject)},
        instance={"edit": lambda tbs: tbs.replace(plain, issuer)},
    )
    assert subject in pki.certificates["zonal"]
    assert issuer in pki.certificates["instance"]
    with pytest.raises(UntrustedChain, match="certificate 1 of the chain was issued by another"):
        _verify(pki)


def test_the_edits_of_the_factory_leave_a_certificate_sound_that_they_do_not_change() -> None:
    _verify(make_pki(leaf={"edit": bytes, "extensions": PLACEHOLDER}, zonal={"edit": bytes}))


_BUNDLES: dict[str, Any] = {
    "empty": lambda b: [],
    "root only": lambda b: b[:1],
    "zonal missing": lambda b: [b[0], b[1], b[3]],
    "regional missing": lambda b: [b[0], b[2], b[3]],
    "instance missing": lambda b: b[:3],
    "order swapped": lambda b: [b[0], b[2], b[1], b[3]],
    "order reversed": lambda b: b[::-1],
    "root missing": lambda b: b[1:],
    "root twice": lambda b: [b[0], *b],
    "one twice": lambda b: [*b, b[3]],
    "another chain's instance": lambda b: [*b[:3], make_pki().cabundle[3]],
    "another root in its place": lambda b: [make_pki().cabundle[0], *b[1:]],
    "junk in its place": lambda b: [b"junk", *b[1:]],
    "junk within": lambda b: [b[0], b"junk", *b[2:]],
    "an entry with a byte more": lambda b: [b[0], b[1] + b"\0", *b[2:]],
    "an entry with a bit flipped": lambda b: [b[0], b[1][:-1] + bytes([b[1][-1] ^ 1]), *b[2:]],
    "a stranger's CA besides": lambda b: [*b[:1], make_pki().cabundle[1], *b[1:]],
}


@pytest.mark.parametrize("change", _BUNDLES.values(), ids=_BUNDLES.keys())
def test_refuses_another_cabundle(change: Any) -> None:
    with pytest.raises(UntrustedChain):
        _verify(SOUND, cabundle=change(SOUND.cabundle))


def test_refuses_a_leaf_of_another_chain_and_junk_for_a_leaf() -> None:
    for leaf in (make_pki().leaf, b"junk", SOUND.leaf + b"\0", SOUND.certificates["instance"]):
        with pytest.raises(UntrustedChain):
            _verify(SOUND, leaf=leaf)


def test_an_attackers_whole_chain_is_refused_though_it_brings_its_own_root() -> None:
    with pytest.raises(UntrustedChain, match="a root that was not chosen"):
        _verify(make_pki(), roots=[SOUND.root])


def test_a_chain_under_an_attackers_root_that_copies_the_chosen_roots_certificate_is_refused() -> None:
    attacker = make_pki()
    with pytest.raises(UntrustedChain):
        _verify(attacker, cabundle=[SOUND.cabundle[0], *attacker.cabundle[1:]], roots=[SOUND.root])


def test_no_roots_trust_nothing() -> None:
    with pytest.raises(UntrustedChain, match="no root at all"):
        _verify(SOUND, roots=[])


def test_many_cas_of_one_key_and_name_are_refused_without_trying_every_path() -> None:
    bundle = [SOUND.cabundle[0], *[SOUND.cabundle[1]] * 7]
    with pytest.raises(UntrustedChain):
        _verify(SOUND, cabundle=bundle)


LEAF_BEGINS = MADE_AT.replace(microsecond=0) - timedelta(seconds=3)
LEAF_ENDS = MADE_AT.replace(microsecond=0) + timedelta(hours=3)


@pytest.mark.parametrize("at", [LEAF_BEGINS, LEAF_ENDS, LEAF_BEGINS - CLOCK_LEEWAY, LEAF_ENDS + CLOCK_LEEWAY])
def test_a_clock_that_is_off_by_no_more_than_the_leeway_will_do(at: datetime) -> None:
    _verify(SOUND, at=at)


@pytest.mark.parametrize(
    ("at", "message", "hint"),
    [
        (LEAF_BEGINS - CLOCK_LEEWAY - SECOND, "not yet valid", "clock"),
        (LEAF_ENDS + CLOCK_LEEWAY + SECOND, "no longer valid", "--at"),
        (MADE_AT - timedelta(days=3000), "not yet valid", "clock"),
        (LEAF_ENDS + timedelta(hours=1), "no longer valid", "check this machine's clock; for archived evidence"),
        (MADE_AT + timedelta(days=30000), "no longer valid", "for archived evidence give --at; else check"),
        (datetime.max.replace(tzinfo=MADE_AT.tzinfo), "no longer valid", "--at"),
        (datetime.min.replace(tzinfo=MADE_AT.tzinfo), "not yet valid", "clock"),
    ],
)
def test_a_clock_that_is_further_off_is_told_apart(at: datetime, message: str, hint: str) -> None:
    with pytest.raises(ClockOutOfStep, match=message) as refusal:
        _verify(SOUND, at=at)
    assert hint in str(refusal.value.hint)


def test_an_expired_ca_is_a_matter_of_time_too() -> None:
    pki = make_pki(instance={"after": timedelta(hours=1)})
    _verify(pki)
    with pytest.raises(ClockOutOfStep, match="no longer valid"):
        _verify(pki, at=MADE_AT + timedelta(hours=2))


def test_an_unsound_chain_at_another_time_is_not_excused_by_the_clock() -> None:
    for changes in ({"zonal": {"path_length": 0}}, {"leaf": {"signed_by": _STRANGER}}):
        with pytest.raises(UntrustedChain) as refusal:
            _verify(make_pki(**changes), at=MADE_AT + timedelta(days=2))
        assert not isinstance(refusal.value, ClockOutOfStep)


def test_a_chain_that_was_not_valid_at_the_documents_own_time_is_not_excused_by_the_clock() -> None:
    with pytest.raises(UntrustedChain) as refusal:
        _verify(SOUND, at=MADE_AT + timedelta(days=2), made_at=MADE_AT + timedelta(days=1))
    assert not isinstance(refusal.value, ClockOutOfStep)


# Roots


@pytest.mark.parametrize("name", ["regional", "zonal", "instance", "leaf"])
def test_refuses_a_certificate_of_the_year_zero_whoever_signed_it(name: str) -> None:
    with pytest.raises(UntrustedChain, match="is out of range"):
        _verify(make_pki(**{name: {"edit": from_year_zero}}))


def test_the_root_of_aws_is_the_published_one() -> None:
    root = aws_root()
    assert root.fingerprint == AWS_ROOT_SHA256
    assert "CN=aws.nitro-enclaves" in root.name
    assert not root.development


def _pem(der: bytes) -> bytes:
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)


def test_any_other_root_is_for_development() -> None:
    root = load_root(_pem(SOUND.certificates["root"]))
    assert root.development
    assert load_root(SOUND.certificates["root"]) == root
    assert load_root(b"0 s:CN = what openssl says before it\n" + _pem(SOUND.certificates["root"])) == root


@pytest.mark.parametrize(
    "pem",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", id="nothing within"),
        pytest.param(b"x" * 20_000, id="too long"),
        pytest.param(SOUND.certificates["root"][:-1], id="cut DER"),
        pytest.param(SOUND.certificates["root"] + b"\0", id="DER and more"),
        pytest.param(_pem(SOUND.certificates["root"]) * 2, id="two"),
        pytest.param(_pem(SOUND.certificates["regional"]), id="not self-signed"),
        pytest.param(_pem(make_pki(root={"ca": False}).certificates["root"]), id="no CA"),
        pytest.param(_pem(make_pki(root={"basic_constraints": False}).certificates["root"]), id="no constraints"),
        pytest.param(_pem(make_pki(root={"curve": ec.SECP256R1()}).certificates["root"]), id="P-256"),
        pytest.param(_pem(make_pki(root={"hash": hashes.SHA256()}).certificates["root"]), id="SHA-256"),
        pytest.param(_pem(make_pki(root={"signed_by": _STRANGER}).certificates["root"]), id="signed by a stranger"),
        pytest.param(_pem(make_pki(root={"edit": from_year_zero}).certificates["root"]), id="year zero"),
    ],
)
def test_load_root_refuses(pem: bytes) -> None:
    with pytest.raises(MalformedInput, match="root: "):
        load_root(pem)
