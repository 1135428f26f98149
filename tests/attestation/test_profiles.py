# SPDX-License-Identifier: MIT
"""Other evidence joins as a profile that only this test has: a NitroTPM's documents by a value, Arm's by a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from attestation import cbor
from attestation.chain import Chain, ChainCache, Root
from attestation.cose import Algorithm
from attestation.document import NITRO_ENCLAVE, Document, NitroProfile, Profile
from attestation.errors import (
    BadSignature,
    DebugEvidence,
    EmptyExpectations,
    MalformedEvidence,
    MalformedInput,
    MeasurementMismatch,
    NonceMismatch,
    StaleEvidence,
    UntrustedChain,
)
from attestation.expectations import (
    Expectations,
    ImageIs,
    MaxAge,
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
NITRO_TPM = NitroProfile(
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


def test_a_profile_without_a_register_that_says_what_runs_cannot_be_demanded() -> None:
    """All of none would be demanded: an empty Expectations, and it would pass."""
    for profile in (replace(NITRO_TPM, image=()), replace(PsaToken(), image=())):
        with pytest.raises(MalformedInput, match="no register says what runs"):
            ProfileIs(profile)


@pytest.mark.parametrize("change", [{"registers": "foo"}, {"required": ("module_id", "digest")}])
def test_a_profile_whose_payload_could_not_be_read_cannot_be_made(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedInput, match="keys that are not required"):
        replace(NITRO_TPM, **change)


def test_a_register_of_the_image_must_be_in_the_document() -> None:
    demanding = replace(NITRO_TPM, register_count=30, image=(4, 12, 29))
    with pytest.raises(MalformedEvidence, match=r"nitrotpm_pcrs\[29\]: missing"):
        _verify(_document(), ProfileIs(demanding), *BOOTED, RegisterIs(29, bytes(48)))


def test_the_profile_of_a_nitro_enclave_is_the_default() -> None:
    assert Expectations.of().profile is NITRO_ENCLAVE
    assert _verify(make_document(PKI), ProfileIs(NITRO_ENCLAVE), ImageIs.any_of([IMAGE]), UnsafeAcceptDebug())


# --- Arm's: RFC 9783, whose claims have integer keys, with a key that the verifier knows beforehand and no time ---

NONCE_CLAIM, INSTANCE_CLAIM, COMPONENTS_CLAIM = 10, 256, 2399
OTHER_CLAIMS = {2394: 1, 2395: 0x3000, 2396: bytes(32)}  # client, security lifecycle, implementation: all mandatory
MEASUREMENT, SIGNER = 2, 5  # of a software component
ES256_HEADER = cbor2.dumps({1: -7})
INSTANCE = b"\x01" + bytes(range(32))
KEY = ec.generate_private_key(ec.SECP256R1())
SPKI = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
ANCHOR = Root(SPKI, INSTANCE.hex())
LOADED = (RegisterIs(0, b"\x0a" * 48), RegisterIs(1, b"\x0b" * 48))


@dataclass(frozen=True)
class PsaToken(Profile):
    """A PSA token of two software components; its anchor is the key of an instance, not a certificate."""

    name: str = "psa"
    algorithm: Algorithm = Algorithm.ES256
    image: tuple[int, ...] = (0, 1)
    zero_is_debug: bool = False

    def parse(self, payload: bytes) -> Document:
        claims = cbor.decode(payload, what="payload")
        if type(claims) is not dict or not {NONCE_CLAIM, INSTANCE_CLAIM, COMPONENTS_CLAIM, *OTHER_CLAIMS} <= set(
            claims
        ):
            raise MalformedEvidence("payload: no PSA token", expected="its claims", actual=cbor.describe(claims))
        nonce, instance, components = (claims[key] for key in (NONCE_CLAIM, INSTANCE_CLAIM, COMPONENTS_CLAIM))
        if type(nonce) is not bytes or type(instance) is not bytes or type(components) is not tuple:
            raise MalformedEvidence("payload: no PSA token", expected="its claims", actual="other types")
        registers = {}
        for index, component in enumerate(components):
            if type(component) is not dict or type(measurement := component.get(MEASUREMENT)) is not bytes:
                raise MalformedEvidence("components: wrong form", expected="a measurement", actual="none")
            registers[index] = measurement
        if not set(self.image) <= set(registers):
            raise MalformedEvidence("components: missing", expected=2, actual=len(registers))
        return Document(
            module_id=instance.hex(), digest="SHA384", timestamp=None, pcrs=registers, certificate=b"", cabundle=(),
            public_key=None, user_data=None, nonce=nonce,
        )  # fmt: skip

    def trace(
        self, document: Document, *, roots: Sequence[Root], at: datetime, links: ChainCache | None = None
    ) -> Chain:
        for root in roots:
            if root.name == document.module_id:
                key = load_der_public_key(root.certificate)
                assert isinstance(key, ec.EllipticCurvePublicKey)
                return Chain(root, (), key)
        raise UntrustedChain("no key of this instance was chosen", expected=document.module_id, actual="none")


def _token(*, key: ec.EllipticCurvePrivateKey = KEY, nonce: bytes = NONCE) -> bytes:
    components = [{MEASUREMENT: bytes([10 + index]) * 48, SIGNER: bytes(48)} for index in range(2)]
    claims = {NONCE_CLAIM: nonce, INSTANCE_CLAIM: INSTANCE, **OTHER_CLAIMS, COMPONENTS_CLAIM: components}
    payload = cbor2.dumps(claims)
    return make_envelope(payload, key, protected=ES256_HEADER)


def _verify_token(token: bytes, *terms: Term, root: Root = ANCHOR) -> Appraisal:
    return _verify(token, ProfileIs(PsaToken()), *terms, root=root)


def test_a_token_of_arms_verifies_under_the_key_of_its_instance() -> None:
    appraisal = _verify_token(_token(), *LOADED, NonceIs(NONCE))
    assert (appraisal.module_id, appraisal.timestamp, appraisal.chain) == (INSTANCE.hex(), None, ())
    assert appraisal.root is ANCHOR
    assert appraisal.made == "at a time that it does not tell"
    assert verify(
        _token(), expected=Expectations.of(ProfileIs(PsaToken()), *LOADED), at=MADE_AT, roots=[PKI.root, ANCHOR],
        links=ChainCache(),
    ).nonce == NONCE  # fmt: skip


def test_an_anchor_that_a_profile_found_elsewhere_is_not_trusted() -> None:
    @dataclass(frozen=True)
    class Generous(PsaToken):
        def trace(
            self, document: Document, *, roots: Sequence[Root], at: datetime, links: ChainCache | None = None
        ) -> Chain:
            return super().trace(document, roots=[ANCHOR], at=at, links=links)

    with pytest.raises(UntrustedChain, match="an anchor that was not chosen"):
        _verify(_token(), ProfileIs(Generous()), *LOADED)


def test_a_zero_in_its_own_registers_is_what_tells_of_debug_mode() -> None:
    """Whatever the others are: PCR0, PCR1 and PCR2 mean something else there, or nothing."""
    debuggable = replace(NITRO_TPM, zero_is_debug=True)
    assert _verify(_document(), ProfileIs(debuggable), *BOOTED)
    with pytest.raises(DebugEvidence, match="PCR4 or PCR11 is zero"):
        _verify(_document(), ProfileIs(replace(debuggable, image=(4, 11))), UnsafeAcceptAnyImage())


def test_it_is_refused_where_anything_is_another() -> None:
    with pytest.raises(BadSignature):
        _verify_token(_token(key=ec.generate_private_key(ec.SECP256R1())), *LOADED)
    with pytest.raises(UntrustedChain, match="no key of this instance"):
        _verify_token(_token(), *LOADED, root=PKI.root)
    with pytest.raises(NonceMismatch):
        _verify_token(_token(nonce=bytes(32)), *LOADED, NonceIs(NONCE))
    with pytest.raises(MeasurementMismatch, match="PCR1"):
        _verify_token(_token(), LOADED[0], RegisterIs(1, bytes(48)))
    with pytest.raises(EmptyExpectations):
        _verify_token(_token(), LOADED[0])
    with pytest.raises(MalformedEvidence, match="wrong algorithm; expected ES384, got ES256"):
        _verify(_token(), UnsafeAcceptAnyImage())
    with pytest.raises(MalformedEvidence, match="wrong algorithm; expected ES256, got ES384"):
        _verify_token(make_document(PKI), *LOADED)


def test_evidence_without_a_time_has_neither_age_nor_archive() -> None:
    with pytest.raises(StaleEvidence, match="tells no time"):
        _verify_token(_token(), *LOADED, MaxAge(timedelta(days=1)))
    with pytest.raises(MalformedEvidence, match="no time of its own"):
        archived_time(_token(), profile=PsaToken())
