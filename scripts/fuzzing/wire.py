# SPDX-License-Identifier: MIT
"""Targets that read what a peer sends: the NSM's requests and answers, an isolate's HTTP answers."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from functools import cache
from random import Random
from typing import Any

from attestation import nsm
from attestation.errors import ApiRefusal, MalformedNsm, VeracruzError
from attestation.http_connection import Connection
from attestation.limits import NSM_RESPONSE_MAX
from host_shim.dev_pki import Chain, make_root
from host_shim.nsm_emulator import BootState, Identity, NsmEmulator
from tests.attestation.documents import IMAGE, MADE_AT, NONCE, PUBLIC_KEY

from .mutations import change_bytes, change_cbor
from .target import Target, WrongVerdict

MOST = 64 * 1024  # bytes that a caller lets an answer have
IDENTITY = Identity("i-0123456789abcdef0", "enc0123456789abcdef")


@cache
def _chain() -> Chain:
    return Chain(make_root(MADE_AT), module_id=IDENTITY.module_id)


# The NSM. The first byte: 0 a request to the emulator, 1 an answer to the attestor


def run_nsm(data: bytes) -> None:
    """Answer a request, which never fails; or read an answer."""
    answer, raw = bool(data and data[0] & 1), data[1:]
    if answer:
        response = nsm.decode_response(raw)
        if nsm.decode_response(nsm.encode_response(response)) != response:
            raise WrongVerdict("an answer is another one when written again")
        return
    emulator = NsmEmulator(BootState(IMAGE, IDENTITY), _chain(), clock=lambda: MADE_AT)
    try:
        given = nsm.decode_response(emulator.answer(raw))
    except VeracruzError as error:
        raise WrongVerdict("the emulator gave an answer that no client reads") from error
    request = nsm.decode_request(raw)
    if nsm.decode_request(nsm.encode_request(request)) != request:
        raise WrongVerdict("a request is another one when written again")
    if isinstance(given, nsm.Document) and len(given.document) > NSM_RESPONSE_MAX:
        raise WrongVerdict("a document is larger than its buffer")


def nsm_seeds() -> Mapping[str, bytes]:
    requests: dict[str, nsm.Request] = {
        "describe": nsm.DescribeNsm(),
        "random": nsm.GetRandom(),
        "register": nsm.DescribePcr(0),
        "extend": nsm.ExtendPcr(16, b"data"),
        "lock": nsm.LockPcr(16),
        "lock-range": nsm.LockPcrs(32),
        "attest": nsm.Attest(b"data", NONCE, PUBLIC_KEY),
    }
    answers: dict[str, nsm.Response] = {
        "described": nsm.NsmDescription((1, 0, 0), IDENTITY.module_id, 32, tuple(range(16)), "SHA384"),
        "random": nsm.Random(bytes(256)),
        "register": nsm.PcrState(True, bytes(48)),
        "extended": nsm.Extended(bytes(48)),
        "locked": nsm.Locked(),
        "range-locked": nsm.RangeLocked(),
        "document": nsm.Document(b"document"),
        "refused": nsm.Refused(nsm.ErrorCode.INVALID_INDEX),
    }
    seeds = {f"request-{name}": b"\0" + nsm.encode_request(request) for name, request in requests.items()}
    return {**seeds, **{f"answer-{name}": b"\1" + nsm.encode_response(each) for name, each in answers.items()}}


def change_nsm(data: bytes, random: Random) -> bytes:
    return data[:1] + change_cbor(data[1:], random)


# HTTP. The first byte: method, whether a certificate was offered, how the connection ends; the second: bytes a read


class _Peer:
    """A TLS connection on which a server has sent these bytes."""

    def __init__(self, data: bytes, *, piece: int, end: Exception | None) -> None:
        self._data = memoryview(data)
        self._piece = piece
        self._end = end

    def recv_into(self, buffer: Any) -> int:
        count = min(len(buffer), self._piece, len(self._data))
        if not count and self._end is not None:
            raise self._end
        buffer[:count] = self._data[:count]
        self._data = self._data[count:]
        return count

    def sendall(self, data: bytes) -> None: ...
    def settimeout(self, seconds: float) -> None: ...
    def close(self) -> None: ...


def run_http(data: bytes) -> None:
    """Read up to three answers of one connection."""
    flags, piece, raw = (data[0] if data else 0), (data[1] if len(data) > 1 else 0), data[2:]
    alert = ssl.SSLError(1, "alert")
    alert.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    end = (None, ConnectionResetError(), alert, TimeoutError())[flags >> 4 & 3]
    peer: Any = _Peer(raw, piece=piece or MOST, end=end)
    connection = Connection(peer, peer="isolate", identified=bool(flags & 8))
    for _ in range(3):
        method = ("GET", "HEAD", "PUT", "DELETE")[flags & 3]
        try:
            answer = connection.request(method, "/v1/policy", limit=MOST)
        except ApiRefusal as refusal:
            if not connection.usable:
                raise
            if not refusal.slug:
                raise WrongVerdict("a refusal without a slug") from refusal
            continue
        if len(answer.body) > MOST or answer.status >= 300:
            raise WrongVerdict("an answer was taken that is too large, or a refusal")
        if (
            method != "HEAD"
            and answer.status != 204
            and str(len(answer.body)) != answer.headers["content-length"].lstrip("0").rjust(1, "0")
        ):
            raise WrongVerdict("an answer's body is not as long as its head says")


def http_seeds() -> Mapping[str, bytes]:
    ok = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    refused = b'{"slug":"not-available","message":"x","expected":null,"actual":null}'
    no = b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n%s" % (len(refused), refused)
    return {
        "ok": b"\0\0" + 3 * ok,
        "pieces": b"\x0a\x03" + ok,
        "head": b"\1\0" + ok[:-2] * 2,
        "refused": b"\x08\0" + no + ok,
        "no-content": b"\3\0HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
        "interim": b"\2\0HTTP/1.1 100 Continue\r\n\r\n" + ok,
        "reset": b"\x18\0",
        "alert": b"\x28\0" + ok[:20],
        "chunked": b"\0\0HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    }


_HEADERS = (
    b"Content-Length: 2", b"Content-Length: 1000000000000000", b"Content-Length: -1", b"Content-Length: +2",
    b"Content-Length: 0x2", b"Content-Length:", b"Transfer-Encoding: chunked", b"Connection: close", b" folded",
    b"HTTP/1.0 200 OK", b"HTTP/1.1 304 Not Modified", b"HTTP/1.1 100 Continue", b"HTTP/9.9 1000", b"", b": x",
    b"X: " + b"a" * 70_000,
)  # fmt: skip


def change_http(data: bytes, random: Random) -> bytes:
    """Repeat, leave out, replace or swap lines."""
    lines = data[2:].split(b"\r\n")
    index, other = random.randrange(len(lines)), random.randrange(len(lines))
    match random.randrange(6):
        case 0:
            lines.insert(index, lines[other])
        case 1:
            del lines[index]
        case 2:
            lines.insert(index, random.choice(_HEADERS))
        case 3:
            lines[index] = random.choice(_HEADERS)
        case 4:
            lines[index : index + 1] = [line + b":1" for line in [lines[index]] * random.choice((1, 101))]
        case _:
            lines[index] = change_bytes(lines[index], random)
    return data[:2] + b"\r\n".join(lines)


TARGETS = (
    Target("nsm-requests", "the NSM's messages, both ways", run_nsm, (MalformedNsm,), nsm_seeds, change_nsm),
    Target("http", "answers of an isolate", run_http, (VeracruzError,), http_seeds, change_http, largest=200_000),
)
