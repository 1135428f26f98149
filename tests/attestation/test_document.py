# SPDX-License-Identifier: MIT
"""The payload: every form that AWS has been seen to sign is read, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import cbor2
import pytest

from attestation.document import parse_document
from attestation.errors import MalformedEvidence
from attestation.limits import MAX_TIMESTAMP_MS

from .documents import DEBUG, IMAGE, MODULE_ID, NITRO_FORMS, Pki, make_fields, make_map, make_payload, make_pcrs

PKI = Pki({name: b"DER of " + name.encode() for name in NITRO_FORMS}, {})  # parsing does not look into certificates


def _payload(**changes: Any) -> bytes:
    return make_payload(make_fields(PKI, **changes))


def _without(*names: str) -> bytes:
    return make_payload({name: value for name, value in make_fields(PKI).items() if name not in names})


def test_every_field_is_read() -> None:
    fields = make_fields(PKI, timestamp=1_614_963_709_567)
    document = parse_document(make_payload(fields))
    assert document.module_id == MODULE_ID
    assert document.digest == "SHA384"
    assert document.timestamp == datetime(2021, 3, 5, 17, 1, 49, 567_000, tzinfo=UTC)
    assert document.pcrs == make_pcrs()
    assert document.measurements == IMAGE
    assert document.certificate == PKI.leaf
    assert list(document.cabundle) == PKI.cabundle
    assert (document.public_key, document.user_data, document.nonce) == tuple(
        fields[name] for name in ("public_key", "user_data", "nonce")
    )


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(make_payload(make_fields(PKI), indefinite=True), id="open map, as since December 2025"),
        pytest.param(_payload(public_key=None, user_data=None, nonce=None), id="null fields"),
        pytest.param(_without("public_key", "user_data", "nonce"), id="absent fields"),
        pytest.param(_payload(user_data=b"", nonce=b""), id="empty fields"),
        pytest.param(_payload(public_key=bytes(1024), user_data=bytes(1024), nonce=bytes(1024)), id="1,024 bytes"),
        pytest.param(_payload(pcrs=make_pcrs(policy_hash=None)), id="16 registers"),
        pytest.param(_payload(pcrs={index: bytes([index + 1]) * 48 for index in range(32)}), id="32 registers"),
        pytest.param(_payload(pcrs=make_pcrs(DEBUG)), id="debug mode"),
        pytest.param(_payload(timestamp=1), id="the first time"),
        pytest.param(_payload(timestamp=MAX_TIMESTAMP_MS), id="the last time"),
        pytest.param(_payload(certificate=bytes(1024)), id="a certificate of 1,024 bytes"),
        pytest.param(_payload(certificate=b"\xff" * 100, user_data=b"\xff" * 9), id="0xff in byte strings"),
    ],
)
def test_reads(payload: bytes) -> None:
    assert parse_document(payload).module_id == MODULE_ID


def test_the_registers_of_a_document_cannot_be_changed() -> None:
    pcrs: Any = parse_document(_payload()).pcrs
    with pytest.raises(TypeError):
        pcrs[0] = bytes(48)


def _raw(*, drop: str = "", extra: tuple[tuple[Any, Any], ...] = (), indefinite: bool = False) -> bytes:
    entries = [(cbor2.dumps(k), cbor2.dumps(v)) for k, v in make_fields(PKI).items() if k != drop]
    return make_map([*entries, *((cbor2.dumps(k), cbor2.dumps(v)) for k, v in extra)], indefinite=indefinite)


_REORDERED = {name: make_fields(PKI)[name] for name in reversed(make_fields(PKI))}
_DUPLICATE_PCR = make_map([(cbor2.dumps(i % 3), cbor2.dumps(bytes(48))) for i in range(4)])
_OPEN_PCRS = make_map([(cbor2.dumps(i), cbor2.dumps(bytes(48))) for i in range(16)], indefinite=True)


def _with_raw(name: str, raw: bytes, *, indefinite: bool = False) -> bytes:
    entries = [(cbor2.dumps(k), raw if k == name else cbor2.dumps(v)) for k, v in make_fields(PKI).items()]
    return make_map(entries, indefinite=indefinite)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        pytest.param(b"", "truncated", id="empty"),
        pytest.param(cbor2.dumps([]), "no map", id="array"),
        pytest.param(b"\xa0", "module_id: missing", id="empty map"),
        pytest.param(b"\xbf\xff", "module_id: missing", id="empty open map"),
        *(
            pytest.param(_without(name), f"{name}: missing", id=f"no {name}")
            for name in ("module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle")
        ),
        *(
            pytest.param(_payload(**{name: None}), f"{name}: ", id=f"null {name}")
            for name in ("module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle")
        ),
        pytest.param(_raw(extra=(("nitrotpm_pcrs", {}),)), "unknown key", id="unknown key"),
        pytest.param(_raw(extra=((7, 7),)), "unknown key", id="integer key"),
        pytest.param(_raw(extra=(("nonce", b"x"),)), "duplicate map key", id="duplicate key"),
        pytest.param(_raw(extra=(("nonce", b"x"),), indefinite=True), "duplicate map key", id="duplicate, open"),
        pytest.param(_raw(drop="nonce", extra=((b"nonce", b"x"),)), "map key", id="key of bytes"),
        pytest.param(make_payload(_REORDERED), "keys out of order", id="reordered keys"),
        pytest.param(_payload() + b"\0", "bytes after", id="trailing byte"),
        pytest.param(_payload()[:-1], "truncated", id="truncated"),
        pytest.param(_raw(indefinite=True)[:-1], "truncated", id="no break"),
        pytest.param(_raw(indefinite=True) + b"\0", "bytes after", id="bytes after the break"),
        pytest.param(_raw(indefinite=True)[:-1] + b"\x65nonce\xff", "duplicate|break", id="key without a value"),
        pytest.param(_with_raw("nonce", b"\xff"), "break", id="break as a value"),
        pytest.param(_with_raw("nonce", b"\x5f\x41\x00\xff"), "indefinite", id="chunked nonce"),
        pytest.param(_with_raw("nonce", b"\x5f\x61\x00\xff"), "indefinite", id="wrong chunk"),
        pytest.param(_with_raw("nonce", b"\x1c"), "reserved", id="reserved head"),
        pytest.param(_with_raw("pcrs", _OPEN_PCRS), "indefinite", id="open pcrs"),
        pytest.param(_with_raw("pcrs", _OPEN_PCRS, indefinite=True), "indefinite", id="open pcrs in an open map"),
        pytest.param(_with_raw("cabundle", b"\x9f\x41\x00\xff"), "indefinite", id="open cabundle"),
        pytest.param(_with_raw("pcrs", _DUPLICATE_PCR), "duplicate map key", id="duplicate register"),
        pytest.param(_with_raw("timestamp", b"\xc1\x1a\x65\x00\x00\x00"), "tag", id="tagged time"),
        pytest.param(_with_raw("timestamp", b"\xc2\x41\x01"), "tag", id="big number"),
        pytest.param(_with_raw("timestamp", b"\xfb\x42\x78\x00\x00\x00\x00\x00\x00"), "float", id="float time"),
        pytest.param(_with_raw("pcrs", b"\xbb" + b"\xff" * 8), "too many", id="huge map"),
        pytest.param(_with_raw("cabundle", b"\x9b" + b"\xff" * 8), "too many", id="huge array"),
        pytest.param(_with_raw("nonce", b"\x5b" + b"\xff" * 8), "truncated", id="huge byte string"),
        pytest.param(_with_raw("nonce", b"\x81" * 500 + b"\0"), "nested too deep", id="deep nesting"),
        pytest.param(_payload(module_id=""), "module_id: wrong form", id="empty module id"),
        pytest.param(_payload(module_id="x" * 129), "module_id: wrong form", id="long module id"),
        pytest.param(_payload(module_id="i-0\x1b[2J"), r"module_id: .*\\x1b", id="escape in the module id"),
        pytest.param(_payload(module_id=b"i-0"), "module_id: wrong form", id="module id of bytes"),
        pytest.param(_payload(digest="SHA256"), "digest", id="SHA256"),
        pytest.param(_payload(digest="sha384"), "digest", id="small sha384"),
        pytest.param(_payload(digest=b"SHA384"), "digest", id="digest of bytes"),
        pytest.param(_payload(timestamp=0), "timestamp", id="time zero"),
        pytest.param(_payload(timestamp=-1), "timestamp", id="negative time"),
        pytest.param(_payload(timestamp=MAX_TIMESTAMP_MS + 1), "timestamp", id="time after 9999"),
        pytest.param(_payload(timestamp=True), "timestamp", id="boolean time"),
        pytest.param(_payload(timestamp="now"), "timestamp", id="text time"),
        pytest.param(_payload(pcrs={}), "1..32 registers", id="no registers"),
        pytest.param(_payload(pcrs={index: bytes(48) for index in range(33)}), "1..32", id="33 registers"),
        pytest.param(_payload(pcrs=make_pcrs(pcr32=bytes(48))), "wrong index", id="register 32"),
        pytest.param(_payload(pcrs={**make_pcrs(), -1: bytes(48)}), "wrong index", id="register -1"),
        pytest.param(_payload(pcrs={**make_pcrs(), "17": bytes(48)}), "wrong index", id="register of text"),
        pytest.param(_payload(pcrs=make_pcrs(pcr7=bytes(32))), r"pcrs\[7\]", id="register of 32 bytes"),
        pytest.param(_payload(pcrs=make_pcrs(pcr7=bytes(64))), r"pcrs\[7\]", id="register of 64 bytes"),
        pytest.param(_payload(pcrs=make_pcrs(pcr7=b"")), r"pcrs\[7\]", id="empty register"),
        pytest.param(_payload(pcrs={**make_pcrs(), 7: None}), r"pcrs\[7\]", id="null register"),
        pytest.param(_payload(pcrs={**make_pcrs(), 7: "x" * 48}), r"pcrs\[7\]", id="text register"),
        pytest.param(_payload(pcrs=make_pcrs(pcr1=None)), r"pcrs\[1\]: missing", id="no PCR1"),
        pytest.param(
            _payload(pcrs=[bytes(48)] * 16), "map of 1..32 registers, got array of 16", id="array of registers"
        ),
        pytest.param(_payload(certificate=b""), "certificate", id="empty certificate"),
        pytest.param(_payload(certificate=bytes(1025)), "certificate", id="certificate of 1,025 bytes"),
        pytest.param(_payload(certificate="x"), "certificate", id="text certificate"),
        pytest.param(_payload(cabundle=[]), "cabundle", id="empty cabundle"),
        pytest.param(_payload(cabundle=[b"x"] * 9), "cabundle", id="cabundle of nine"),
        pytest.param(_payload(cabundle=b"x"), "cabundle", id="cabundle of bytes"),
        pytest.param(_payload(cabundle=[b"x", b""]), r"cabundle\[1\]", id="empty entry"),
        pytest.param(_payload(cabundle=[b"x", None]), r"cabundle\[1\]", id="null entry"),
        pytest.param(_payload(cabundle=[bytes(1025)]), r"cabundle\[0\]", id="entry of 1,025 bytes"),
        pytest.param(_payload(public_key=b""), "public_key: empty", id="empty public key"),
        *(
            pytest.param(_payload(**{name: value}), f"{name}: wrong form", id=f"{name}: {what}")
            for name in ("public_key", "user_data", "nonce")
            for what, value in (("1,025 bytes", bytes(1025)), ("text", "x"), ("false", False), ("array", []))
        ),
    ],
)
def test_refuses(payload: bytes, message: str) -> None:
    with pytest.raises(MalformedEvidence, match=message):
        parse_document(payload)
