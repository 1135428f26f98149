# SPDX-License-Identifier: MIT
"""Bad evidence, whole documents through the whole verifier: each is refused, with the right slug.

The table is what public verifiers of such documents have been found to accept, or test that they refuse. Whatever can
be signed is signed by the sound chain's own leaf, so that nothing but the defect itself can be the reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from attestation.binding import Binding, Purpose
from attestation.errors import AttestationError
from attestation.expectations import Expectations, ImageIs, NonceIs, PolicyIs, PublicKeyIs, RegisterIs
from attestation.limits import MAX_DOCUMENT
from attestation.measurements import ZERO_PCR, extend
from attestation.verifier import verify

from .documents import (
    DEBUG,
    ES384_HEADER,
    IMAGE,
    MADE_AT,
    NITRO_FORMS,
    NONCE,
    OTHER_IMAGE,
    P384_ORDER,
    PLACEHOLDER,
    POLICY_HASH,
    PUBLIC_KEY,
    compress_key,
    duplicate_key_usage,
    from_year_zero,
    make_certificate,
    make_document,
    make_envelope,
    make_fields,
    make_map,
    make_payload,
    make_pcrs,
    make_pki,
    make_qemu_document,
    malleate,
    sign,
)

PKI = make_pki()
ROOTS = [PKI.root]
LEAF = PKI.keys["leaf"]
FIELDS = make_fields(PKI)
PAYLOAD = make_payload(FIELDS)
SOUND = make_envelope(PAYLOAD, LEAF)
SIGNATURE = sign(PAYLOAD, LEAF)
EXPECTED = Expectations.of(NonceIs(NONCE), ImageIs.any_of([IMAGE]), PolicyIs(POLICY_HASH), PublicKeyIs(PUBLIC_KEY))
REQUIRED = ("module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle")
OTHER_HASH = hashlib.sha256(b"another policy").digest()


def _verify(document: bytes) -> object:
    return verify(document, expected=EXPECTED, at=MADE_AT, roots=ROOTS)


def _envelope(*parts: Any) -> bytes:
    return cbor2.dumps(list(parts))


def _headed(header: Any, **changes: Any) -> bytes:
    return make_envelope(PAYLOAD, LEAF, protected=cbor2.dumps(header), **changes)


def _signed(payload: bytes) -> bytes:
    return make_envelope(payload, LEAF)


def _raw_field(name: str, raw: bytes, *, indefinite: bool = False) -> bytes:
    entries = [(cbor2.dumps(k), raw if k == name else cbor2.dumps(v)) for k, v in FIELDS.items()]
    return _signed(make_map(entries, indefinite=indefinite))


def _with(**changes: Any) -> bytes:
    return make_document(PKI, **changes)


def _bundle(cabundle: list[bytes]) -> bytes:
    return _with(cabundle=cabundle)


def _flipped(der: bytes) -> bytes:
    return der[:-1] + bytes([der[-1] ^ 1])


def _entries(items: Iterable[tuple[Any, Any]]) -> list[tuple[bytes, bytes]]:
    return [(cbor2.dumps(key), cbor2.dumps(value)) for key, value in items]


_OPEN_PCRS = make_map(_entries(make_pcrs().items()), indefinite=True)
_DUPLICATE_PCRS = make_map(_entries([(0, bytes(48)), (1, bytes(48)), (2, bytes(48)), (0, bytes(48))]))

MALFORMED: dict[str, bytes] = {
    # COSE
    "empty": b"",
    "not an array": cbor2.dumps({1: 2}),
    "array of three": _envelope(ES384_HEADER, {}, PAYLOAD),
    "array of five": _envelope(ES384_HEADER, {}, PAYLOAD, SIGNATURE, SIGNATURE),
    "protected header missing": _envelope(None, {}, PAYLOAD, SIGNATURE),
    "protected header empty": _headed({}),
    "protected header of no bytes": _envelope(b"", {}, PAYLOAD, SIGNATURE),
    "payload missing": _envelope(ES384_HEADER, {}, None, SIGNATURE),
    "payload empty": make_envelope(b"", LEAF),
    "signature missing": _envelope(ES384_HEADER, {}, PAYLOAD, None),
    "signature empty": _envelope(ES384_HEADER, {}, PAYLOAD, b""),
    "signature of 95 bytes": _envelope(ES384_HEADER, {}, PAYLOAD, SIGNATURE[:-1]),
    "signature of 97 bytes": _envelope(ES384_HEADER, {}, PAYLOAD, SIGNATURE + b"\0"),
    "algorithm ES256 named": _headed({1: -7}, signature=SIGNATURE[:64]),
    "algorithm ES512 named": _headed({1: -36}, signature=SIGNATURE + bytes(36)),
    "algorithm HMAC named": _headed({1: 5}),
    "algorithm of text": _headed({1: "ES384"}),
    "algorithm of unknown text": _headed({1: "ES999"}),
    "algorithm of bytes": _headed({1: b"ES384"}),
    "algorithm in the unprotected header only": make_envelope(
        PAYLOAD, LEAF, protected=cbor2.dumps({}), unprotected={1: -35}
    ),
    "unprotected header used": make_envelope(PAYLOAD, LEAF, unprotected={4: b"key id"}),
    "critical header": _headed({1: -35, 2: [3]}),
    "protected attribute added and signed": _headed({1: -35, 3: 0}),
    "protected attribute added after signing": _headed({1: -35, 3: 0}, signature=SIGNATURE),
    "protected attribute removed after signing": _headed({}, signature=SIGNATURE),
    "wrong tag": make_envelope(PAYLOAD, LEAF, tag=b"\xd1"),
    "COSE_Sign1 under the tag of COSE_Sign": make_envelope(PAYLOAD, LEAF, tag=b"\xd8\x62"),
    "COSE_Sign": cbor2.dumps([ES384_HEADER, {}, PAYLOAD, [[ES384_HEADER, {}, SIGNATURE]]]),
    "longer than the limit": SOUND + bytes(MAX_DOCUMENT),
    # CBOR
    "reserved additional information 28": _raw_field("nonce", b"\x5c\x00"),
    "reserved additional information 29": _raw_field("nonce", b"\x5d\x00"),
    "reserved additional information 30": _raw_field("nonce", b"\x5e\x00"),
    "bare break": _raw_field("nonce", b"\xff"),
    "break missing": _signed(make_payload(FIELDS, indefinite=True)[:-1]),
    "odd number of items in an open map": _signed(make_payload(FIELDS, indefinite=True)[:-1] + b"\x61x\xff"),
    "chunks of the wrong type": _raw_field("nonce", b"\x5f\x61x\xff"),
    "text in chunks of bytes": _raw_field("module_id", b"\x7f\x41x\xff"),
    "nonce in chunks": _raw_field("nonce", b"\x5f\x50" + NONCE[:16] + b"\x50" + NONCE[16:] + b"\xff"),
    "truncated length": _signed(PAYLOAD[:-34] + b"\x58"),
    "length past the end": _signed(PAYLOAD[:-34] + b"\x58\x21" + NONCE),
    "bytes after the array": SOUND + b"\0",
    "second document after the array": SOUND + SOUND,
    "bytes after the payload map": _signed(PAYLOAD + b"\0"),
    "bytes after the break": _signed(make_payload(FIELDS, indefinite=True) + b"\0"),
    "duplicate key": _signed(make_map(_entries([*FIELDS.items(), ("nonce", b"")]))),
    "duplicate key in an open map": _signed(make_map(_entries([*FIELDS.items(), ("nonce", b"")]), indefinite=True)),
    "duplicate register": _raw_field("pcrs", _DUPLICATE_PCRS),
    "nesting": _raw_field("nonce", b"\x81" * 4000 + b"\0"),
    "huge count of an array": _raw_field("cabundle", b"\x9b" + b"\xff" * 8),
    "huge count of a map": _raw_field("pcrs", b"\xbb" + b"\xff" * 8),
    "huge length of a byte string": _raw_field("nonce", b"\x5b" + b"\xff" * 8),
    "unknown key": _signed(make_payload({**FIELDS, "extra": 1})),
    "unknown key in an open map": _signed(make_payload({**FIELDS, "extra": 1}, indefinite=True)),
    "reordered keys": _signed(make_payload(dict(reversed(FIELDS.items())))),
    "open registers in a definite map": _raw_field("pcrs", _OPEN_PCRS),
    "open registers in an open map": _raw_field("pcrs", _OPEN_PCRS, indefinite=True),
    "open cabundle": _raw_field("cabundle", b"\x9f" + b"".join(map(cbor2.dumps, PKI.cabundle)) + b"\xff"),
    "integer in a longer form": _raw_field("timestamp", b"\x1b" + bytes(7) + b"\x01"),
    "tagged field": _raw_field("nonce", b"\xd8\x40" + cbor2.dumps(NONCE)),
    "payload wrapped once more": _signed(cbor2.dumps(PAYLOAD)),
    # Document
    "module id empty": _with(module_id=""),
    "digest SHA256": _with(digest="SHA256"),
    "timestamp 0": _with(timestamp=0),
    "no registers": _with(pcrs={}),
    "33 registers": _with(pcrs={index: bytes(48) for index in range(33)}),
    "register 32": _with(pcrs=make_pcrs(pcr32=bytes(48))),
    "register of 32 bytes": _with(pcrs=make_pcrs(pcr3=bytes(32))),
    "register of 64 bytes": _with(pcrs=make_pcrs(pcr3=bytes(64))),
    "PCR2 missing": _with(pcrs=make_pcrs(pcr2=None)),
    "cabundle empty": _with(cabundle=[]),
    "cabundle with an entry of 1,025 bytes": _bundle([*PKI.cabundle[:3], bytes(1025)]),
    "cabundle of nine": _bundle([*PKI.cabundle, *PKI.cabundle, PKI.cabundle[0]]),
    "cabundle with an empty entry": _with(cabundle=[PKI.cabundle[0], b""]),
    "certificate empty": _with(certificate=b""),
    "certificate of 1,025 bytes": _with(certificate=bytes(1025)),
    "public key empty": _with(public_key=b""),
    "public key of 1,025 bytes": _with(public_key=bytes(1025)),
    "user data of 1,025 bytes": _with(user_data=bytes(1025)),
    "nonce of 1,025 bytes": _with(nonce=bytes(1025)),
    **{f"{name} null": _with(**{name: None}) for name in REQUIRED},
    **{f"{name} missing": _signed(make_payload({k: v for k, v in FIELDS.items() if k != name})) for name in REQUIRED},
    "NitroTPM's registers": _signed(
        make_payload({("nitrotpm_pcrs" if k == "pcrs" else k): v for k, v in FIELDS.items()})
    ),
}  # fmt: skip

_OTHER = make_pki()
_UNKNOWN = ((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\x05\x00"), True),)
OTHER_DEFECTS: dict[str, tuple[str, bytes]] = {
    # Chain
    "an attacker's whole chain": ("untrusted-chain", make_document(_OTHER)),
    "cabundle[0] replaced by an attacker's root": (
        "untrusted-chain", _bundle([_OTHER.cabundle[0], *PKI.cabundle[1:]]),
    ),
    "an attacker's chain that begins with the chosen root": (
        "untrusted-chain",
        make_document(_OTHER, cabundle=[PKI.cabundle[0], *_OTHER.cabundle[1:]]),
    ),
    "cabundle swapped": ("untrusted-chain", _bundle([PKI.cabundle[n] for n in (0, 2, 1, 3)])),
    "cabundle entry corrupted": ("untrusted-chain", _bundle([*PKI.cabundle[:3], _flipped(PKI.cabundle[3])])),
    "cabundle entry missing": ("untrusted-chain", _bundle(PKI.cabundle[:3])),
    "leaf is the instance's CA": ("untrusted-chain", _with(certificate=PKI.cabundle[3])),
    "leaf is junk": ("untrusted-chain", _with(certificate=b"\x30\x00")),
    # Signature
    "signed by another key": ("bad-signature", make_envelope(PAYLOAD, _OTHER.keys["leaf"])),
    "signed by the instance's CA": ("bad-signature", make_envelope(PAYLOAD, PKI.keys["instance"])),
    "signature of zeros": ("bad-signature", make_envelope(PAYLOAD, LEAF, signature=bytes(96))),
    "signature of ones": ("bad-signature", make_envelope(PAYLOAD, LEAF, signature=b"\xff" * 96)),
    "r and s swapped": ("bad-signature", make_envelope(PAYLOAD, LEAF, signature=SIGNATURE[48:] + SIGNATURE[:48])),
    "r negated, not s": (
        "bad-signature",
        make_envelope(PAYLOAD, LEAF, signature=malleate(SIGNATURE[48:] + SIGNATURE[:48])[48:] + SIGNATURE[48:]),
    ),
    "payload changed": ("bad-signature", SOUND.replace(NONCE, NONCE[::-1])),
    "signature over the payload alone": (
        "bad-signature", make_envelope(PAYLOAD, LEAF, signature=sign(PAYLOAD, LEAF, protected=b"")),
    ),
    "QEMU's unsigned document": ("unsigned-evidence", make_qemu_document()),
    # Debug mode, image, nonce, key, policy
    "debug mode": ("debug-evidence", _with(pcrs=make_pcrs(DEBUG))),
    "PCR0 alone zero": ("debug-evidence", _with(pcrs=make_pcrs(pcr0=ZERO_PCR))),
    "PCR2 alone zero": ("debug-evidence", _with(pcrs=make_pcrs(pcr2=ZERO_PCR))),
    "another image": ("measurement-mismatch", _with(pcrs=make_pcrs(OTHER_IMAGE))),
    "PCR0 right, PCR1 not": ("measurement-mismatch", _with(pcrs=make_pcrs(pcr1=OTHER_IMAGE.pcr0))),
    "nonce absent": ("nonce-mismatch", _with(nonce=None)),
    "nonce empty": ("nonce-mismatch", _with(nonce=b"")),
    "another nonce": ("nonce-mismatch", _with(nonce=bytes(32))),
    "nonce with a byte more": ("nonce-mismatch", _with(nonce=NONCE + b"\0")),
    "public key absent": ("key-mismatch", _with(public_key=None)),
    "another public key": ("key-mismatch", _with(public_key=PUBLIC_KEY[:-1] + b"\0")),
    "PCR16 not locked": ("policy-mismatch", _with(pcrs=make_pcrs(policy_hash=None))),
    "PCR16 zero": ("policy-mismatch", _with(pcrs=make_pcrs(pcr16=ZERO_PCR))),
    "PCR16 of another policy": ("policy-mismatch", _with(pcrs=make_pcrs(policy_hash=OTHER_HASH))),
    "PCR16 extended twice": (
        "policy-mismatch", _with(pcrs=make_pcrs(pcr16=extend(make_pcrs()[16], POLICY_HASH))),
    ),
    "policy in another register": (
        "policy-mismatch", _with(pcrs=make_pcrs(policy_hash=None, pcr17=make_pcrs()[16])),
    ),
    "user data of another policy": (
        "policy-mismatch", _with(user_data=Binding(Purpose.SESSION, OTHER_HASH, None).encode()),
    ),
    "purpose receipt": (
        "policy-mismatch", _with(user_data=Binding(Purpose.RECEIPT, POLICY_HASH, OTHER_HASH).encode()),
    ),
    "purpose recipient": (
        "policy-mismatch", _with(user_data=Binding(Purpose.RECIPIENT, POLICY_HASH, None).encode()),
    ),
    "user data absent": ("policy-mismatch", _with(user_data=None)),
    "user data of another protocol": (
        "policy-mismatch", _with(user_data=cbor2.dumps(["veracruz/2", "session", POLICY_HASH, None])),
    ),
    "user data with a byte more": ("policy-mismatch", _with(user_data=FIELDS["user_data"] + b"\0")),
}  # fmt: skip


def test_the_specimen_is_sound() -> None:
    _verify(SOUND)


@pytest.mark.parametrize("document", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_evidence_is_refused(document: bytes) -> None:
    with pytest.raises(AttestationError) as refusal:
        _verify(document)
    assert refusal.value.slug == "malformed-evidence"
    assert refusal.value.expected
    assert refusal.value.actual


@pytest.mark.parametrize(("slug", "document"), OTHER_DEFECTS.values(), ids=OTHER_DEFECTS.keys())
def test_bad_evidence_is_refused_with_its_slug(slug: str, document: bytes) -> None:
    with pytest.raises(AttestationError) as refusal:
        _verify(document)
    assert refusal.value.slug == slug


UNSOUND_CHAINS: dict[str, dict[str, Any]] = {
    "path length exceeded": {"zonal": {"path_length": 0}},
    "CA without keyCertSign": {"zonal": {"usage": ("crl_sign",)}},
    "CA that is none": {"instance": {"ca": False}},
    "leaf is a CA": {"leaf": {"ca": True}},
    "leaf without digitalSignature": {"leaf": {"usage": ("content_commitment",)}},
    "unknown critical extension": {"leaf": {"extensions": _UNKNOWN}},
    "unknown critical extension of a CA": {"regional": {"extensions": _UNKNOWN}},
    "duplicate extension": {"leaf": {"extensions": PLACEHOLDER, "edit": duplicate_key_usage}},
    "duplicate extension of a CA": {"zonal": {"extensions": PLACEHOLDER, "edit": duplicate_key_usage}},
    "compressed key": {"leaf": {"edit": compress_key}},
    "compressed key of a CA": {"instance": {"edit": compress_key}},
    "leaf on P-256": {"leaf": {"curve": ec.SECP256R1()}},
    "CA on P-256": {"instance": {"curve": ec.SECP256R1()}},
    "leaf of the year 0": {"leaf": {"edit": from_year_zero}},
    "CA that was never valid together with the others": {
        "zonal": {"before": timedelta(days=-30), "after": timedelta(days=60)},
    },
}


@pytest.mark.parametrize("changes", UNSOUND_CHAINS.values(), ids=UNSOUND_CHAINS.keys())
def test_a_document_of_an_unsound_chain_is_refused_under_its_own_root(changes: dict[str, Any]) -> None:
    pki = make_pki(**changes)
    signature = sign(make_payload(make_fields(pki)), pki.keys["leaf"]).ljust(96, b"\0")
    document = make_envelope(make_payload(make_fields(pki)), pki.keys["leaf"], signature=signature)
    with pytest.raises(AttestationError) as refusal:
        verify(document, expected=EXPECTED, at=MADE_AT, roots=[pki.root])
    assert refusal.value.slug == "untrusted-chain"


@pytest.mark.parametrize("days", [-4000, -1, 1, 4000])
def test_old_and_early_evidence_is_refused_as_a_matter_of_time(days: int) -> None:
    with pytest.raises(AttestationError) as refusal:
        verify(SOUND, expected=EXPECTED, at=MADE_AT + timedelta(days=days), roots=ROOTS)
    assert refusal.value.slug == "clock-out-of-step"


@pytest.mark.parametrize(
    ("changes", "at"),
    [
        ({}, timedelta(minutes=-1)),  # the leaf begins 3 s before the document
        ({}, timedelta(hours=3, minutes=1)),
        ({"zonal": {"before": timedelta(0)}, "leaf": {"before": timedelta(hours=1)}}, timedelta(minutes=-30)),
        ({"instance": {"after": timedelta(hours=1)}}, timedelta(hours=2)),
    ],
    ids=["before the leaf", "after the leaf", "before a CA", "after a CA"],
)
def test_a_time_outside_one_certificate_is_refused_as_a_matter_of_time(changes: dict[str, Any], at: timedelta) -> None:
    pki = make_pki(**changes)
    document = make_document(pki)
    verify(document, expected=EXPECTED, at=MADE_AT, roots=[pki.root])
    with pytest.raises(AttestationError) as refusal:
        verify(document, expected=EXPECTED, at=MADE_AT + at, roots=[pki.root])
    assert refusal.value.slug == "clock-out-of-step"


@pytest.mark.parametrize(
    ("expected", "slug"),
    [
        (Expectations.of(NonceIs(NONCE)), "empty-expectations"),
        (Expectations.of(NonceIs(NONCE), PublicKeyIs(PUBLIC_KEY), PolicyIs(POLICY_HASH)), "empty-expectations"),
        (Expectations(()), "empty-expectations"),
        (EXPECTED & RegisterIs(17, ZERO_PCR), "measurement-mismatch"),  # not locked, so not told
    ],
    ids=["no image", "all but the image", "nothing", "a register that is missing"],
)
def test_what_is_not_demanded_or_not_told_does_not_pass(expected: Expectations, slug: str) -> None:
    with pytest.raises(AttestationError) as refusal:
        verify(SOUND, expected=expected, at=MADE_AT, roots=ROOTS)
    assert refusal.value.slug == slug


# What looks bad and is not: verifiers have been found to refuse these


def _short(part: slice) -> bytes:
    """Return a signature of which one half begins with a zero byte."""
    while (signature := sign(PAYLOAD, LEAF))[part][0] != 0:
        pass
    return signature


GOOD = {
    "r of 47 bytes": make_envelope(PAYLOAD, LEAF, signature=_short(slice(0, 48))),
    "s of 47 bytes": make_envelope(PAYLOAD, LEAF, signature=_short(slice(48, 96))),
    "malleated signature": make_envelope(PAYLOAD, LEAF, signature=malleate(SIGNATURE)),
    "0xff within an open map": make_document(
        PKI, indefinite=True, module_id="i-0", pcrs=make_pcrs(pcr31=b"\xff" * 48, pcr3=b"\xff" * 48)
    ),
}


@pytest.mark.parametrize("document", GOOD.values(), ids=GOOD.keys())
def test_sound_evidence_of_an_odd_look_is_accepted(document: bytes) -> None:
    _verify(document)


def test_a_certificate_whose_s_has_47_bytes_is_accepted() -> None:
    form, issuer = NITRO_FORMS["leaf"], NITRO_FORMS["instance"].name
    s = P384_ORDER
    while s >= 1 << 376:
        leaf = make_certificate(form, key=LEAF, issuer_name=issuer, issuer_key=PKI.keys["instance"])
        _, s = decode_dss_signature(x509.load_der_x509_certificate(leaf).signature)
    _verify(_with(certificate=leaf))


# Whatever the bytes are: our own refusal, or the sound document's own content


@st.composite
def _mutations(draw: st.DrawFn, original: bytes) -> bytes:
    """Flip, insert, remove, repeat or cut some bytes."""
    raw = bytearray(original)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, max(len(raw) - 1, 0)))
        stop = min(len(raw), start + draw(st.integers(0, 4)))
        raw[start:stop] = draw(st.binary(max_size=5))
    return bytes(raw)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_mutations(SOUND))
@example(SOUND)
def test_a_changed_document_is_refused_or_says_the_same(document: bytes) -> None:
    try:
        appraisal = _verify(document)
    except AttestationError:
        return
    assert appraisal == _verify(SOUND)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_mutations(PAYLOAD))
def test_a_changed_payload_that_is_signed_raises_nothing_but_refusals(payload: bytes) -> None:
    try:
        _verify(make_envelope(payload, LEAF))
    except AttestationError:
        return


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["certificate", "regional", "zonal", "instance"]).flatmap(
    lambda name: st.tuples(st.just(name), _mutations(PKI.leaf if name == "certificate" else PKI.certificates[name]))
))  # fmt: skip
def test_a_changed_certificate_raises_nothing_but_refusals(change: tuple[str, bytes]) -> None:
    name, der = change
    if name == "certificate":
        changes: dict[str, Any] = {"certificate": der}
    else:
        changes = {"cabundle": [PKI.certificates["root"]]}
        changes["cabundle"] += [
            der if each == name else PKI.certificates[each] for each in ("regional", "zonal", "instance")
        ]
    try:
        _verify(make_document(PKI, **changes))
    except AttestationError:
        return
    assert der == (PKI.leaf if name == "certificate" else PKI.certificates[name])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused(document: bytes) -> None:
    with pytest.raises(AttestationError):
        _verify(document)
