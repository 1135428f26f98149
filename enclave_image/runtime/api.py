# SPDX-License-Identifier: MIT
"""The API: one function from a request and who sent it to an answer. Every refusal is a class of `errors`."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from attestation.errors import MalformedInput
from attestation.limits import NONCE_SIZE
from attestation.policy import Participant, Policy, Right, normal_path

from .attestor_client import AttestorClient
from .errors import Busy, CertificateNeeded, MalformedRequest, NotAvailable
from .http import CBOR, JSON, OCTETS, Request, Response
from .jobs import Jobs
from .lifecycle import Lifecycle
from .store import Store

DOCUMENTS_A_SECOND = 4.0  # anonymous evidence in the long run, and ...
DOCUMENTS_AT_ONCE = 32.0  # ... in a burst
MAX_WAIT = 30  # seconds
MAX_EXPECTED = 256  # inputs that a job names

_PREFIX = "/v1/"
_HEX32 = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)
_JOB_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_ESCAPE = re.compile(r"%([0-9a-fA-F]{2})|%", re.ASCII)


class Budget:
    """A token bucket: what strangers may cost."""

    def __init__(self, *, rate: float, burst: float, now: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._now = now
        self._left = burst
        self._then = now()
        self._lock = threading.Lock()

    def spend(self) -> None:
        """Take one; raise Busy where there is none."""
        with self._lock:
            now = self._now()
            self._left = min(self._burst, self._left + (now - self._then) * self._rate)
            self._then = now
            if self._left < 1.0:
                raise Busy
            self._left -= 1.0


class Api:
    """The routes."""

    def __init__(
        self, policy: Policy, attestor: AttestorClient, store: Store, jobs: Jobs, lifecycle: Lifecycle
    ) -> None:
        self._policy = policy
        self._attestor = attestor
        self._store = store
        self._jobs = jobs
        self._lifecycle = lifecycle
        self._budget = Budget(rate=DOCUMENTS_A_SECOND, burst=DOCUMENTS_AT_ONCE)

    def answer_anonymous(self, request: Request) -> Response:
        """Answer who sent no certificate: one document, and then the connection ends."""
        path, _, query = request.target.partition("?")
        if request.method != "GET" or path != "/v1/attestation":
            raise CertificateNeeded
        nonce = _nonce(query)
        self._budget.spend()
        self._lifecycle.check_time()
        return Response.whole(200, self._attestor.session(nonce), CBOR, close=True)

    def answer(self, request: Request, party: Participant) -> Response:
        """Answer a participant."""
        self._lifecycle.check_time()
        path, question, query = request.target.partition("?")
        if not path.startswith(_PREFIX):
            raise NotAvailable
        noun, slash, rest = path[len(_PREFIX) :].partition("/")
        match request.method, noun, slash:
            case "GET", "attestation", "":
                return Response.whole(200, self._attestor.session(_nonce(query)), CBOR)
            case "GET", "policy", "" if not question:
                return Response.whole(200, self._policy.raw, JSON)
            case (("PUT" | "PATCH" | "GET" | "HEAD" | "DELETE"), "files", "/") if not question:
                return self._files(request, party, "/" + _unquote(rest))
            case "POST", "jobs", "" if not question:
                return self._submit(request, party)
            case "GET", "jobs", "/":
                return Response.json(200, self._jobs.describe(party, _job_id(rest), wait=_wait(query)))
            case "DELETE", "jobs", "/" if not question:
                self._jobs.cancel(party, _job_id(rest))
                return Response.json(202, {"id": rest})
            case "POST", "shutdown", "" if not question:
                return Response.json(202, {"agreed": self._lifecycle.agree_to_shutdown(party)})
        raise NotAvailable

    def _files(self, request: Request, party: Participant, text: str) -> Response:
        try:
            path = normal_path(text, directory=text.endswith("/"))
        except MalformedInput as error:
            raise MalformedRequest from error
        match request.method:
            case "GET" if path.endswith("/"):
                return self._list(party, path)
            case "GET" | "HEAD" if not path.endswith("/"):
                return self._read(party, path, with_body=request.method == "GET")
            case "PUT" | "PATCH" if not path.endswith("/"):
                return self._write(request, party, path)
            case "DELETE" if not path.endswith("/"):
                self._store.delete(party, path)
                return Response(204)
        raise MalformedRequest

    def _list(self, party: Participant, directory: str) -> Response:
        entries = [
            {"name": entry.name, "kind": "directory" if entry.is_directory else "file", "size": entry.size}
            for entry in self._store.list(party, directory)
        ]
        return Response.json(200, {"entries": entries})

    def _read(self, party: Participant, path: str, *, with_body: bool) -> Response:
        blob = self._store.find(party, path, Right.READ)
        headers = (("X-Content-SHA256", blob.sha256.hex()),)
        return Response(200, OCTETS, blob.chunks() if with_body else (), blob.size, headers)

    def _write(self, request: Request, party: Participant, path: str) -> Response:
        digest = request.headers.get("x-content-sha256", "")
        if not _HEX32.fullmatch(digest):
            raise MalformedRequest
        length, sha256 = request.length, bytes.fromhex(digest)
        content = _Once(request, self._store.file_limit)
        if request.method == "PUT":
            self._store.put(party, path, content=content, length=length, sha256=sha256)
            self._jobs.prepare(path)
        else:
            self._store.append(party, path, content=content, length=length, sha256=sha256)
        # of an append its sender learns what it sent: the whole may not be its to read
        status = 201 if request.method == "PUT" else 200
        return Response.json(status, {"path": path, "size": length, "sha256": sha256.hex()})

    def _submit(self, request: Request, party: Participant) -> Response:
        body = request.json()
        if not isinstance(body, dict) or not set(body) <= {"program", "inputs"} or type(body.get("program")) is not str:
            raise MalformedRequest
        job = self._jobs.submit(party, _path(body["program"]), _expected(body.get("inputs")))
        return Response.json(202, {"id": job.id})


class _Once(Iterator[bytes]):
    """A request's body, read only when the store asks for its first byte: a refusal comes before 100-continue."""

    def __init__(self, request: Request, limit: int) -> None:
        self._request = request
        self._limit = limit
        self._body: Iterator[bytes] | None = None

    def __next__(self) -> bytes:
        if self._body is None:
            self._body = self._request.body(self._limit)
        return next(self._body)


def _path(text: str) -> str:
    try:
        return normal_path(text)
    except MalformedInput as error:
        raise MalformedRequest from error


def _expected(value: Any) -> dict[str, bytes]:
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MAX_EXPECTED:
        raise MalformedRequest
    expected = {}
    for path, digest in value.items():
        if type(digest) is not str or not _HEX32.fullmatch(digest):
            raise MalformedRequest
        expected[_path(path)] = bytes.fromhex(digest)
    return expected


def _nonce(query: str) -> bytes:
    name, _, value = query.partition("=")
    if name != "nonce" or not _HEX32.fullmatch(value):
        raise MalformedRequest
    nonce = bytes.fromhex(value)
    if len(nonce) != NONCE_SIZE:
        raise MalformedRequest
    return nonce


def _wait(query: str) -> float:
    if not query:
        return 0.0
    name, _, value = query.partition("=")
    if name != "wait" or not (value.isascii() and value.isdigit()) or len(value) > 2 or int(value) > MAX_WAIT:
        raise MalformedRequest
    return float(value)


def _job_id(text: str) -> str:
    if not _JOB_ID.fullmatch(text):
        raise NotAvailable
    return text


def _unquote(text: str) -> str:
    """Undo percent-encoding; raise MalformedRequest where it is none (urllib's would pass it on)."""

    def byte(match: re.Match[str]) -> str:
        if match[1] is None:
            raise MalformedRequest
        return chr(int(match[1], 16))

    return _ESCAPE.sub(byte, text)
