# SPDX-License-Identifier: MIT
"""The strict CBOR reader: one encoding for each value, and nothing but its own refusal for anything else."""

from __future__ import annotations

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation import cbor
from attestation.errors import MalformedEvidence

_keys = st.integers(-(2**64), 2**64 - 1) | st.text(max_size=8)
_leaves = st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.binary(max_size=300) | st.text(max_size=30)
_values = st.recursive(
    _leaves,
    lambda inner: st.lists(inner, max_size=5).map(tuple) | st.dictionaries(_keys, inner, max_size=5),
    max_leaves=20,
)


def _depth(value: object) -> int:
    match value:
        case tuple():
            return 1 + max(map(_depth, value), default=0)
        case dict():
            return 1 + max(map(_depth, value.values()), default=0)
    return 0


@given(_values.filter(lambda value: _depth(value) <= cbor.MAX_DEPTH))
def test_reads_what_another_implementation_writes(value: object) -> None:
    assert cbor.decode(cbor2.dumps(value), what="test") == value


@pytest.mark.parametrize("size", [0, 1, 23, 24, 255, 256, 4321, 2**16 - 1, 2**16, 2**16 + 1])
def test_writes_a_byte_string_as_another_implementation_does(size: int) -> None:
    assert cbor.encode_bytes(bytes(size)) == cbor2.dumps(bytes(size))


@given(st.binary(max_size=60))
def test_any_bytes_decode_to_a_value_of_that_encoding_or_are_refused(raw: bytes) -> None:
    try:
        value = cbor.decode(raw, what="test")
    except MalformedEvidence:
        return
    assert cbor2.dumps(value) == raw


def test_an_open_map_is_read_where_it_is_allowed() -> None:
    raw = bytes.fromhex("bf 61 61 01 61 62 f6 ff")
    assert cbor.decode(raw, what="test", open_map=True) == {"a": 1, "b": None}
    with pytest.raises(MalformedEvidence, match="indefinite length"):
        cbor.decode(raw, what="test")


def test_a_0xff_inside_a_byte_string_does_not_end_an_open_map() -> None:
    assert cbor.decode(bytes.fromhex("bf 61 61 43 ffffff ff"), what="test", open_map=True) == {"a": b"\xff\xff\xff"}


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        ("", "truncated"),
        ("18", "truncated"),
        ("19 01", "truncated"),
        ("1b 0000000000", "truncated"),
        ("44 000000", "truncated"),
        ("5b ffffffffffffffff 00", "truncated"),
        ("82 01", "truncated"),
        ("a1 01", "truncated"),
        ("9b ffffffffffffffff", "too many entries"),
        ("bb ffffffffffffffff", "too many entries"),
        ("98 41" + "00" * 65, "too many entries"),
        ("00 00", "bytes after the item at byte 1"),
        ("1c", "reserved head"),
        ("3d", "reserved head"),
        ("5e", "reserved head"),
        ("ff", "indefinite length or break"),
        ("9f 01 ff", "indefinite length"),
        ("5f 41 00 ff", "indefinite length"),
        ("7f 61 61 ff", "indefinite length"),
        ("82 01 ff", "break"),
        ("81 bf ff", "indefinite length"),
        ("18 17", "shortest form"),
        ("19 00ff", "shortest form"),
        ("1a 0000ffff", "shortest form"),
        ("1b 00000000ffffffff", "shortest form"),
        ("58 01 00", "shortest form"),
        ("b8 01 01 01", "shortest form"),
        ("a2 01 01 01 02", "duplicate map key"),
        ("a2 61 61 01 61 61 01", "duplicate map key"),
        ("a1 41 00 01", "map key"),
        ("a1 f5 01", "map key"),
        ("a1 80 01", "map key"),
        ("62 c3 28", "not UTF-8"),
        ("c0 61 61", "tag"),
        ("c2 41 01", "tag"),
        ("d8 23 61 28", "tag"),
        ("d9 d9f7 00", "tag"),
        ("f9 3e00", "float"),
        ("fb 3ff8000000000000", "float"),
        ("f7", "simple value"),
        ("f8 ff", "simple value"),
        ("e0", "simple value"),
        ("81 81 81 81 81 00", "nested too deep"),
    ],
)
def test_refuses(encoded: str, message: str) -> None:
    with pytest.raises(MalformedEvidence, match=message):
        cbor.decode(bytes.fromhex(encoded), what="test")


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        ("bf", "truncated"),
        ("bf 61 61 01", "truncated"),
        ("bf 61 61 ff", "indefinite length or break"),
        ("bf ff 00", "bytes after the item"),
        ("bf 61 61 01 61 61 01 ff", "duplicate map key"),
        ("bf 61 61 bf ff ff", "indefinite length"),
        ("bf 61 61 9f ff ff", "indefinite length"),
        ("bf" + "".join(f"18{n:02x}00" for n in range(24, 89)) + "ff", "too many entries"),
    ],
)
def test_refuses_a_broken_open_map(encoded: str, message: str) -> None:
    with pytest.raises(MalformedEvidence, match=message):
        cbor.decode(bytes.fromhex(encoded), what="test", open_map=True)


def test_a_caller_sets_how_many_entries_there_may_be() -> None:
    raw = cbor2.dumps([0] * 100)
    assert cbor.decode(raw, what="list", max_items=100) == (0,) * 100
    with pytest.raises(MalformedEvidence, match="too many entries"):
        cbor.decode(raw, what="list", max_items=99)
