# SPDX-License-Identifier: MIT
"""The wire form of the Nitro Secure Module: requests and answers as CBOR (aws-nitro-enclaves-nsm-api src/api/mod.rs).

Both ends use this module: the attestor inside the isolate encodes requests and decodes answers, the emulator on the
host does the reverse. serde's external tagging: a variant without fields is a text, one with fields a map of one entry.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import cbor2

from .errors import MalformedNsm, NsmRefused
from .limits import NSM_REQUEST_MAX, NSM_RESPONSE_MAX, PCR_COUNT, PCR_SIZE
from .panics import reraise_interrupt


class ErrorCode(StrEnum):
    """Error names of the NSM; SUCCESS is never sent."""

    INVALID_ARGUMENT = "InvalidArgument"
    INVALID_INDEX = "InvalidIndex"
    INVALID_RESPONSE = "InvalidResponse"
    READ_ONLY_INDEX = "ReadOnlyIndex"
    INVALID_OPERATION = "InvalidOperation"
    BUFFER_TOO_SMALL = "BufferTooSmall"
    INPUT_TOO_LARGE = "InputTooLarge"
    INTERNAL_ERROR = "InternalError"


@dataclass(frozen=True, slots=True)
class DescribeNsm:
    """Ask for the module's id, version and locked registers."""


@dataclass(frozen=True, slots=True)
class GetRandom:
    """Ask for random bytes (256 of them on known modules)."""


@dataclass(frozen=True, slots=True)
class DescribePcr:
    """Ask for one register's value and lock."""

    index: int


@dataclass(frozen=True, slots=True)
class ExtendPcr:
    """Set a register to SHA384(old || data)."""

    index: int
    data: bytes


@dataclass(frozen=True, slots=True)
class LockPcr:
    """Lock one register until reboot."""

    index: int


@dataclass(frozen=True, slots=True)
class LockPcrs:
    """Lock the registers [0, range)."""

    range: int


@dataclass(frozen=True, slots=True)
class Attest:
    """Ask for an attestation document over up to three caller's fields, each at most 1,024 bytes."""

    user_data: bytes | None = None
    nonce: bytes | None = None
    public_key: bytes | None = None


Request = DescribeNsm | GetRandom | DescribePcr | ExtendPcr | LockPcr | LockPcrs | Attest


@dataclass(frozen=True, slots=True)
class NsmDescription:
    """The answer to DescribeNsm."""

    version: tuple[int, int, int]
    module_id: str
    max_pcrs: int
    locked_pcrs: tuple[int, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class Random:
    """The answer to GetRandom."""

    random: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class PcrState:
    """The answer to DescribePcr."""

    lock: bool
    data: bytes


@dataclass(frozen=True, slots=True)
class Extended:
    """The answer to ExtendPcr: the register's new value."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Locked:
    """The answer to LockPcr."""


@dataclass(frozen=True, slots=True)
class RangeLocked:
    """The answer to LockPcrs."""


@dataclass(frozen=True, slots=True)
class Document:
    """The answer to Attest: the bytes of a COSE_Sign1."""

    document: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """The module's own error."""

    code: ErrorCode


Response = NsmDescription | Random | PcrState | Extended | Locked | RangeLocked | Document | Refused


def _load(raw: bytes, limit: int) -> Any:
    if len(raw) > limit:
        raise MalformedNsm("message too long", expected=f"at most {limit} bytes", actual=len(raw))
    stream = io.BytesIO(raw)
    try:
        value = cbor2.load(stream)
    except BaseException as error:  # cbor2 raises many types on hostile bytes
        reraise_interrupt(error)
        raise MalformedNsm("message is no CBOR", actual=raw) from error
    if stream.read(1):
        raise MalformedNsm("bytes after the message", actual=raw)
    return value


def encode_request(request: Request) -> bytes:
    """Return a request's bytes."""
    value: Any
    match request:
        case DescribeNsm():
            value = "DescribeNSM"
        case GetRandom():
            value = "GetRandom"
        case DescribePcr(index):
            value = {"DescribePCR": {"index": index}}
        case ExtendPcr(index, data):
            value = {"ExtendPCR": {"index": index, "data": data}}
        case LockPcr(index):
            value = {"LockPCR": {"index": index}}
        case LockPcrs(count):
            value = {"LockPCRs": {"range": count}}
        case Attest(user_data, nonce, public_key):
            value = {"Attestation": {"user_data": user_data, "nonce": nonce, "public_key": public_key}}
    return cbor2.dumps(value)


def _uint(value: Any, name: str, limit: int = 0xFFFF) -> int:
    if type(value) is not int or not 0 <= value <= limit:
        raise MalformedNsm(f"{name} is no small unsigned integer", actual=value)
    return value


def _bytes(value: Any, name: str) -> bytes:
    if type(value) is not bytes:
        raise MalformedNsm(f"{name} is no byte string", actual=value)
    return value


def _octets(value: Any, name: str) -> bytes:
    """Return a request's bytes: serde takes a text where bytes are due, and so does QEMU's module."""
    return value.encode() if type(value) is str else _bytes(value, name)


def _optional(body: dict[Any, Any], name: str) -> bytes | None:
    value = body.get(name)  # serde and QEMU's module: a field that is left out is null
    return None if value is None else _octets(value, name)


def _body(value: Any, *names: str) -> dict[Any, Any]:
    """Return a request's fields; `names` must be among them, and others are ignored, as serde and QEMU do."""
    if type(value) is not dict or not set(names) <= set(value):
        raise MalformedNsm("missing fields", expected=", ".join(names), actual=value)
    return value


def _fields(value: Any, *names: str) -> list[Any]:
    if type(value) is not dict or set(value) != set(names):
        raise MalformedNsm("wrong fields", expected=", ".join(names), actual=value)
    return [value[name] for name in names]


def _variant(value: Any) -> tuple[str, Any]:
    if type(value) is str:
        return value, None
    if type(value) is dict and len(value) == 1:
        name, body = next(iter(value.items()))
        if type(name) is str:
            return name, body
    raise MalformedNsm("neither a text nor a map of one entry", actual=value)


def decode_request(raw: bytes) -> Request:
    """Parse a request; raise MalformedNsm (QEMU's module answers InvalidOperation)."""
    name, body = _variant(_load(raw, NSM_REQUEST_MAX))
    match name:
        case "DescribeNSM" if body is None:
            return DescribeNsm()
        case "GetRandom" if body is None:
            return GetRandom()
        case "DescribePCR":
            return DescribePcr(_uint(_body(body, "index")["index"], "index"))
        case "ExtendPCR":
            fields = _body(body, "index", "data")
            return ExtendPcr(_uint(fields["index"], "index"), _octets(fields["data"], "data"))
        case "LockPCR":
            return LockPcr(_uint(_body(body, "index")["index"], "index"))
        case "LockPCRs":
            return LockPcrs(_uint(_body(body, "range")["range"], "range"))
        case "Attestation":
            fields = _body(body)
            return Attest(*(_optional(fields, name) for name in ("user_data", "nonce", "public_key")))
    raise MalformedNsm("unknown request", actual=name)


def encode_response(response: Response) -> bytes:
    """Return an answer's bytes."""
    value: Any
    match response:
        case NsmDescription(version, module_id, max_pcrs, locked, digest):
            value = {
                "DescribeNSM": {
                    "version_major": version[0],
                    "version_minor": version[1],
                    "version_patch": version[2],
                    "module_id": module_id,
                    "max_pcrs": max_pcrs,
                    "locked_pcrs": list(locked),
                    "digest": digest,
                }
            }
        case Random(random):
            value = {"GetRandom": {"random": random}}
        case PcrState(lock, data):
            value = {"DescribePCR": {"lock": lock, "data": data}}
        case Extended(data):
            value = {"ExtendPCR": {"data": data}}
        case Locked():
            value = "LockPCR"
        case RangeLocked():
            value = "LockPCRs"
        case Document(document):
            value = {"Attestation": {"document": document}}
        case Refused(code):
            value = {"Error": code.value}
    return cbor2.dumps(value)


def decode_response(raw: bytes) -> Response:
    """Parse an answer; raise MalformedNsm."""
    name, body = _variant(_load(raw, NSM_RESPONSE_MAX))
    match name:
        case "DescribeNSM":
            major, minor, patch, module_id, max_pcrs, locked, digest = _fields(
                body,
                "version_major",
                "version_minor",
                "version_patch",
                "module_id",
                "max_pcrs",
                "locked_pcrs",
                "digest",
            )
            if type(module_id) is not str or digest != "SHA384" or type(locked) is not list:
                raise MalformedNsm("wrong description", actual=body)
            return NsmDescription(
                (_uint(major, "version_major"), _uint(minor, "version_minor"), _uint(patch, "version_patch")),
                module_id,
                _uint(max_pcrs, "max_pcrs", PCR_COUNT),
                tuple(_uint(index, "locked_pcrs", PCR_COUNT - 1) for index in locked),
                digest,
            )
        case "GetRandom":
            (random,) = _fields(body, "random")
            return Random(_bytes(random, "random"))
        case "DescribePCR":
            lock, data = _fields(body, "lock", "data")
            if type(lock) is not bool or len(_bytes(data, "data")) != PCR_SIZE:
                raise MalformedNsm("wrong register", actual=body)
            return PcrState(lock, data)
        case "ExtendPCR":
            (data,) = _fields(body, "data")
            return Extended(_bytes(data, "data"))
        case "LockPCR":
            return Locked()
        case "LockPCRs":
            return RangeLocked()
        case "Attestation":
            (document,) = _fields(body, "document")
            return Document(_bytes(document, "document"))
        case "Error":
            try:
                return Refused(ErrorCode(body))
            except ValueError as error:
                raise MalformedNsm("unknown error name", actual=body) from error
    raise MalformedNsm("unknown answer", actual=name)


def demand(response: Response) -> Response:
    """Return an answer that is no error; raise NsmRefused for one that is."""
    if isinstance(response, Refused):
        raise NsmRefused("the NSM refused the request", actual=response.code.value)
    return response
