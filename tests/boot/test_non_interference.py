# SPDX-License-Identifier: MIT
"""Runs that differ in Alice's secret alone: what Bob, a stranger and the console see is the same, byte for byte.

Bob may run the program that reads her secret, and neither observe it nor read what it writes. The program does all it
can to be told apart: exit code, streams, names and sizes of its results depend on the secret.
"""

from __future__ import annotations

import hashlib
import json
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from attestation.channel import fetch_evidence
from attestation.endpoint import Endpoint

from ..enclave_image.runtime.guests import guest
from .conftest import Scene
from .machines import Enclave

pytestmark = [pytest.mark.boot, pytest.mark.timeout(900)]

PROGRAM = "/program/telltale.wasm"
SECRET = "/input/alice/secret"
MIB = 1 << 20
# Its first letter decides: Y writes all of it to a file of its name and exits with 0; N says so and exits with 7.
TELLTALE = """(call $open (i32.const 3) $secret $secret_length (i32.const 0))
 (local.set $n (call $read (i32.load (i32.const 16))))
 (call $write (i32.const 1) (i32.const 1024) (local.get $n))
 (call $open (i32.const 4) (i32.const 1024) (i32.const 8) (i32.const 1))
 (call $write (i32.load (i32.const 16)) (i32.const 1024) (local.get $n))
 (if (i32.eq (i32.load8_u (i32.const 1024)) (i32.const 78))
  (then (call $write (i32.const 2) $no $no_length) (call $exit (i32.const 7))))"""
SECRETS = {"yes": b"Yes-0001" * 16, "no": b"No-00002" * 16, "long": b"Yes-0003" * 8000}


@dataclass(slots=True)
class Seen:
    """Everything that came back, in order, under the name of what was asked."""

    bob: dict[str, bytes] = field(default_factory=dict)
    stranger: dict[str, bytes] = field(default_factory=dict)
    console: str = ""
    log: str = ""
    alice: str = ""  # what her own rights show her: must differ, or nothing was shown


class Wire:
    """Raw requests over TLS; with an identity or without."""

    def __init__(self, endpoint: str, identity: Path | None) -> None:
        self._endpoint = Endpoint.parse(endpoint)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname = False
        self._context.load_verify_locations(cadata=fetch_evidence(self._endpoint, bytes(32)).certificate)
        if identity is not None:
            self._context.load_cert_chain(identity.with_suffix(".pem"), identity.with_suffix(".key"))
        self._tls: ssl.SSLSocket | None = None

    def ask(self, method: str, path: str, body: bytes = b"", *, digest: bool = False) -> bytes:
        """Return all bytes of an answer."""
        head = f"{method} {path} HTTP/1.1\r\nHost: isolate\r\n"
        if body or digest:
            head += f"Content-Length: {len(body)}\r\n"
        if digest:
            head += f"X-Content-SHA256: {hashlib.sha256(body).hexdigest()}\r\n"
        if self._tls is None:
            self._tls = self._context.wrap_socket(self._endpoint.dial(timeout=60), suppress_ragged_eofs=True)
            self._tls.settimeout(60)
        self._tls.sendall(head.encode() + b"\r\n" + body)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._more()
        start = answer.index(b"\r\n\r\n") + 4
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)\r\n", answer[:start])
        end = start + int(length[1]) if length and method != "HEAD" else start
        while len(answer) < end:
            answer += self._more()
        assert len(answer) == end
        if re.search(rb"(?i)\r\nconnection: close\r\n", answer[:start]):
            self.close()
        return answer

    def _more(self) -> bytes:
        assert self._tls is not None
        data = self._tls.recv(65536)
        assert data, "the isolate closed the connection"
        return data

    def close(self) -> None:
        if self._tls is not None:
            self._tls.close()
            self._tls = None


def job_id(answer: bytes) -> str:
    return str(json.loads(answer.partition(b"\r\n\r\n")[2])["id"])


def mask(answer: bytes) -> bytes:
    """Blot out what is random in every run: ids of jobs, evidence (and its length: DER signatures vary)."""
    if b"application/cbor" in answer:
        head = answer.partition(b"\r\n\r\n")[0]
        return re.sub(rb"(?i)(content-length: )\d+", rb"\1N", head)
    return re.sub(rb'"id": ?"[0-9a-f]{32}"', b'"id":"JOB"', answer)


def look(wire: Wire, when: str) -> dict[str, bytes]:
    """Ask for everything that anybody could ask for, and change nothing."""
    seen = {}
    for path in (SECRET, "/input/alice/never-was", "/output/Yes-0001", "/output/No-00002", "/output/x", PROGRAM):
        for method in ("GET", "HEAD", "DELETE"):
            if (method, path) != ("DELETE", PROGRAM):
                seen[f"{when}: {method} {path}"] = wire.ask(method, f"/v1/files{path}")
        if path != PROGRAM:
            for method in ("PUT", "PATCH"):
                seen[f"{when}: {method} {path}"] = wire.ask(method, f"/v1/files{path}", b"x", digest=True)
    for directory in ("/", "/input/", "/input/alice/", "/output/", "/program/", "/bob/"):
        seen[f"{when}: list {directory}"] = wire.ask("GET", f"/v1/files{directory}")
    for name, path in (("policy", "/v1/policy"), ("evidence", f"/v1/attestation?nonce={'00' * 32}")):
        seen[f"{when}: {name}"] = wire.ask("GET", path)
    seen[f"{when}: another's job"] = wire.ask("GET", f"/v1/jobs/{'0' * 32}")
    guess = {"program": PROGRAM, "inputs": {SECRET: hashlib.sha256(SECRETS["yes"]).hexdigest()}}
    seen[f"{when}: guess"] = wire.ask("POST", "/v1/jobs", json.dumps(guess).encode())
    return seen


def live(scene: Scene, enclave: Enclave, policy: Path, program: Path, secret: Path) -> Seen:
    """Let Alice and Bob do the same things as in every other run; return what was seen."""
    world, seen = scene.world, Seen()
    world.party("bob", "send", enclave, policy, program, PROGRAM, "--new-isolate")
    bob = Wire(enclave.endpoint, world.identity("bob") / "bob")
    stranger = Wire(enclave.endpoint, None)
    start = json.dumps({"program": PROGRAM}).encode()
    seen.bob["before anybody joined"] = bob.ask("POST", "/v1/jobs", start)
    world.party("alice", "send", enclave, policy, secret, SECRET, "--new-isolate")
    seen.bob |= look(bob, "with the secret")
    started = [bob.ask("POST", "/v1/jobs", start) for _ in range(3)]
    for number, answer in enumerate(started):
        path = f"/v1/jobs/{job_id(answer)}"
        seen.bob[f"job {number}: started"] = answer
        seen.bob[f"job {number}: under way"] = bob.ask("GET", path)
    for number, answer in enumerate(started):
        path = f"/v1/jobs/{job_id(answer)}"
        seen.bob[f"job {number}: ended"] = bob.ask("GET", f"{path}?wait=30")
        seen.bob[f"job {number}: cancelled"] = bob.ask("DELETE", path)
    # His own share of the storage, to its last byte: neither others' files nor the program's results take any of it.
    left = MIB - program.stat().st_size
    for name, size in (("too-much", left + 1), ("all", left), ("one-more", 1)):
        seen.bob[f"storage: {name}"] = bob.ask("PUT", f"/v1/files/bob/{name}", bytes(size), digest=True)
    seen.bob |= look(bob, "at the end")
    seen.stranger = look(stranger, "at the end")
    bob.close()
    stranger.close()
    listed = world.party("alice", "ls", enclave, policy, "/output/").json["entries"]
    seen.alice = json.dumps(listed)
    seen.console = world.run("enclave", "console", enclave.name).out
    seen.log = re.sub(r"(?m)^\S+Z +([\d.]+ s)?|pid \d+|127\.0\.0\.1:\d+", "", supervisor_log(scene, enclave))
    return seen


def supervisor_log(scene: Scene, enclave: Enclave) -> str:
    state = Path(scene.world.environment["XDG_STATE_HOME"])
    return (state / "veracruz/enclaves" / enclave.name / "supervisor.log").read_text()


@pytest.fixture(scope="module")
def runs(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    directory = tmp_path_factory.mktemp("secrets")
    world = scene.world
    program = directory / "telltale.wasm"
    program.write_bytes(guest(TELLTALE, secret="secret", no="no"))
    rights = ("alice:/input/alice/:write", "alice:/output/:read,list", "bob:/program/:write", f"bob:{PROGRAM}:execute",
              "bob:/bob/:write,read,list,delete")  # fmt: skip
    policy = directory / "policy.json"
    world.run(
        "policy", "new", "--name", "telltale", "--measurements", scene.image.with_suffix(".json"),
        *(word for name in ("alice", "bob") for word in
          ("--participant", f"{name}={world.identity(name) / f'{name}.pem'}")),
        *(word for right in rights for word in ("--right", right)),
        "--program", f"{PROGRAM}={program}", "--program-right", f"{PROGRAM}:/input/alice/:read",
        "--program-right", f"{PROGRAM}:/output/:write", "--storage-mib", "3", "--file-mib", "1", "--out", policy,
    )  # fmt: skip
    found = {}
    for name, secret in SECRETS.items():
        (directory / name).write_bytes(secret)
        with world.enclave(scene.image, policy) as enclave:
            found[name] = live(scene, enclave, policy, program, directory / name)
    return found


OTHERS = [name for name in SECRETS if name != "yes"]  # of the same length, and of another


def test_the_runs_do_differ_for_who_may_see_it(runs: dict[str, Seen]) -> None:
    assert len({run.alice for run in runs.values()}) == len(SECRETS)


@pytest.mark.parametrize("other", OTHERS)
def test_bob_sees_the_same_bytes(runs: dict[str, Seen], other: str) -> None:
    one, two = runs["yes"].bob, runs[other].bob
    assert list(one) == list(two)
    differing = {name: (one[name], two[name]) for name in one if mask(one[name]) != mask(two[name])}
    assert differing == {}


@pytest.mark.parametrize("other", OTHERS)
def test_a_stranger_sees_the_same_bytes(runs: dict[str, Seen], other: str) -> None:
    one, two = runs["yes"].stranger, runs[other].stranger
    assert {name: mask(answer) for name, answer in one.items()} == {name: mask(answer) for name, answer in two.items()}
    refused = {name: answer for name, answer in one.items() if not name.endswith("evidence")}
    assert all(answer.startswith(b"HTTP/1.1 401 ") for answer in refused.values())


@pytest.mark.parametrize("other", OTHERS)
def test_console_and_log_tell_the_same(runs: dict[str, Seen], other: str) -> None:
    assert runs["yes"].console == runs[other].console
    assert runs["yes"].log == runs[other].log
    for text in (SECRET, PROGRAM, "alice", "Yes-", "telltale"):
        assert text not in runs["yes"].console


def test_forbidden_is_like_absent(runs: dict[str, Seen]) -> None:
    """Alice's secret, a result that is there, one that is not: Bob cannot tell which is which."""
    seen = runs["yes"].bob
    for method in ("GET", "HEAD", "DELETE", "PUT", "PATCH"):
        paths = (SECRET, "/input/alice/never-was", "/output/Yes-0001", "/output/x")
        assert len({seen[f"at the end: {method} {path}"] for path in paths}) == 1
    assert len({seen[f"{when}: guess"] for when in ("with the secret", "at the end")}) == 1


def test_bobs_share_of_the_storage_is_his_own(runs: dict[str, Seen]) -> None:
    for run in runs.values():
        statuses = [run.bob[f"storage: {name}"].split()[1] for name in ("too-much", "all", "one-more")]
        assert statuses == [b"413", b"201", b"413"]


def test_bob_learns_that_his_job_ended_and_no_more(runs: dict[str, Seen]) -> None:
    for run in runs.values():
        for number in range(3):
            body = json.loads(run.bob[f"job {number}: ended"].partition(b"\r\n\r\n")[2])
            assert (set(body), body["state"]) == ({"id", "state"}, "ended")
