# SPDX-License-Identifier: MIT
"""The binding in user_data: one encoding, exact purposes; and PCR16."""

from __future__ import annotations

import hashlib
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.binding import Binding, Purpose, policy_hash, policy_pcr
from attestation.errors import PolicyMismatch
from attestation.measurements import ZERO_PCR, extend

HASH = hashlib.sha256(b"policy").digest()
BODY = hashlib.sha256(b"body").digest()
SOUND = ["veracruz/1", "session", HASH, None]


@pytest.mark.parametrize(
    "binding",
    [
        Binding(Purpose.SESSION, HASH, None),
        Binding(Purpose.RECEIPT, HASH, BODY),
        Binding(Purpose.RECIPIENT, HASH, None),
    ],
)
def test_decode_reads_what_encode_writes(binding: Binding) -> None:
    assert Binding.decode(binding.encode()) == binding


def test_the_encoding_is_as_documented() -> None:
    assert Binding(Purpose.SESSION, HASH, None).encode() == (b"\x84\x6averacruz/1\x67session\x58\x20" + HASH + b"\xf6")


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        SOUND[:3],
        [*SOUND, None],
        dict(enumerate(SOUND)),
        ["veracruz/2", *SOUND[1:]],
        [b"veracruz/1", *SOUND[1:]],
        ["veracruz/1", "Session", HASH, None],
        ["veracruz/1", "", HASH, None],
        ["veracruz/1", None, HASH, None],
        ["veracruz/1", ["session"], HASH, None],
        ["veracruz/1", "session", HASH[:-1], None],
        ["veracruz/1", "session", HASH + b"\0", None],
        ["veracruz/1", "session", HASH.hex(), None],
        ["veracruz/1", "session", None, None],
        ["veracruz/1", "session", HASH, BODY],
        ["veracruz/1", "recipient", HASH, BODY],
        ["veracruz/1", "receipt", HASH, None],
        ["veracruz/1", "receipt", HASH, BODY[:-1]],
        ["veracruz/1", "receipt", HASH, b""],
        ["veracruz/1", "session", HASH, False],
    ],
)
def test_decode_refuses_another_form(value: Any) -> None:
    with pytest.raises(PolicyMismatch):
        Binding.decode(cbor2.dumps(value))


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="empty"),
        pytest.param(cbor2.dumps(SOUND) + b"\0", id="trailing byte"),
        pytest.param(cbor2.dumps(SOUND)[:-1], id="truncated"),
        pytest.param(b"\x9f" + cbor2.dumps(SOUND)[1:] + b"\xff", id="open array"),
        pytest.param(b"\x98\x04" + cbor2.dumps(SOUND)[1:], id="long head"),
        pytest.param(b"\xd9\xd9\xf7" + cbor2.dumps(SOUND), id="tagged"),
        pytest.param(cbor2.dumps(SOUND[:3])[1:].join([b"\x84", b"\xf7"]), id="undefined body"),
        pytest.param(b"\x81" * 1000, id="nested"),
        pytest.param(bytes(1025), id="too long"),
    ],
)
def test_decode_refuses_another_encoding(raw: bytes) -> None:
    with pytest.raises(PolicyMismatch):
        Binding.decode(raw)


@given(st.binary(max_size=90))
def test_any_bytes_are_refused_or_are_the_one_encoding(raw: bytes) -> None:
    try:
        binding = Binding.decode(raw)
    except PolicyMismatch:
        return
    assert binding.encode() == raw


@pytest.mark.parametrize(
    "arguments",
    [
        (Purpose.SESSION, b"", None),
        (Purpose.SESSION, HASH, BODY),
        (Purpose.RECIPIENT, HASH, BODY),
        (Purpose.RECEIPT, HASH, None),
        (Purpose.RECEIPT, HASH, b"short"),
    ],
)
def test_a_binding_of_the_wrong_parts_cannot_be_made(arguments: tuple[Purpose, bytes, bytes | None]) -> None:
    with pytest.raises(ValueError, match=r"SHA-256|body"):
        Binding(*arguments)


def test_pcr16_is_one_extension_with_the_policys_hash() -> None:
    assert policy_hash(b"policy") == HASH
    assert policy_pcr(HASH) == extend(ZERO_PCR, HASH)
    with pytest.raises(ValueError, match="32 bytes"):
        policy_pcr(b"policy")
