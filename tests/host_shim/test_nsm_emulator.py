# SPDX-License-Identifier: MIT
"""The emulated NSM, request by request, and its documents in the verifier's hands."""

from __future__ import annotations

import hashlib
import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_der_x509_certificate
from hypothesis import given, settings
from hypothesis import strategies as st
from pycose.keys import EC2Key
from pycose.messages import Sign1Message

from attestation import nsm
from attestation.chain import load_root, verify_chain
from attestation.cose import parse_sign1
from attestation.document import parse_document
from attestation.errors import UsageError
from attestation.measurements import Measurements, role_pcr
from attestation.nsm import ErrorCode
from host_shim.dev_pki import Authority, Chain, make_root
from host_shim.nsm_emulator import BootState, Identity, NsmEmulator

AT = datetime(2026, 11, 22, 12, 0, 0, 250_000, tzinfo=UTC)
MEASURED = Measurements(b"\x01" * 48, b"\x02" * 48, b"\x03" * 48)
WHO = Identity("i-0123456789abcdef0", "enc0123456789abcdef")
ROLE = "arn:aws:iam::123456789012:role/Webserver"


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = AT

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture(scope="module")
def root() -> Authority:
    return make_root(AT)


def emulator(root: Authority, *, measured: Measurements | None = MEASURED, **options: Any) -> NsmEmulator:
    identity = options.pop("identity", WHO)
    signer = options.pop("signer", None)
    options.setdefault("clock", Clock())
    return NsmEmulator(BootState(measured, identity, signer), Chain(root, module_id=identity.module_id), **options)


@pytest.fixture
def module(root: Authority) -> NsmEmulator:
    return emulator(root)


def ask(module: NsmEmulator, request: nsm.Request) -> nsm.Response:
    return nsm.decode_response(module.answer(nsm.encode_request(request)))


def attest(module: NsmEmulator, **fields: bytes | None) -> bytes:
    answer = ask(module, nsm.Attest(**fields))
    assert isinstance(answer, nsm.Document)
    return answer.document


def register(module: NsmEmulator, index: int) -> nsm.PcrState:
    answer = ask(module, nsm.DescribePcr(index))
    assert isinstance(answer, nsm.PcrState)
    return answer


def test_describes_itself(module: NsmEmulator) -> None:
    described = ask(module, nsm.DescribeNsm())
    assert described == nsm.NsmDescription((1, 0, 0), WHO.module_id, 32, tuple(range(16)), "SHA384")


def test_registers_at_boot(root: Authority) -> None:
    module = emulator(root, identity=Identity("i-0123456789abcdef0", "enc1", ROLE), signer=b"certificate")
    values = {index: register(module, index) for index in range(32)}
    assert [index for index, state in values.items() if state.lock] == list(range(16))
    assert tuple(values[index].data for index in range(3)) == MEASURED.registers
    assert values[3].data == role_pcr(ROLE)
    assert values[3].data.hex().startswith("78fce75db17cd4e0")  # qos' published vector
    assert values[4].data == hashlib.sha384(bytes(48) + b"i-0123456789abcdef0").digest()
    assert values[8].data == hashlib.sha384(bytes(48) + hashlib.sha384(b"certificate").digest()).digest()
    rest = [index for index, state in values.items() if state.data == bytes(48)]
    assert rest == [5, 6, 7, *range(9, 32)]


def test_debug_mode_zeroes_the_image_and_not_the_instance(root: Authority) -> None:
    module = emulator(root, measured=None, identity=Identity("i-1", "enc1", ROLE), signer=b"certificate")
    assert [index for index in range(32) if register(module, index).data != bytes(48)] == [3, 4]


def test_random_is_256_bytes_and_new(module: NsmEmulator) -> None:
    first, second = ask(module, nsm.GetRandom()), ask(module, nsm.GetRandom())
    assert isinstance(first, nsm.Random)
    assert len(first.random) == 256
    assert first != second


def test_extends_as_the_real_one(module: NsmEmulator) -> None:
    first = hashlib.sha384(bytes(48) + b"data").digest()
    assert ask(module, nsm.ExtendPcr(16, b"data")) == nsm.Extended(first)
    second = hashlib.sha384(first + b"").digest()
    assert ask(module, nsm.ExtendPcr(16, b"")) == nsm.Extended(second)
    assert register(module, 16) == nsm.PcrState(False, second)
    assert register(module, 17) == nsm.PcrState(False, bytes(48))


def test_a_lock_holds_for_ever(module: NsmEmulator) -> None:
    assert ask(module, nsm.LockPcr(16)) == nsm.Locked()
    read_only = nsm.Refused(ErrorCode.READ_ONLY_INDEX)
    assert ask(module, nsm.ExtendPcr(16, b"data")) == read_only
    assert ask(module, nsm.LockPcr(16)) == read_only
    assert register(module, 16) == nsm.PcrState(True, bytes(48))


def test_range_locks_below_its_end_and_again(module: NsmEmulator) -> None:
    assert ask(module, nsm.LockPcrs(20)) == nsm.RangeLocked()
    assert register(module, 19).lock
    assert not register(module, 20).lock
    assert ask(module, nsm.LockPcrs(32)) == nsm.RangeLocked()
    assert ask(module, nsm.LockPcrs(32)) == nsm.RangeLocked()
    assert ask(module, nsm.LockPcrs(33)) == nsm.Refused(ErrorCode.INVALID_INDEX)


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (nsm.DescribePcr(32), ErrorCode.INVALID_INDEX),
        (nsm.ExtendPcr(32, b""), ErrorCode.INVALID_INDEX),
        (nsm.LockPcr(32), ErrorCode.INVALID_INDEX),
        (nsm.LockPcr(0), ErrorCode.READ_ONLY_INDEX),
        (nsm.ExtendPcr(15, b""), ErrorCode.READ_ONLY_INDEX),
        (nsm.Attest(user_data=bytes(1025)), ErrorCode.INPUT_TOO_LARGE),
        (nsm.Attest(nonce=bytes(1025)), ErrorCode.INPUT_TOO_LARGE),
        (nsm.Attest(public_key=bytes(1025)), ErrorCode.INPUT_TOO_LARGE),
    ],
    ids=str,
)
def test_refuses_with_the_name_of_the_error(module: NsmEmulator, request_: nsm.Request, code: ErrorCode) -> None:
    assert ask(module, request_) == nsm.Refused(code)


def test_refuses_a_request_longer_than_the_device_takes(module: NsmEmulator) -> None:
    longest = nsm.encode_request(nsm.ExtendPcr(16, bytes(0x1000 - 27)))
    assert len(longest) == 0x1000
    assert isinstance(nsm.decode_response(module.answer(longest)), nsm.Extended)
    too_long = nsm.encode_request(nsm.ExtendPcr(16, bytes(0x1000)))
    assert nsm.decode_response(module.answer(too_long)) == nsm.Refused(ErrorCode.INPUT_TOO_LARGE)


def test_passes_the_real_modules_own_check(root: Authority) -> None:
    """The steps of nsm-check, in its order: what it demands of hardware, the emulator gives."""
    module = emulator(root)
    described = ask(module, nsm.DescribeNsm())
    assert isinstance(described, nsm.NsmDescription)
    assert described.max_pcrs == 32
    assert described.module_id
    attest(module)
    zero = [index for index in range(32) if register(module, index).data == bytes(48)]
    assert zero == [3, *range(5, 32)]
    assert [index for index in range(32) if register(module, index).lock] == list(described.locked_pcrs)
    for index in range(16):
        assert isinstance(ask(module, nsm.LockPcr(index)), nsm.Refused)
    for _ in range(10):
        for index in range(16, 32):
            extended = ask(module, nsm.ExtendPcr(index, bytes([1, 2, 3])))
            assert extended == nsm.Extended(register(module, index).data)
    for index in range(16, 32):
        assert ask(module, nsm.LockPcr(index)) == nsm.Locked()
    assert ask(module, nsm.LockPcrs(32)) == nsm.RangeLocked()
    assert isinstance(ask(module, nsm.LockPcrs(33)), nsm.Refused)
    for index in range(32):
        assert isinstance(ask(module, nsm.ExtendPcr(index, bytes([1, 2, 3]))), nsm.Refused)
        state = register(module, index)
        assert state.lock
        assert (state.data == bytes(48)) is (index == 3 or 5 <= index < 16)
    data = bytes([128]) * 1024
    for fields in ({}, {"user_data": data}, {"user_data": data, "nonce": data}):
        attest(module, **fields)
    raw = attest(module, user_data=data, nonce=data, public_key=data)
    assert sorted(cbor2.loads(cbor2.loads(raw)[2])["pcrs"]) == list(range(32))
    random = [ask(module, nsm.GetRandom()) for _ in range(16)]
    assert all(one != other for one, other in itertools.pairwise(random))


@pytest.mark.parametrize(
    ("value", "request_"),
    [
        ({"Attestation": {}}, nsm.Attest()),
        ({"Attestation": {"nonce": b"n"}}, nsm.Attest(nonce=b"n")),
        ({"Attestation": {"nonce": "n", "user_data": None, "later": 1}}, nsm.Attest(nonce=b"n")),
        ({"ExtendPCR": {"data": "text", "index": 16}}, nsm.ExtendPcr(16, b"text")),
        ({"DescribePCR": {"index": 0, "later": 1}}, nsm.DescribePcr(0)),
        ({"LockPCRs": {"range": 65535}}, nsm.LockPcrs(65535)),
    ],
)
def test_takes_what_the_real_ones_clients_may_send(value: Any, request_: nsm.Request) -> None:
    """serde's and QEMU's reading: fields left out are null, unknown ones are ignored, a text is its bytes."""
    assert nsm.decode_request(cbor2.dumps(value)) == request_


@pytest.mark.parametrize(
    "value",
    [
        "describeNSM", "LockPCR", {"LockPCR": {}}, {"LockPCR": None}, {"LockPCR": {"index": -1}},
        {"LockPCR": {"index": 65536}}, {"LockPCR": {"index": True}}, {"LockPCR": {"index": "1"}},
        {"LockPCRs": {"index": 1}}, {"ExtendPCR": {"index": 16}}, {"ExtendPCR": {"index": 16, "data": [1, 2]}},
        {"Attestation": None}, {"Attestation": {"nonce": 1}}, {"GetRandom": {}}, {"A": 1, "B": 2}, {}, [], None, 7,
    ],
    ids=repr,
)  # fmt: skip
def test_refuses_what_is_no_request(module: NsmEmulator, value: Any) -> None:
    answer = nsm.decode_response(module.answer(cbor2.dumps(value)))
    assert answer == nsm.Refused(ErrorCode.INVALID_OPERATION)


def test_an_answer_that_does_not_fit_is_refused(root: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host_shim.nsm_emulator.NSM_RESPONSE_MAX", 1000)
    assert ask(emulator(root), nsm.Attest()) == nsm.Refused(ErrorCode.BUFFER_TOO_SMALL)


def test_a_signer_that_fails_is_the_modules_own_error(root: Authority) -> None:
    class Broken(Chain):
        def leaf(self, at: datetime) -> Any:
            raise OSError("no such key")

    module = NsmEmulator(BootState(MEASURED, WHO), Broken(root, module_id=WHO.module_id), clock=Clock())
    assert ask(module, nsm.Attest()) == nsm.Refused(ErrorCode.INTERNAL_ERROR)
    assert isinstance(ask(module, nsm.DescribeNsm()), nsm.NsmDescription)


def test_modules_of_two_isolates_share_nothing(root: Authority) -> None:
    first, second = emulator(root), emulator(root)
    ask(first, nsm.ExtendPcr(16, b"policy"))
    ask(first, nsm.LockPcrs(32))
    assert register(second, 16) == nsm.PcrState(False, bytes(48))


def test_an_identity_is_new_or_of_the_instance_that_was_named() -> None:
    assert Identity.random().instance_id != Identity.random().instance_id
    assert Identity.random(ROLE, "i-0123456789abcdef0").module_id.startswith("i-0123456789abcdef0-enc")
    with pytest.raises(UsageError, match="instance id"):
        Identity.random(None, "i-0123")


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_answers_any_bytes_with_an_error(raw: bytes) -> None:
    module = NsmEmulator(BootState(MEASURED, WHO), Chain(make_root_once(), module_id=WHO.module_id), clock=Clock())
    assert isinstance(nsm.decode_response(module.answer(raw)), nsm.Refused)


_roots: list[Authority] = []


def make_root_once() -> Authority:
    if not _roots:
        _roots.append(make_root(AT))
    return _roots[0]


def test_document_has_the_bytes_of_aws(module: NsmEmulator) -> None:
    ask(module, nsm.ExtendPcr(16, b"policy"))
    ask(module, nsm.LockPcr(16))
    raw = attest(module, nonce=b"n" * 32, public_key=b"k" * 91)
    assert raw.startswith(bytes.fromhex("8444a1013822a059"))  # untagged array of 4, {1: -35}, {}, payload
    protected, unprotected, payload, signature = cbor2.loads(raw)
    assert (protected, unprotected, len(signature)) == (bytes.fromhex("a1013822"), {}, 96)
    assert (payload[0], payload[-1]) == (0xBF, 0xFF)  # indefinite length, as since December 2025
    fields = cbor2.loads(payload)
    assert list(fields) == [
        "module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle", "public_key", "user_data", "nonce",
    ]  # fmt: skip
    assert payload.endswith(b"\x69user_data\xf6\x65nonce\x58\x20" + b"n" * 32 + b"\xff")  # null, never left out
    assert b"\x69timestamp\x1b" in payload
    assert fields["timestamp"] == int(AT.timestamp() * 1000)
    assert list(fields["pcrs"]) == [*range(17)]  # the locked ones alone
    assert len(fields["cabundle"]) == 4


def test_document_in_the_older_form(root: Authority) -> None:
    module = emulator(root, indefinite=False)
    payload = cbor2.loads(attest(module))[2]
    assert payload[0] == 0xA9


@pytest.mark.parametrize("size", [0, 1, 1024])
def test_fields_of_every_length_come_back(module: NsmEmulator, size: int) -> None:
    raw = attest(module, user_data=b"u" * size, nonce=b"n" * size, public_key=b"k" * size)
    fields = cbor2.loads(cbor2.loads(raw)[2])
    assert [len(fields[name]) for name in ("user_data", "nonce", "public_key")] == [size] * 3


def test_both_implementations_accept_the_signature(module: NsmEmulator, root: Authority) -> None:

    raw = attest(module, nonce=b"n" * 32)
    sign1 = parse_sign1(raw)
    document = parse_document(sign1.payload)
    trusted = load_root(root.certificate.public_bytes(Encoding.PEM))
    chain = verify_chain(document.certificate, document.cabundle, roots=[trusted], at=AT, made_at=AT)
    sign1.verify(chain.key)
    key = load_der_x509_certificate(document.certificate).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    point = key.public_numbers()
    message = Sign1Message.from_cose_obj(list(cbor2.loads(raw)), True)
    message.key = EC2Key(crv="P_384", x=point.x.to_bytes(48, "big"), y=point.y.to_bytes(48, "big"))
    assert message.verify_signature()


def test_time_never_runs_back(root: Authority) -> None:
    clock = Clock()
    module = emulator(root, clock=clock)

    def told() -> int:
        return int(cbor2.loads(cbor2.loads(attest(module))[2])["timestamp"])

    first = told()
    clock.now = AT - timedelta(hours=1)
    assert told() == first
    clock.now = AT + timedelta(hours=30)
    assert told() == first + 30 * 3600 * 1000
