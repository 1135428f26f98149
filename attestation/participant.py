# SPDX-License-Identifier: MIT
"""A participant's session: verify the isolate, pin it, and only then talk to it under one's own certificate."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Self
from urllib.parse import quote

from .appraising import Trust, appraise
from .channel import Evidence, connect
from .endpoint import Endpoint
from .errors import ContentMismatch, MalformedAnswer, PolicyMismatch, TooLarge, Unreachable, UsageError
from .files import replacing
from .http_connection import ANSWER_TIMEOUT, CHUNK, MAX_ANSWER, Answer, Body, Connection
from .identity import Identity
from .jobs import JOB_ID, Job, JobState, parse_job
from .limits import MAX_POLICY
from .paths import MAX_COMPONENT, normal_path
from .pins import Pin, PinStore, new_pin
from .policy import Policy, parse_policy
from .strict_json import Node, read_json
from .verifier import Appraisal

MIB = 1 << 20
LONGEST_WAIT = 30  # seconds that the isolate holds one question about a job

OnProgress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Stored:
    """A file as the isolate has it."""

    path: str
    size: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a directory."""

    name: str
    kind: str
    size: int


def open_session(
    endpoint: Endpoint,
    policy: bytes,
    *,
    trust: Trust,
    identity: Identity,
    pins: PinStore,
    clock: Callable[[], datetime],
    new_isolate: bool = False,
) -> Session:
    """Verify all eight points with a fresh nonce, hold the isolate to its pin, then connect as `identity`.

    With `new_isolate` a pin of another isolate is replaced. Raises AttestationError, IsolateChanged,
    CertificateRefused, Unreachable; nothing of the participant's, its certificate included, is sent before the checks.
    """
    parsed = parse_policy(policy)  # (8): the caller's own file
    evidence, appraisal = appraise(endpoint, parsed, trust, clock=clock)
    pin = new_pin(evidence.certificate, trust.root.fingerprint, at=clock())
    if not new_isolate:
        pins.check(parsed.hash, pin)
    session = Session(endpoint, parsed, identity, evidence=evidence, appraisal=appraisal, pin=pin)
    try:
        session.policy()
        if new_isolate:
            pins.replace(parsed.hash, pin)
        else:
            pins.keep(parsed.hash, pin)
    except BaseException:
        session.close()
        raise
    return session


class Session:
    """Connections, one after the other, to one verified isolate. Every method raises ApiRefusal where it is refused."""

    def __init__(
        self,
        endpoint: Endpoint,
        policy: Policy,
        identity: Identity,
        *,
        evidence: Evidence,
        appraisal: Appraisal,
        pin: Pin,
    ) -> None:
        self.appraisal = appraisal
        self.pin = pin
        self._endpoint = endpoint
        self._policy = policy
        self._identity = identity
        self._evidence = evidence
        self._connection: Connection | None = None

    def policy(self) -> bytes:
        """Return the policy that the isolate enforces; raise PolicyMismatch unless it is the participant's own.

        Also shows that the isolate takes the certificate, before a file is sent.
        """
        raw = self._ask("GET", "/v1/policy", limit=MAX_POLICY).body
        if raw != self._policy.raw:
            raise PolicyMismatch(
                "the isolate serves another policy than its evidence names",
                expected=self._policy.hash.hex(),
                actual=hashlib.sha256(raw).hexdigest(),
            )
        return raw

    def put(self, path: str, file: BinaryIO, *, progress: OnProgress | None = None) -> Stored:
        """Send a file, streamed; the isolate stores it whole or not at all."""
        return self._upload("PUT", path, file, progress)

    def append(self, path: str, file: BinaryIO, *, progress: OnProgress | None = None) -> Stored:
        """Append a file to one in the isolate, whole or not at all."""
        return self._upload("PATCH", path, file, progress)

    def get(self, path: str, out: Path, *, progress: OnProgress | None = None) -> Stored:
        """Fetch a file to `out`, which is replaced only when all of it has come and its digest is right."""
        with replacing(out) as file:
            return self.read(path, file, progress=progress)

    def read(self, path: str, sink: BinaryIO, *, progress: OnProgress | None = None) -> Stored:
        """Fetch a file into `sink`, which holds rubbish if this raises."""
        target = _file_target(normal_path(path))
        done, digest = 0, hashlib.sha256()
        with self._connected().exchange("GET", target, limit=self._policy.limits.file_mib * MIB) as incoming:
            expected = _digest_header(incoming.headers)
            for chunk in incoming:
                digest.update(chunk)
                sink.write(chunk)
                done += len(chunk)
                if progress:
                    progress(done)
        if digest.digest() != expected:
            raise ContentMismatch(
                f"{path} came with another content", expected=expected.hex(), actual=digest.hexdigest()
            )
        return Stored(path, done, expected)

    def list(self, path: str) -> tuple[Entry, ...]:
        """Return what is in a directory (its path ends in "/")."""
        answer = self._ask("GET", _file_target(normal_path(path, directory=True)))
        entries = _json(answer).object("entries")["entries"].array(most=1 << 20)
        return tuple(sorted((_entry(node) for node in entries), key=lambda entry: entry.name))

    def delete(self, path: str) -> None:
        """Delete a file."""
        self._ask("DELETE", _file_target(normal_path(path)))

    def run(self, program: str, *, inputs: Mapping[str, bytes] | None = None) -> str:
        """Start a job and return its id; `inputs` are the SHA-256 that files must have when it starts."""
        request: dict[str, object] = {"program": normal_path(program)}
        if inputs:
            request["inputs"] = {normal_path(path): digest.hex() for path, digest in inputs.items()}
        members = dict(_json(self._ask("POST", "/v1/jobs", json_body=request)).members())
        if "id" not in members:
            raise MalformedAnswer("the isolate's answer names no job")
        return members["id"].match(JOB_ID, form="32 hex digits")

    def job(self, job_id: str, *, wait: int = 0) -> Job:
        """Return a job's state, after `wait` seconds at most if it has not ended before."""
        wait = min(wait, LONGEST_WAIT)
        answer = self._ask("GET", f"/v1/jobs/{_job_id(job_id)}?wait={wait}", timeout=wait + ANSWER_TIMEOUT)
        job = parse_job(_json(answer))
        if job.id != job_id:
            raise MalformedAnswer("the isolate answers about another job", expected=job_id, actual=job.id)
        return job

    def wait(self, job_id: str, *, timeout: float | None = None, progress: OnProgress | None = None) -> Job:
        """Return the job when it has ended, or as it is after `timeout` seconds."""
        begin = time.monotonic()
        while True:
            left = LONGEST_WAIT if timeout is None else timeout - (time.monotonic() - begin)
            job = self.job(job_id, wait=max(0, min(LONGEST_WAIT if progress is None else 2, int(left))))
            if job.state is JobState.ENDED or left <= 0:
                return job
            if progress:
                progress(int(time.monotonic() - begin))

    def cancel(self, job_id: str) -> None:
        """Cancel a job."""
        self._ask("DELETE", f"/v1/jobs/{_job_id(job_id)}")

    def shutdown(self) -> bool:
        """Ask for the isolate's end; return whether all who must ask have asked, so that it ends now."""
        return _json(self._ask("POST", "/v1/shutdown")).object("agreed")["agreed"].boolean()

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connected(self) -> Connection:
        """Return a connection, a new one where the last was spent: always to the same attested key."""
        if self._connection is None or not self._connection.usable:
            self._connection = connect(self._endpoint, self._evidence.certificate, self._identity)
        return self._connection

    def _ask(
        self,
        method: str,
        target: str,
        *,
        json_body: object = None,
        limit: int = MAX_ANSWER,
        timeout: float = ANSWER_TIMEOUT,
    ) -> Answer:
        body, headers = None, {}
        if method == "POST":
            raw = json.dumps({} if json_body is None else json_body).encode()
            body, headers = Body([raw], len(raw)), {"Content-Type": "application/json"}
        stale = self._connection is not None
        try:
            return self._connected().request(method, target, headers=headers, body=body, limit=limit, timeout=timeout)
        except Unreachable:
            if not stale or method != "GET":
                raise
        # A connection that was kept open may have been closed meanwhile; a question can be asked again.
        return self._connected().request(method, target, limit=limit, timeout=timeout)

    def _upload(self, method: str, path: str, file: BinaryIO, progress: OnProgress | None) -> Stored:
        target = _file_target(normal_path(path))
        size, digest = _measure(file)
        if size > self._policy.limits.file_mib * MIB:
            raise TooLarge(
                "the policy takes no file of this size",
                expected=f"at most {self._policy.limits.file_mib} MiB",
                actual=f"{size} bytes",
            )
        headers = {"Content-Type": "application/octet-stream", "X-Content-SHA256": digest.hex()}
        body = Body(_read_chunks(file, size, progress), size)
        answer = self._connected().request(method, target, headers=headers, body=body, timeout=ANSWER_TIMEOUT)
        stored = _stored(_json(answer))
        if stored.path != path or (method == "PUT" and (stored.size, stored.sha256) != (size, digest)):
            raise ContentMismatch(f"the isolate stored something else at {path}", expected=digest.hex(), actual=stored)
        return stored


def _measure(file: BinaryIO) -> tuple[int, bytes]:
    """Return the size and SHA-256 of a regular file, which the isolate wants to know first."""
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise UsageError("only a regular file can be sent")
    file.seek(0)
    size, digest = 0, hashlib.sha256()
    while chunk := file.read(CHUNK):
        size += len(chunk)
        digest.update(chunk)
    file.seek(0)
    return size, digest.digest()


def _read_chunks(file: BinaryIO, size: int, progress: OnProgress | None) -> Iterator[bytes]:
    done = 0
    while done < size:
        chunk = file.read(min(CHUNK, size - done))
        if not chunk:
            raise ContentMismatch("the file shrank while it was sent", expected=f"{size} bytes", actual=done)
        done += len(chunk)
        yield chunk
        if progress:
            progress(done)


def _file_target(path: str) -> str:
    return "/v1/files" + quote(path, safe="/")


def _job_id(text: str) -> str:
    return Node(text, "the job's id", UsageError).match(JOB_ID, form="32 hex digits")


def _json(answer: Answer) -> Node:
    return read_json(answer.body, limit=MAX_ANSWER, what="the isolate's answer", refusal=MalformedAnswer)


def _digest_header(headers: Mapping[str, str]) -> bytes:
    return Node(headers.get("x-content-sha256"), "X-Content-SHA256", MalformedAnswer).hexadecimal(32)


def _stored(node: Node) -> Stored:
    members = node.object("path", "size", "sha256")
    return Stored(
        members["path"].text(most=2048),
        members["size"].integer(least=0, most=1 << 50),
        members["sha256"].hexadecimal(32),
    )


def _entry(node: Node) -> Entry:
    members = node.object("name", "kind", optional=("size",))
    size = (
        members["size"].integer(least=0, most=1 << 50) if "size" in members and members["size"].value is not None else 0
    )
    kind = members["kind"].match("file|directory", form="file or directory")
    return Entry(members["name"].text(least=1, most=MAX_COMPONENT), kind, size)
