# SPDX-License-Identifier: MIT
"""COSE_Sign1: vectors of our own for each algorithm, a second implementation's opinion, strictness of the form."""

from __future__ import annotations

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.cose import Algorithm, parse_sign1
from attestation.errors import BadSignature, MalformedEvidence, UnsignedEvidence
from attestation.limits import MAX_DOCUMENT

from .documents import ES384_HEADER, make_envelope, malleate, sign
from .second_opinion import pycose_accepts

PAYLOAD = b"This is the content."
CURVES = {
    Algorithm.ES256: ec.SECP256R1(),
    Algorithm.ES384: ec.SECP384R1(),
    Algorithm.ES512: ec.SECP521R1(),
}
KEY = ec.derive_private_key(0xC0FFEE, ec.SECP384R1())


def _header(algorithm: int) -> bytes:
    return cbor2.dumps({1: algorithm})


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_signature_of_each_algorithm_is_judged_as_by_pycose(algorithm: Algorithm) -> None:
    key = ec.generate_private_key(CURVES[algorithm])
    raw = make_envelope(PAYLOAD, key, protected=_header(algorithm))
    parsed = parse_sign1(raw)
    assert parsed.algorithm is algorithm
    parsed.verify(key.public_key())
    assert pycose_accepts(raw, key.public_key())

    forged = raw.replace(PAYLOAD, PAYLOAD.upper())
    with pytest.raises(BadSignature):
        parse_sign1(forged).verify(key.public_key())
    assert not pycose_accepts(forged, key.public_key())


def test_sig_structure_is_that_of_the_rfc() -> None:
    # RFC 9052 4.4: [context "Signature1", body_protected, external_aad, payload]
    assert parse_sign1(make_envelope(PAYLOAD, KEY)).to_be_signed == (
        bytes.fromhex("84 6a 5369676e617475726531 44 a1013822 40 54") + PAYLOAD
    )


def test_a_signature_verifies_with_the_larger_and_with_the_smaller_s() -> None:
    signature = sign(PAYLOAD, KEY)
    for form in (signature, malleate(signature)):
        parse_sign1(make_envelope(PAYLOAD, KEY, signature=form)).verify(KEY.public_key())


def test_a_signature_whose_s_has_leading_zeros_verifies() -> None:
    while (signature := sign(PAYLOAD, KEY))[48] != 0:
        pass
    parse_sign1(make_envelope(PAYLOAD, KEY, signature=signature)).verify(KEY.public_key())


def test_the_tag_is_optional() -> None:
    parse_sign1(make_envelope(PAYLOAD, KEY, tag=b"\xd2")).verify(KEY.public_key())


@pytest.mark.parametrize(
    "signature",
    [bytes(96), b"\xff" * 96, bytes(48) + b"\1" * 48, b"\1" * 48 + bytes(48)],
    ids=["zero", "above the order", "r is zero", "s is zero"],
)
def test_refuses_signatures_out_of_range(signature: bytes) -> None:
    with pytest.raises(BadSignature):
        parse_sign1(make_envelope(PAYLOAD, KEY, signature=signature)).verify(KEY.public_key())


def test_refuses_another_key_and_a_key_of_another_curve() -> None:
    parsed = parse_sign1(make_envelope(PAYLOAD, KEY))
    with pytest.raises(BadSignature, match="not the leaf"):
        parsed.verify(ec.generate_private_key(ec.SECP384R1()).public_key())
    with pytest.raises(BadSignature, match="another curve"):
        parsed.verify(ec.generate_private_key(ec.SECP256R1()).public_key())


def test_a_document_marked_unsigned_never_verifies() -> None:
    parsed = parse_sign1(make_envelope(PAYLOAD, KEY, protected=_header(-1), signature=bytes(64)))
    assert parsed.algorithm is None
    with pytest.raises(UnsignedEvidence):
        parsed.verify(KEY.public_key())


def _parts(*parts: object) -> bytes:
    return cbor2.dumps(list(parts))


SIGNATURE = bytes(96)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        pytest.param(b"", "truncated", id="empty"),
        pytest.param(bytes(MAX_DOCUMENT + 1), "too long", id="too long"),
        pytest.param(cbor2.dumps({}), "not an array of four", id="map"),
        pytest.param(cbor2.dumps(b"x"), "not an array of four", id="byte string"),
        pytest.param(_parts(ES384_HEADER, {}, PAYLOAD), "not an array of four", id="three parts"),
        pytest.param(_parts(ES384_HEADER, {}, PAYLOAD, SIGNATURE, 0), "not an array of four", id="five parts"),
        pytest.param(_parts(ES384_HEADER, {}, PAYLOAD, [[b"", {}, b""]]), "not byte strings", id="COSE_Sign"),
        pytest.param(_parts({1: -35}, {}, PAYLOAD, SIGNATURE), "headers", id="protected not wrapped"),
        pytest.param(_parts(ES384_HEADER, [], PAYLOAD, SIGNATURE), "headers", id="unprotected array"),
        pytest.param(_parts(ES384_HEADER, None, PAYLOAD, SIGNATURE), "headers", id="unprotected null"),
        pytest.param(_parts(ES384_HEADER, {}, None, SIGNATURE), "not byte strings", id="detached payload"),
        pytest.param(_parts(ES384_HEADER, {}, "text", SIGNATURE), "not byte strings", id="text payload"),
        pytest.param(_parts(ES384_HEADER, {}, b"", SIGNATURE), "empty payload", id="empty payload"),
        pytest.param(_parts(ES384_HEADER, {}, PAYLOAD, None), "not byte strings", id="no signature"),
        pytest.param(_parts(ES384_HEADER, {}, PAYLOAD, b""), "signature length", id="empty signature"),
        pytest.param(_parts(ES384_HEADER, {}, PAYLOAD, bytes(95)), "signature length", id="95 bytes"),
        pytest.param(_parts(ES384_HEADER, {}, PAYLOAD, bytes(97)), "signature length", id="97 bytes"),
        pytest.param(_parts(b"", {}, PAYLOAD, SIGNATURE), "protected header: truncated", id="empty protected"),
        pytest.param(_parts(b"", {1: -35}, PAYLOAD, SIGNATURE), "protected header", id="alg unprotected only"),
        pytest.param(_parts(_header(-7), {}, PAYLOAD, SIGNATURE), "expected 64 bytes", id="ES256, 96 bytes"),
        pytest.param(_parts(_header(-37), {}, PAYLOAD, SIGNATURE), "unknown algorithm", id="PS256"),
        pytest.param(_parts(_header(5), {}, PAYLOAD, SIGNATURE), "unknown algorithm", id="HMAC"),
        pytest.param(_parts(cbor2.dumps({1: "ES384"}), {}, PAYLOAD, SIGNATURE), "unknown algorithm", id="text alg"),
        pytest.param(_parts(cbor2.dumps({1: b"x"}), {}, PAYLOAD, SIGNATURE), "unknown algorithm", id="bytes alg"),
        pytest.param(_parts(cbor2.dumps({1: True}), {}, PAYLOAD, SIGNATURE), "unknown algorithm", id="boolean alg"),
        pytest.param(_parts(cbor2.dumps({1: None}), {}, PAYLOAD, SIGNATURE), "unknown algorithm", id="null alg"),
        pytest.param(_parts(cbor2.dumps({}), {}, PAYLOAD, SIGNATURE), "exactly one algorithm", id="no alg"),
        pytest.param(_parts(cbor2.dumps([1, -35]), {}, PAYLOAD, SIGNATURE), "exactly one", id="protected array"),
        pytest.param(_parts(cbor2.dumps({1: -35, 4: b"k"}), {}, PAYLOAD, SIGNATURE), "exactly one", id="key id"),
        pytest.param(_parts(cbor2.dumps({1: -35, 2: [99]}), {}, PAYLOAD, SIGNATURE), "exactly one", id="crit"),
        pytest.param(_parts(ES384_HEADER + b"\0", {}, PAYLOAD, SIGNATURE), "bytes after", id="protected, more"),
        pytest.param(_parts(bytes.fromhex("bf013822ff"), {}, PAYLOAD, SIGNATURE), "indefinite", id="open protected"),
        pytest.param(_parts(bytes.fromhex("a1013900 22"), {}, PAYLOAD, SIGNATURE), "shortest", id="long alg"),
        pytest.param(make_envelope(PAYLOAD, KEY) + b"\0", "bytes after", id="trailing byte"),
        pytest.param(make_envelope(PAYLOAD, KEY, tag=b"\xd1"), "tag", id="tag of COSE_Mac0"),
        pytest.param(make_envelope(PAYLOAD, KEY, tag=b"\xd8\x62"), "tag", id="tag of COSE_Sign"),
        pytest.param(make_envelope(PAYLOAD, KEY, tag=b"\xd2\xd2"), "tag", id="tagged twice"),
        pytest.param(make_envelope(PAYLOAD, KEY, tag=b"\xd8\x12"), "shortest", id="long tag"),
        pytest.param(make_envelope(PAYLOAD, KEY, tag=b"\xd9\xd9\xf7"), "tag", id="self-described CBOR"),
        pytest.param(b"\x9f" + make_envelope(PAYLOAD, KEY)[1:] + b"\xff", "indefinite", id="open array"),
    ],
)
def test_refuses_another_form(raw: bytes, message: str) -> None:
    with pytest.raises(MalformedEvidence, match=message):
        parse_sign1(raw)
