# SPDX-License-Identifier: MIT
"""Ours and pycose reach the same verdict on the signature of every document that our parser accepts."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from pycose.messages import CoseMessage, Sign1Message

from attestation.cose import parse_sign1
from attestation.document import parse_document
from attestation.errors import MalformedEvidence

from . import cose_forms
from .documents import (
    NONCE,
    P384_ORDER,
    PUBLIC_KEY,
    make_envelope,
    make_fields,
    make_payload,
    make_pcrs,
    make_pki,
    malleate,
    sign,
)
from .second_opinion import pycose_accepts, we_accept

PKI = make_pki()
LEAF = PKI.keys["leaf"]
STRANGER = ec.generate_private_key(ec.SECP384R1())

few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _field(least: int, usual: bytes) -> st.SearchStrategy[bytes | None]:
    sizes = st.sampled_from([least, 1, 32, 512, 1023, 1024])
    return st.one_of(st.just(usual), st.none(), sizes.map(bytes), st.binary(min_size=least, max_size=64))


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    """Return payloads of every form that is known of real documents, and of those that none of them shows."""
    more = draw(st.sampled_from([0, 1, 15, 16]))  # registers locked beside the 16 of boot
    extra: dict[str, Any] = {f"pcr{index}": bytes([index]) * 48 for index in range(16, 16 + more)}
    fields = make_fields(
        PKI,
        pcrs=make_pcrs(policy_hash=None, **extra),
        public_key=draw(_field(1, PUBLIC_KEY)),
        user_data=draw(_field(0, b"user data")),
        nonce=draw(_field(0, NONCE)),
        timestamp=draw(st.integers(1, 253_402_300_799_999)),
    )
    return make_payload(fields, indefinite=draw(st.booleans()))


def _other_signatures(payload: bytes) -> dict[str, bytes]:
    good = sign(payload, LEAF)
    r, s = good[:48], good[48:]
    number = int.from_bytes(s, "big")
    flipped = bytearray(good)
    flipped[payload[-1] % 96] ^= 1 << (payload[-2] % 8)
    return {
        "good": good,
        "the other s": malleate(good),
        "high s": r + max(number, P384_ORDER - number).to_bytes(48, "big"),
        "low s": r + min(number, P384_ORDER - number).to_bytes(48, "big"),
        "flipped bit": bytes(flipped),
        "a stranger's": sign(payload, STRANGER),
        "over another payload": sign(payload + b"\0", LEAF),
        "over no header": sign(payload, LEAF, protected=b""),
        "swapped": s + r,
        "zeros": bytes(96),
        "ones": b"\xff" * 96,
        "s is zero": r + bytes(48),
        "r is the order": P384_ORDER.to_bytes(48, "big") + s,
        "s is the order": r + P384_ORDER.to_bytes(48, "big"),
        "s above the order": r + (P384_ORDER + 1).to_bytes(48, "big"),
    }


GOOD = {"good", "the other s", "high s", "low s"}


@few
@given(payloads(), st.sampled_from(sorted(_other_signatures(make_payload(make_fields(PKI))))), st.booleans())
def test_the_same_verdict_on_every_form_with_every_signature(payload: bytes, kind: str, tagged: bool) -> None:
    signature = _other_signatures(payload)[kind]
    raw = make_envelope(payload, LEAF, signature=signature, tag=b"\xd2" if tagged else b"")
    parse_document(parse_sign1(raw).payload)  # our parser accepts it
    event(kind)
    verdict = we_accept(raw, LEAF.public_key())
    assert verdict is (kind in GOOD)
    assert pycose_accepts(raw, LEAF.public_key()) is verdict


@few
@given(payloads(), st.data())
def test_the_same_verdict_on_changed_documents(payload: bytes, data: st.DataObject) -> None:
    document = bytearray(make_envelope(payload, LEAF))
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.integers(0, len(document) - 1))
        document[place] ^= 1 << data.draw(st.integers(0, 7))
    raw = bytes(document)
    try:
        verdict = we_accept(raw, LEAF.public_key())
    except MalformedEvidence:
        event("refused by our parser")
        return
    event(f"signature {'good' if verdict else 'bad'}")
    assert pycose_accepts(raw, LEAF.public_key()) is verdict


@pytest.mark.parametrize("position", [0, 47, 48, 95])
@pytest.mark.parametrize("bit", range(8))
def test_the_same_verdict_on_a_flipped_bit_of_the_signature(position: int, bit: int) -> None:
    payload = make_payload(make_fields(PKI))
    signature = bytearray(sign(payload, LEAF))
    signature[position] ^= 1 << bit
    raw = make_envelope(payload, LEAF, signature=bytes(signature))
    assert we_accept(raw, LEAF.public_key()) is pycose_accepts(raw, LEAF.public_key()) is False


def test_pycose_empties_the_list_that_it_is_given() -> None:
    """Why nobody but the tests gives it one."""
    parts = list(cbor2.loads(make_envelope(make_payload(make_fields(PKI)), LEAF)))
    Sign1Message.from_cose_obj(parts, allow_unknown_attributes=True)
    assert len(parts) < 4


@pytest.mark.parametrize(("tag", "error"), [(b"", AttributeError), (b"\xd2", TypeError)], ids=["untagged", "tagged"])
def test_pycose_by_its_decode_reads_no_document_at_all(tag: bytes, error: type[Exception]) -> None:
    raw = make_envelope(make_payload(make_fields(PKI)), LEAF, tag=tag)
    assert we_accept(raw, LEAF.public_key())
    with pytest.raises(error):
        CoseMessage.decode(raw)


# Forms on which the two differ


def test_the_page_on_forms_says_what_the_implementations_do() -> None:
    page = cose_forms.PAGE.read_text()
    written = page.partition(cose_forms.BEGIN)[2].partition(cose_forms.END)[0].strip()
    assert written == cose_forms.table(), "run python -m tests.attestation.cose_forms"


def test_no_form_is_accepted_by_us_and_refused_as_badly_signed_by_pycose() -> None:
    for name, (ours, whole, theirs) in cose_forms.verdicts().items():
        assert (ours, theirs) not in (("accepted", "bad signature"), ("bad signature", "accepted")), name
        assert whole != "accepted" or (ours, theirs) == ("accepted", "accepted"), name
