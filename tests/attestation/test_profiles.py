# SPDX-License-Identifier: MIT
"""Other evidence of the family joins as a value: a NitroTPM's documents, by a profile that only this test has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from attestation.chain import Root
from attestation.document import NITRO_ENCLAVE, Profile
from attestation.errors import EmptyExpectations, MalformedEvidence, MalformedInput, MeasurementMismatch, NonceMismatch
from attestation.expectations import (
    Expectations,
    ImageIs,
    NonceIs,
    ProfileIs,
    RegisterIs,
    SignerIs,
    Term,
    UnsafeAcceptAnyImage,
    UnsafeAcceptDebug,
)
from attestation.verifier import Appraisal, Verdict, archived_time, verify

from .documents import IMAGE, MADE_AT, NONCE, make_document, make_envelope, make_fields, make_payload, make_pki

# The keys and registers as Amazon's EC2 user guide lists them ("NitroTPM Attestation Document contents"): PCR4 is the
# boot manager's code and PCR12 its command line. Nobody here had one that AWS signed, so it is no part of the product.
NITRO_TPM = Profile(
    name="nitro-tpm",
    required=("module_id", "digest", "timestamp", "nitrotpm_pcrs", "certificate", "cabundle"),
    optional=("public_key", "user_data", "nonce"),
    registers="nitrotpm_pcrs",
    digest="SHA384",
    register_size=48,
    register_count=24,
    image=(4, 12),
    zero_is_debug=False,
)
PKI = make_pki()
BOOTED = (RegisterIs(4, b"\x04" * 48), RegisterIs(12, b"\x0c" * 48))


def _document() -> bytes:
    fields: dict[str, Any] = {}
    for name, value in make_fields(PKI).items():
        if name == "pcrs":
            fields["nitrotpm_pcrs"] = {index: bytes(48) for index in range(24)} | {4: b"\x04" * 48, 12: b"\x0c" * 48}
        else:
            fields[name] = value
    return make_envelope(make_payload(fields, indefinite=True), PKI.keys["leaf"])


def _verify(document: bytes, *terms: Term, root: Root = PKI.root) -> Appraisal:
    return verify(document, expected=Expectations.of(*terms), at=MADE_AT, roots=[root])


def test_a_document_of_a_demanded_profile_verifies() -> None:
    appraisal = _verify(_document(), ProfileIs(NITRO_TPM), *BOOTED, NonceIs(NONCE))
    assert appraisal.verdict is Verdict.DEVELOPMENT
    assert appraisal.pcrs[12] == b"\x0c" * 48
    assert archived_time(_document(), profile=NITRO_TPM) == MADE_AT


def test_it_is_refused_unless_demanded() -> None:
    with pytest.raises(MalformedEvidence, match="nitrotpm_pcrs"):
        _verify(_document(), UnsafeAcceptAnyImage())
    with pytest.raises(MalformedEvidence, match="unknown key"):
        _verify(make_document(PKI), ProfileIs(NITRO_TPM), *BOOTED)


def test_its_registers_and_fields_are_checked_like_any_other() -> None:
    with pytest.raises(MeasurementMismatch, match="PCR12"):
        _verify(_document(), ProfileIs(NITRO_TPM), BOOTED[0], RegisterIs(12, b"\xff" * 48))
    with pytest.raises(NonceMismatch):
        _verify(_document(), ProfileIs(NITRO_TPM), *BOOTED, NonceIs(b"other"))


def test_what_runs_must_be_said_by_its_own_registers() -> None:
    for terms in ((), BOOTED[:1], tuple(RegisterIs(index, bytes(48)) for index in range(3))):
        with pytest.raises(EmptyExpectations):
            _verify(_document(), ProfileIs(NITRO_TPM), *terms)


@pytest.mark.parametrize(
    "term",
    [
        ImageIs.any_of([IMAGE]),
        SignerIs(b"\x08" * 48),
        UnsafeAcceptDebug(development_only=False),
        ProfileIs(replace(NITRO_TPM, name="third")),
    ],
    ids=lambda term: type(term).__name__,
)
def test_demands_that_mean_something_else_there_are_refused(term: Term) -> None:
    with pytest.raises(MalformedInput, match="profile"):
        _verify(_document(), ProfileIs(NITRO_TPM), *BOOTED, term)


def test_a_profile_without_a_register_that_says_what_runs_cannot_be_made() -> None:
    """All of none would be demanded: an empty Expectations, and it would pass."""
    with pytest.raises(MalformedInput, match="no register says what runs"):
        replace(NITRO_TPM, image=())


def test_a_register_of_the_image_must_be_in_the_document() -> None:
    demanding = replace(NITRO_TPM, register_count=30, image=(4, 12, 29))
    with pytest.raises(MalformedEvidence, match=r"nitrotpm_pcrs\[29\]: missing"):
        _verify(_document(), ProfileIs(demanding), *BOOTED, RegisterIs(29, bytes(48)))


def test_the_profile_of_a_nitro_enclave_is_the_default() -> None:
    assert Expectations.of().profile is NITRO_ENCLAVE
    assert _verify(make_document(PKI), ProfileIs(NITRO_ENCLAVE), ImageIs.any_of([IMAGE]), UnsafeAcceptDebug())
