# SPDX-License-Identifier: MIT
"""The verifier as a whole: what it accepts, with which verdict, in which order it checks, and that it is pure."""

from __future__ import annotations

import inspect
import socket
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509

from attestation.chain import aws_root
from attestation.errors import (
    BadSignature,
    ClockOutOfStep,
    DebugEvidence,
    EmptyExpectations,
    MalformedEvidence,
    MalformedInput,
    MeasurementMismatch,
    NonceMismatch,
    UnsignedEvidence,
    UntrustedChain,
)
from attestation.expectations import (
    Expectations,
    ImageIs,
    MaxAge,
    NonceIs,
    PolicyIs,
    PublicKeyIs,
    RootIs,
    UnsafeAcceptAnyImage,
    UnsafeAcceptDebug,
    UnsafeAcceptUnsigned,
)
from attestation.verifier import Appraisal, Check, Verdict, archived_time, examine, verify

from .documents import (
    DEBUG,
    IMAGE,
    MADE_AT,
    MODULE_ID,
    NONCE,
    OTHER_IMAGE,
    POLICY_HASH,
    PUBLIC_KEY,
    make_document,
    make_envelope,
    make_fields,
    make_payload,
    make_pcrs,
    make_pki,
    make_qemu_document,
    malleate,
    milliseconds,
    sign,
)

SECOND = timedelta(seconds=1)
PKI = make_pki()
ROOT = PKI.root
SESSION = Expectations.of(
    NonceIs(NONCE), ImageIs.any_of([IMAGE]), PolicyIs(POLICY_HASH), PublicKeyIs(PUBLIC_KEY), RootIs(ROOT.fingerprint)
)
PAYLOAD = make_payload(make_fields(PKI))


def _verify(document: bytes, *, expected: Expectations = SESSION, at: datetime = MADE_AT) -> Appraisal:
    return verify(document, expected=expected, at=at, roots=[ROOT])


def test_a_sound_session_document_is_appraised() -> None:
    appraisal = _verify(make_document(PKI))
    assert appraisal.verdict is Verdict.DEVELOPMENT
    assert appraisal.module_id == MODULE_ID
    assert appraisal.timestamp == MADE_AT
    assert appraisal.measurements == IMAGE
    assert appraisal.pcrs == make_pcrs()
    assert (appraisal.public_key, appraisal.nonce) == (PUBLIC_KEY, NONCE)
    assert appraisal.root == ROOT
    assert MODULE_ID in appraisal.chain[0].subject
    assert len(appraisal.chain) == 5


_SIGNATURE = sign(PAYLOAD, PKI.keys["leaf"])


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(make_document(PKI, indefinite=True), id="open map, as since December 2025"),
        pytest.param(make_envelope(PAYLOAD, PKI.keys["leaf"], tag=b"\xd2"), id="tagged"),
        pytest.param(make_envelope(PAYLOAD, PKI.keys["leaf"], signature=_SIGNATURE), id="one s"),
        pytest.param(make_envelope(PAYLOAD, PKI.keys["leaf"], signature=malleate(_SIGNATURE)), id="the other s"),
    ],
)
def test_every_form_that_is_signed_soundly_verifies(document: bytes) -> None:
    assert _verify(document).verdict is Verdict.DEVELOPMENT


ANY = Expectations.of(UnsafeAcceptAnyImage())
DEBUG_DOCUMENT = make_document(PKI, pcrs=make_pcrs(DEBUG))


_FULL = {"public_key": bytes(1024), "user_data": b"\1" * 1024, "nonce": b"\2" * 1024}


@pytest.mark.parametrize("indefinite", [False, True], ids=["closed map", "open map"])
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(dict.fromkeys(_FULL), id="null fields"),
        pytest.param({"user_data": b"", "nonce": b""}, id="empty fields"),
        pytest.param(_FULL, id="fields of 1,024 bytes"),
        pytest.param({"pcrs": make_pcrs(policy_hash=None)}, id="16 registers"),
        pytest.param({"pcrs": make_pcrs()}, id="17 registers"),
        pytest.param({"pcrs": {index: make_pcrs().get(index, bytes(48)) for index in range(32)}}, id="32 registers"),
        pytest.param({"pcrs": make_pcrs(pcr3=None, pcr15=None)}, id="registers left out"),
    ],
)
def test_every_form_that_aws_signs_verifies_in_production_mode(changes: dict[str, Any], indefinite: bool) -> None:
    """The instance's certificate in this chain has no key identifiers, as real ones until 2021."""
    payload = make_payload(make_fields(PKI, **changes), indefinite=indefinite)
    signature = sign(payload, PKI.keys["leaf"])
    expected = Expectations.of(ImageIs.any_of([OTHER_IMAGE, IMAGE]))
    for one in (signature, malleate(signature)):
        document = make_envelope(payload, PKI.keys["leaf"], signature=one)
        appraisal = verify(document, expected=expected, at=MADE_AT, roots=[PKI.root])
        for name, value in changes.items():
            assert getattr(appraisal, name) == value


def test_debug_mode_has_a_verdict_of_its_own_where_it_is_accepted_and_is_refused_elsewhere() -> None:
    for expected in (SESSION, ANY):
        with pytest.raises(DebugEvidence):
            _verify(DEBUG_DOCUMENT, expected=expected)
        assert _verify(DEBUG_DOCUMENT, expected=expected & UnsafeAcceptDebug()).verdict is Verdict.DEBUG
    assert _verify(DEBUG_DOCUMENT, expected=Expectations.of(UnsafeAcceptDebug())).verdict is Verdict.DEBUG


def test_accepting_debug_mode_accepts_no_other_image() -> None:
    with pytest.raises(MeasurementMismatch):
        _verify(make_document(PKI, pcrs=make_pcrs(OTHER_IMAGE)), expected=SESSION & UnsafeAcceptDebug())
    with pytest.raises(EmptyExpectations):
        _verify(make_document(PKI), expected=Expectations.of(UnsafeAcceptDebug()))


def test_unsigned_documents_are_refused_unless_accepted() -> None:
    document = make_qemu_document()
    expected = Expectations.of(NonceIs(NONCE), ImageIs.any_of([IMAGE]))
    with pytest.raises(UnsignedEvidence):
        _verify(document, expected=expected & UnsafeAcceptDebug() & UnsafeAcceptAnyImage())
    appraisal = _verify(document, expected=expected & UnsafeAcceptUnsigned())
    assert appraisal.verdict is Verdict.UNSIGNED
    assert appraisal.root is None
    assert appraisal.chain == ()


def test_accepting_unsigned_documents_excuses_no_bad_signature_and_no_other_demand() -> None:
    expected = Expectations.of(NonceIs(NONCE), ImageIs.any_of([IMAGE]), UnsafeAcceptUnsigned())
    with pytest.raises(BadSignature):
        _verify(make_envelope(PAYLOAD, make_pki().keys["leaf"]), expected=expected)
    with pytest.raises(NonceMismatch):
        _verify(make_qemu_document(nonce=bytes(32)), expected=expected)
    with pytest.raises(UntrustedChain):
        _verify(make_qemu_document(), expected=expected & RootIs(ROOT.fingerprint))


def test_nothing_demanded_is_refused_before_anything_is_read() -> None:
    for expected in (Expectations(()), Expectations.of(NonceIs(NONCE))):
        with pytest.raises(EmptyExpectations):
            _verify(b"not looked at", expected=expected)


def test_a_naive_time_is_refused() -> None:
    with pytest.raises(MalformedInput, match="time zone"):
        _verify(make_document(PKI), at=MADE_AT.replace(tzinfo=None))


def test_another_root_verifies_nothing() -> None:
    with pytest.raises(UntrustedChain):
        verify(make_document(PKI), expected=ANY, at=MADE_AT, roots=[aws_root()])
    with pytest.raises(UntrustedChain):
        verify(make_document(PKI), expected=ANY, at=MADE_AT, roots=[])


def test_a_root_named_in_the_policy_narrows_the_choice_and_never_widens_it() -> None:
    other = make_pki()
    both = [ROOT, other.root]
    narrowed = Expectations.of(UnsafeAcceptAnyImage(), RootIs(other.root.fingerprint))
    with pytest.raises(UntrustedChain, match="another root"):
        verify(make_document(PKI), expected=narrowed, at=MADE_AT, roots=both)
    assert verify(make_document(other), expected=narrowed, at=MADE_AT, roots=both).root == other.root
    with pytest.raises(UntrustedChain, match="not chosen"):
        verify(make_document(other), expected=narrowed, at=MADE_AT, roots=[ROOT])


def test_checks_are_told_in_the_order_of_the_trust_argument_and_only_once_they_passed() -> None:
    steps = examine(make_document(PKI), expected=SESSION, at=MADE_AT, roots=[ROOT])
    assert [step.point for step in steps] == [1, 2, 3, 5, 2, 4, 5, 6, 7]

    passed: list[Check] = []
    forged = make_envelope(PAYLOAD, make_pki().keys["leaf"])
    with pytest.raises(BadSignature):
        passed.extend(examine(forged, expected=SESSION, at=MADE_AT, roots=[ROOT]))
    assert [step.point for step in passed] == [1, 2]


def test_the_forms_come_first_then_chain_then_signature_then_demands() -> None:
    wrong: dict[str, Any] = {"nonce": bytes(32)}
    stranger = make_pki()
    with pytest.raises(MalformedEvidence):
        _verify(make_document(stranger, digest="SHA256", **wrong))
    with pytest.raises(UntrustedChain):
        _verify(make_envelope(make_payload(make_fields(stranger, **wrong)), PKI.keys["leaf"]))
    with pytest.raises(BadSignature):
        _verify(make_envelope(make_payload(make_fields(PKI, **wrong)), stranger.keys["leaf"]))
    with pytest.raises(NonceMismatch):
        _verify(make_document(PKI, **wrong))


def test_archived_evidence_verifies_at_its_own_time_only_if_the_caller_asks() -> None:
    document = make_document(PKI)
    years_later = MADE_AT + timedelta(days=1000)
    with pytest.raises(ClockOutOfStep):
        _verify(document, at=years_later)
    assert archived_time(document) == MADE_AT
    assert _verify(document, at=archived_time(document)).timestamp == MADE_AT


def test_an_unsigned_document_was_not_made_in_the_future_either() -> None:
    """It would be younger than any age that is asked for, for years."""
    expected = Expectations.of(ImageIs.any_of([IMAGE]), UnsafeAcceptUnsigned(), MaxAge(timedelta(seconds=60)))
    document = make_qemu_document(timestamp=milliseconds(MADE_AT + timedelta(days=3000)))
    with pytest.raises(ClockOutOfStep, match="made after the time given"):
        _verify(document, expected=expected)
    assert _verify(make_qemu_document(), expected=expected).verdict is Verdict.UNSIGNED


LEAF = x509.load_der_x509_certificate(PKI.leaf)


@pytest.mark.parametrize(
    ("made_at", "at", "error", "message"),
    [
        (LEAF.not_valid_after_utc + SECOND * 6, LEAF.not_valid_after_utc + SECOND * 4, UntrustedChain, "was not valid"),
        (LEAF.not_valid_before_utc - SECOND * 6, MADE_AT, UntrustedChain, "made while its certificate was not valid"),
        (MADE_AT - timedelta(days=400), MADE_AT, UntrustedChain, "made while its certificate was not valid"),
        (MADE_AT + SECOND * 6, MADE_AT, ClockOutOfStep, "made after the time given"),
        (MADE_AT + timedelta(days=4000), MADE_AT, ClockOutOfStep, "made after the time given"),
    ],
)
def test_a_document_was_made_by_a_valid_leaf_and_not_in_the_future(
    made_at: datetime, at: datetime, error: type[UntrustedChain], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        _verify(make_document(PKI, timestamp=milliseconds(made_at)), expected=ANY, at=at)
    assert type(raised.value) is error
    assert raised.value.expected
    assert raised.value.actual


@pytest.mark.parametrize(
    ("made_at", "at"),
    [
        (MADE_AT + SECOND * 5, MADE_AT),
        (LEAF.not_valid_before_utc - SECOND * 5, MADE_AT),
        (LEAF.not_valid_after_utc + SECOND * 5, LEAF.not_valid_after_utc),
        (LEAF.not_valid_before_utc, LEAF.not_valid_after_utc),
    ],
)
def test_clocks_may_be_off_by_the_leeway(made_at: datetime, at: datetime) -> None:
    document = make_document(PKI, timestamp=milliseconds(made_at))
    assert _verify(document, expected=ANY, at=at).timestamp == made_at


def test_a_leaf_that_never_expires_is_no_overflow() -> None:
    pki = make_pki(leaf={"after": datetime.max.replace(tzinfo=UTC) - MADE_AT})
    assert verify(make_document(pki), expected=ANY, at=MADE_AT, roots=[pki.root])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"at": "now"}, "no time to verify at; expected a datetime, got str"),
        ({"at": None}, "no time to verify at"),
        ({"roots": ROOT}, "no roots"),
        ({"roots": [b"root"]}, "no roots"),
        ({"roots": None}, "no roots"),
        ({"expected": [NonceIs(NONCE)]}, "no expectations; expected .*, got list"),
        ({"expected": None}, "no expectations"),
        ({"roots": {ROOT}}, "no roots"),
        ({"links": {}}, "no memory of chains; expected ChainCache, got dict"),
        ({"document": "document"}, "no document; expected bytes, got str"),
        ({"document": None}, "no document"),
    ],
)
def test_an_argument_of_another_type_is_the_callers_mistake(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"document": make_document(PKI), "expected": ANY, "at": MADE_AT, "roots": [ROOT]}
    with pytest.raises(MalformedInput, match=message):
        verify(**(arguments | change))


def test_the_same_arguments_have_the_same_result_and_nothing_else_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("the verifier is pure")

    document = make_document(PKI)
    first = _verify(document)
    with monkeypatch.context() as patch:
        for module, name in ((time, "time"), (time, "monotonic"), (socket, "socket")):
            patch.setattr(module, name, forbidden)
        patch.setattr("builtins.open", forbidden)
        assert _verify(document) == first


def test_the_docstring_numbers_the_trust_argument_as_the_code_does() -> None:
    documentation = inspect.cleandoc(verify.__doc__ or "")  # Python 3.13 drops the indentation itself
    source = inspect.getsource(examine) + inspect.getsource(Expectations.for_session)
    for point in range(1, 9):
        assert f"\n{point}. " in documentation
        assert f"({point})" in source


def test_a_root_that_comes_with_the_evidence_is_worth_nothing() -> None:
    attacker = make_pki()
    assert attacker.root.certificate == attacker.cabundle[0]
    with pytest.raises(UntrustedChain, match="not chosen"):
        _verify(make_document(attacker), expected=ANY)
