# SPDX-License-Identifier: MIT
"""Demands: each passes on what it names and refuses everything else; a conjunction without content never passes."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from attestation.binding import Binding, Purpose
from attestation.chain import aws_root, verify_chain
from attestation.cose import parse_sign1
from attestation.document import parse_document
from attestation.errors import (
    AttestationError,
    DebugEvidence,
    EmptyExpectations,
    FieldMismatch,
    KeyMismatch,
    MalformedInput,
    MeasurementMismatch,
    NonceMismatch,
    PolicyMismatch,
    StaleEvidence,
    UntrustedChain,
    VeracruzError,
)
from attestation.expectations import (
    Demand,
    Evidence,
    Expectations,
    ImageIs,
    InstanceIs,
    MaxAge,
    ModuleIs,
    NonceIs,
    ParentRoleIs,
    PolicyIs,
    ProfileIs,
    PublicKeyIs,
    RegisterIs,
    RootIs,
    SignerIs,
    Term,
    UnsafeAcceptAnyImage,
    UnsafeAcceptDebug,
    UnsafeAcceptUnsigned,
    UserDataIs,
)
from attestation.measurements import ZERO_PCR, Measurements, role_pcr, signer_pcr

from .documents import (
    DEBUG,
    IMAGE,
    INSTANCE_ID,
    MADE_AT,
    MODULE_ID,
    NONCE,
    OTHER_IMAGE,
    POLICY_HASH,
    PUBLIC_KEY,
    make_document,
    make_pcrs,
    make_pki,
)

PKI = make_pki()
OTHER_HASH = hashlib.sha256(b"another policy").digest()
ARN = "arn:aws:iam::123456789012:role/Webserver"
SIGNER = signer_pcr(b"DER of a signing certificate")
SIGNED = make_pcrs(pcr3=role_pcr(ARN), pcr8=SIGNER)


def _evidence(*, age: timedelta = timedelta(0), **changes: Any) -> Evidence:
    document = parse_document(parse_sign1(make_document(PKI, **{"pcrs": SIGNED, **changes})).payload)
    chain = verify_chain(document.certificate, document.cabundle, roots=[PKI.root], at=MADE_AT, made_at=MADE_AT)
    return Evidence(document, chain, MADE_AT + age)


def _user_data(purpose: Purpose, policy: bytes = POLICY_HASH, body: bytes | None = None) -> dict[str, Any]:
    return {"user_data": Binding(purpose, policy, body).encode()}


BODY = hashlib.sha256(b"a receipt").digest()
RECEIPT = PolicyIs(POLICY_HASH, Purpose.RECEIPT, BODY)
RECIPIENT = PolicyIs(POLICY_HASH, Purpose.RECIPIENT)


@pytest.mark.parametrize(
    ("demand", "changes"),
    [
        (NonceIs(NONCE), {}),
        (NonceIs(b"\0"), {"nonce": b"\0"}),
        (ImageIs.any_of([IMAGE]), {}),
        (ImageIs.any_of([OTHER_IMAGE, IMAGE]), {}),
        (ImageIs.any_of([IMAGE]), {"pcrs": make_pcrs(DEBUG)}),  # whoever accepts debug mode can have no image
        (RegisterIs(0, IMAGE.pcr0), {}),
        (RegisterIs(7, ZERO_PCR), {}),
        (RegisterIs(31, SIGNER), {"pcrs": make_pcrs(pcr31=SIGNER)}),
        (SignerIs(SIGNER), {}),
        (PolicyIs(POLICY_HASH), {}),
        (RECEIPT, {**_user_data(Purpose.RECEIPT, body=BODY), "nonce": None, "public_key": None}),
        (RECEIPT, {**_user_data(Purpose.RECEIPT, body=BODY), "nonce": b""}),
        (RECIPIENT, {**_user_data(Purpose.RECIPIENT), "nonce": None}),
        (PublicKeyIs(PUBLIC_KEY), {}),
        (UserDataIs(b"data"), {"user_data": b"data"}),
        (ModuleIs(MODULE_ID), {}),
        (InstanceIs(INSTANCE_ID), {}),
        (ParentRoleIs(ARN), {}),
        (MaxAge(timedelta(0)), {}),
        (MaxAge(timedelta(seconds=60)), {"age": timedelta(seconds=60)}),
        (MaxAge(timedelta(seconds=60)), {"age": timedelta(seconds=-5)}),
        (RootIs(PKI.root.fingerprint), {}),
    ],
)
def test_a_demand_passes_on_what_it_names(demand: Demand, changes: dict[str, Any]) -> None:
    demand.check(_evidence(**changes))
    assert str(demand)


MIXED = Measurements(IMAGE.pcr0, OTHER_IMAGE.pcr1, OTHER_IMAGE.pcr2)
HALF_ZERO = make_pcrs(pcr0=ZERO_PCR)


@pytest.mark.parametrize(
    ("demand", "changes", "error", "message"),
    [
        (NonceIs(NONCE), {"nonce": None}, NonceMismatch, "got none"),
        (NonceIs(NONCE), {"nonce": b""}, NonceMismatch, "got an empty one"),
        (NonceIs(NONCE), {"nonce": NONCE[:-1]}, NonceMismatch, "another nonce"),
        (NonceIs(NONCE), {"nonce": NONCE + b"\0"}, NonceMismatch, "another nonce"),
        (ImageIs.any_of([OTHER_IMAGE]), {}, MeasurementMismatch, "PCR0 differs"),
        (ImageIs.any_of([MIXED]), {}, MeasurementMismatch, "PCR2 differs"),
        (ImageIs.any_of([OTHER_IMAGE, MIXED]), {}, MeasurementMismatch, "nearest of 2"),
        (ImageIs.any_of([IMAGE]), {"pcrs": HALF_ZERO}, MeasurementMismatch, "PCR0 differs"),
        (RegisterIs(0, OTHER_IMAGE.pcr0), {}, MeasurementMismatch, "PCR0 differs"),
        (RegisterIs(20, ZERO_PCR), {}, MeasurementMismatch, "got none"),
        (RegisterIs(0, IMAGE.pcr0), {"pcrs": make_pcrs(DEBUG)}, MeasurementMismatch, "PCR0 differs"),
        (SignerIs(SIGNER), {"pcrs": make_pcrs()}, FieldMismatch, "not signed"),
        (SignerIs(SIGNER), {"pcrs": make_pcrs(pcr8=SIGNER[::-1])}, FieldMismatch, "another signer"),
        (SignerIs(SIGNER), {"pcrs": make_pcrs(pcr8=None)}, FieldMismatch, "got none"),
        (PolicyIs(OTHER_HASH), {}, PolicyMismatch, "PCR16 binds another policy"),
        (PolicyIs(POLICY_HASH), {"pcrs": make_pcrs(policy_hash=None)}, PolicyMismatch, "PCR16 is not locked"),
        (PolicyIs(POLICY_HASH), {"pcrs": make_pcrs(pcr16=ZERO_PCR)}, PolicyMismatch, "PCR16 binds another"),
        (PolicyIs(POLICY_HASH), {"pcrs": make_pcrs(policy_hash=OTHER_HASH)}, PolicyMismatch, "PCR16 binds another"),
        (PolicyIs(POLICY_HASH), _user_data(Purpose.SESSION, OTHER_HASH), PolicyMismatch, "user_data binds another"),
        (PolicyIs(POLICY_HASH), {"user_data": None}, PolicyMismatch, "user_data is absent"),
        (PolicyIs(POLICY_HASH), {"user_data": b""}, PolicyMismatch, "no binding"),
        (PolicyIs(POLICY_HASH), {"user_data": POLICY_HASH}, PolicyMismatch, "no binding"),
        (PolicyIs(POLICY_HASH), _user_data(Purpose.RECEIPT, body=BODY), PolicyMismatch, "another purpose"),
        (PolicyIs(POLICY_HASH), _user_data(Purpose.RECIPIENT), PolicyMismatch, "another purpose"),
        (PolicyIs(POLICY_HASH), {"nonce": None}, NonceMismatch, "purpose"),
        (PolicyIs(POLICY_HASH), {"nonce": b""}, NonceMismatch, "purpose"),
        (PolicyIs(POLICY_HASH), {"public_key": None}, KeyMismatch, "purpose"),
        (RECEIPT, {}, PolicyMismatch, "another purpose"),
        (RECEIPT, {**_user_data(Purpose.RECEIPT, body=OTHER_HASH), "nonce": None}, PolicyMismatch, "another body"),
        (RECEIPT, _user_data(Purpose.RECEIPT, body=BODY), NonceMismatch, "purpose"),
        (RECIPIENT, _user_data(Purpose.RECIPIENT), NonceMismatch, "purpose"),
        (RECIPIENT, {**_user_data(Purpose.RECIPIENT), "nonce": None, "public_key": None}, KeyMismatch, "purpose"),
        (PublicKeyIs(PUBLIC_KEY), {"public_key": None}, KeyMismatch, "got none"),
        (PublicKeyIs(PUBLIC_KEY), {"public_key": PUBLIC_KEY[::-1]}, KeyMismatch, "another public key"),
        (UserDataIs(b"data"), {"user_data": None}, FieldMismatch, "got none"),
        (UserDataIs(b"data"), {"user_data": b"date"}, FieldMismatch, "other user data"),
        (ModuleIs("i-0-enc0"), {}, FieldMismatch, "another module"),
        (InstanceIs("i-0"), {}, FieldMismatch, "PCR4"),
        (InstanceIs(INSTANCE_ID), {"pcrs": make_pcrs(pcr4=None)}, FieldMismatch, "PCR4"),
        (ParentRoleIs("arn:aws:iam::1:role/x"), {}, FieldMismatch, "another role"),
        (ParentRoleIs("arn:aws:iam::1:role/x"), {"pcrs": make_pcrs(pcr3=ZERO_PCR)}, FieldMismatch, "no role"),
        (MaxAge(timedelta(seconds=60)), {"age": timedelta(seconds=61)}, StaleEvidence, "too old"),
        (RootIs(bytes(32)), {}, UntrustedChain, "another root"),
    ],
)
def test_a_demand_refuses_everything_else(
    demand: Demand, changes: dict[str, Any], error: type[AttestationError], message: str
) -> None:
    with pytest.raises(error, match=message):
        demand.check(_evidence(**changes))


def test_an_unsigned_document_has_no_root() -> None:
    with pytest.raises(UntrustedChain, match="got none"):
        RootIs(PKI.root.fingerprint).check(Evidence(_evidence().document, None, MADE_AT))


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: NonceIs(b""), MalformedInput),
        (lambda: NonceIs(bytes(1025)), MalformedInput),
        (lambda: PublicKeyIs(b""), MalformedInput),
        (lambda: UserDataIs(b""), MalformedInput),
        (lambda: ImageIs.any_of([]), EmptyExpectations),
        (lambda: ImageIs.any_of([IMAGE, DEBUG]), MalformedInput),
        (lambda: RegisterIs(32, ZERO_PCR), MalformedInput),
        (lambda: RegisterIs(-1, ZERO_PCR), MalformedInput),
        (lambda: RegisterIs(0, bytes(32)), MalformedInput),
        (lambda: SignerIs(ZERO_PCR), MalformedInput),
        (lambda: PolicyIs(b"hash"), MalformedInput),
        (lambda: MaxAge(timedelta(seconds=-1)), MalformedInput),
        (lambda: MaxAge(5), MalformedInput),
        (lambda: NonceIs("nonce"), MalformedInput),
        (lambda: NonceIs(None), MalformedInput),
        (lambda: PublicKeyIs("key"), MalformedInput),
        (lambda: UserDataIs("data"), MalformedInput),
        (lambda: ModuleIs(b"i-0-enc0"), MalformedInput),
        (lambda: ImageIs([IMAGE]), MalformedInput),
        (lambda: ImageIs((IMAGE.pcr0,)), MalformedInput),
        (lambda: RegisterIs("0", ZERO_PCR), MalformedInput),
        (lambda: RegisterIs(0, "00" * 48), MalformedInput),
        (lambda: SignerIs("08" * 48), MalformedInput),
        (lambda: PolicyIs("00" * 32), MalformedInput),
        (lambda: PolicyIs(POLICY_HASH, "session"), MalformedInput),
        (lambda: RootIs(b"root"), MalformedInput),
        (lambda: RootIs("00" * 32), MalformedInput),
        (lambda: ProfileIs("nitro-tpm"), MalformedInput),
        (lambda: ImageIs.any_of(None), MalformedInput),
        (lambda: RegisterIs(True, ZERO_PCR), MalformedInput),
        (lambda: PolicyIs(POLICY_HASH, body_hash="00" * 32), MalformedInput),
        (lambda: Expectations(None), MalformedInput),
        (lambda: Expectations([NonceIs(NONCE)]), MalformedInput),
        (lambda: Expectations.for_session(None, [IMAGE], None, b"key"), MalformedInput),
    ],
)
def test_a_demand_that_could_not_be_meant_cannot_be_made(make: Any, error: type[VeracruzError]) -> None:
    with pytest.raises(error) as raised:
        make()
    assert raised.value.expected is not None
    assert raised.value.actual is not None


NO_CONTENT = {
    "nothing": Expectations(()),
    "a nonce alone": Expectations.of(NonceIs(NONCE)),
    "a policy alone": Expectations.of(PolicyIs(POLICY_HASH)),
    "PCR0 alone, which a re-split image has too": Expectations.of(RegisterIs(0, IMAGE.pcr0)),
    "PCR1 and PCR2 alone": Expectations.of(RegisterIs(1, IMAGE.pcr1), RegisterIs(2, IMAGE.pcr2)),
    "acceptance of unsigned documents": Expectations.of(UnsafeAcceptUnsigned()),
}
CONTENT = {
    "an image": Expectations.of(ImageIs.any_of([IMAGE])),
    "three registers": Expectations(tuple(RegisterIs(n, v) for n, v in enumerate(IMAGE.registers))),
    "a signer": Expectations.of(SignerIs(SIGNER)),
    "any image, aloud": Expectations.of(UnsafeAcceptAnyImage()),
}


@pytest.mark.parametrize("expected", NO_CONTENT.values(), ids=NO_CONTENT.keys())
def test_expectations_that_accept_any_image_in_silence_do_not_pass(expected: Expectations) -> None:
    with pytest.raises(EmptyExpectations):
        expected.require_content()


@pytest.mark.parametrize("expected", CONTENT.values(), ids=CONTENT.keys())
def test_expectations_that_say_what_may_run_pass(expected: Expectations) -> None:
    expected.require_content()


def test_accepting_debug_mode_is_content_for_a_document_in_debug_mode_only() -> None:
    expected = Expectations.of(UnsafeAcceptDebug())
    expected.require_content()
    expected.require_content(debug=True)
    with pytest.raises(EmptyExpectations):
        expected.require_content(debug=False)


def test_debug_mode_is_refused_unless_accepted() -> None:
    for pcrs in (make_pcrs(DEBUG), HALF_ZERO, make_pcrs(pcr2=ZERO_PCR)):
        evidence = _evidence(pcrs=pcrs)
        for expected in CONTENT.values():
            with pytest.raises(DebugEvidence):
                expected.check_debug(evidence)
            assert (expected & UnsafeAcceptDebug()).check_debug(evidence)
    assert not Expectations.of(UnsafeAcceptDebug()).check_debug(_evidence())


def test_debug_mode_under_a_root_that_is_not_for_development_needs_a_wider_permission() -> None:
    evidence = _evidence(pcrs=make_pcrs(DEBUG))
    assert evidence.chain is not None
    production = replace(evidence, chain=replace(evidence.chain, root=aws_root()))
    with pytest.raises(DebugEvidence):
        Expectations.of(UnsafeAcceptDebug()).check_debug(production)
    assert Expectations.of(UnsafeAcceptDebug(development_only=False)).check_debug(production)


def test_demands_come_in_the_order_of_the_trust_argument() -> None:
    expected = Expectations.of(MaxAge(timedelta(0)), PublicKeyIs(PUBLIC_KEY)) & NonceIs(NONCE)
    expected &= Expectations.of(UnsafeAcceptAnyImage(), RootIs(bytes(32)))
    assert [type(demand).__name__ for demand in expected.demands] == ["RootIs", "NonceIs", "PublicKeyIs", "MaxAge"]


def _policy(**changes: Any) -> Any:
    return SimpleNamespace(**{"images": (IMAGE, OTHER_IMAGE), "hash": POLICY_HASH, "root": None, **changes})


def test_a_session_demands_points_4_to_8() -> None:
    expected = Expectations.for_session(_policy(), [IMAGE], NONCE, PUBLIC_KEY)
    assert expected == Expectations.of(
        NonceIs(NONCE), ImageIs.any_of([IMAGE]), PolicyIs(POLICY_HASH, Purpose.SESSION), PublicKeyIs(PUBLIC_KEY)
    )
    assert [demand.point for demand in expected.demands] == [4, 5, 6, 7]


def test_a_session_demands_the_root_that_the_policy_names() -> None:
    policy = _policy(root=aws_root().fingerprint)
    assert RootIs(aws_root().fingerprint) in Expectations.for_session(policy, [IMAGE], NONCE, PUBLIC_KEY).terms


def test_a_session_accepts_only_images_that_policy_and_measurements_both_name() -> None:
    stranger = Measurements(os.urandom(48), os.urandom(48), os.urandom(48))
    expected = Expectations.for_session(_policy(), [stranger, OTHER_IMAGE], NONCE, PUBLIC_KEY)
    assert ImageIs.any_of([OTHER_IMAGE]) in expected.terms
    for measurements in ([], [stranger]):
        with pytest.raises(MeasurementMismatch, match="no image that your measurements name"):
            Expectations.for_session(_policy(), measurements, NONCE, PUBLIC_KEY)


@pytest.mark.parametrize("nonce", [b"", bytes(31), bytes(33)])
def test_a_sessions_nonce_is_exactly_32_bytes(nonce: bytes) -> None:
    with pytest.raises(MalformedInput, match="nonce"):
        Expectations.for_session(_policy(), [IMAGE], nonce, PUBLIC_KEY)


def test_what_is_unsafe_says_so_in_its_name() -> None:
    for permission in (UnsafeAcceptAnyImage, UnsafeAcceptDebug, UnsafeAcceptUnsigned):
        assert permission.__name__.startswith("Unsafe")
        assert not issubclass(permission, Demand)


@pytest.mark.parametrize(
    "wrong",
    [NonceIs, Expectations.of(NonceIs(NONCE)), [NonceIs(NONCE)], (NonceIs(NONCE),), None, NONCE, Term()],
    ids=["a class", "nested", "a list", "a tuple", "nothing", "a value", "a bare term"],
)
def test_what_is_no_term_is_refused_and_never_passed_over(wrong: Any) -> None:
    """A demand that were dropped in silence would be a check that nobody makes."""
    with pytest.raises(MalformedInput, match="not a term"):
        Expectations.of(UnsafeAcceptAnyImage(), wrong)
    with pytest.raises(MalformedInput, match="not a term"):
        Expectations((UnsafeAcceptAnyImage(), wrong))
    if not isinstance(wrong, Expectations):
        with pytest.raises(MalformedInput, match="not a term"):
            Expectations.of(UnsafeAcceptAnyImage()) & wrong
