# SPDX-License-Identifier: MIT
"""A participant's session: whom it opens itself to, what it pins, and that files go and come whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from attestation.appraising import Trust
from attestation.binding import Binding, Purpose
from attestation.chain import aws_root
from attestation.errors import (
    CertificateRefused,
    ContentMismatch,
    DebugEvidence,
    FieldMismatch,
    Frozen,
    IsolateChanged,
    KeyMismatch,
    MalformedAnswer,
    MalformedInput,
    MeasurementMismatch,
    NonceMismatch,
    NotAvailable,
    PolicyMismatch,
    TooLarge,
    Unreachable,
    UntrustedChain,
    UsageError,
    VeracruzError,
)
from attestation.identity import Identity
from attestation.jobs import JobState
from attestation.participant import Session, open_session
from attestation.pins import PinStore, new_pin
from attestation.policy import parse_policy

from .documents import DEBUG, IMAGE, MADE_AT, OTHER_IMAGE, Pki, make_document, make_pcrs, make_pki
from .isolate_server import IsolateServer, Last, RecordingRelay, Request, ServerKey, outcome, refusal, reply, reply_json
from .parties import PROGRAM, Parties, dump

TABLE = b"customer,choice\n" * 20_000  # several chunks


@pytest.fixture(scope="module")
def pki() -> Pki:
    return make_pki()


class World:
    """An isolate that attests truly, unless a test changes its documents, and one user's pins."""

    def __init__(self, folder: Path, parties: Parties, pki: Pki) -> None:
        self.parties = parties
        self.raw = parties.policy()
        self.policy = parse_policy(self.raw)
        self.trust = Trust(pki.root, (IMAGE,))
        self.pins = PinStore(folder / "state" / "pins")
        self.folder = folder
        self.document: dict[str, Any] = {}  # what is false in its documents
        self._pki = pki
        self._servers: list[IsolateServer] = []
        self._files: list[BinaryIO] = []

    def serve(self, **arguments: Any) -> IsolateServer:
        server = IsolateServer(self.folder, self.policy, self.attest, **arguments)
        self._servers.append(server)
        return server

    def attest(self, nonce: bytes, spki: bytes) -> bytes:
        fields = {
            "nonce": nonce,
            "public_key": spki,
            "user_data": Binding(Purpose.SESSION, self.policy.hash, None).encode(),
            "pcrs": make_pcrs(policy_hash=self.policy.hash),
        }
        return make_document(self._pki, **{**fields, **self.document})

    def open(self, server: IsolateServer | RecordingRelay, identity: Identity | None = None, **changes: Any) -> Session:
        arguments = {
            "policy": self.raw,
            "trust": self.trust,
            "identity": identity or self.parties.alice,
            "pins": self.pins,
            "clock": lambda: MADE_AT,
            **changes,
        }
        return open_session(server.endpoint, **arguments)

    def file(self, content: bytes) -> BinaryIO:
        """Return an open file of the participant's."""
        path = self.folder / f"file-{len(self._files)}"
        path.write_bytes(content)
        self._files.append(path.open("rb"))
        return self._files[-1]

    def close(self) -> None:
        for file in self._files:
            file.close()
        for server in self._servers:
            server.close()


@pytest.fixture
def world(tmp_path: Path, parties: Parties, pki: Pki) -> Iterator[World]:
    world = World(tmp_path, parties, pki)
    yield world
    world.close()


# Opening


def test_verifies_then_connects_and_first_asks_for_the_policy(world: World) -> None:
    server = world.serve()
    with world.open(server) as session:
        assert session.appraisal.verdict == "verified-development"
    assert server.seen.certificates == [None, world.parties.alice.certificate]
    assert server.seen.requests[0].startswith("GET /v1/attestation?nonce=")
    assert server.seen.requests[1:] == ["GET /v1/policy"]


def test_each_session_has_a_nonce_of_its_own(world: World) -> None:
    server = world.serve()
    for _ in range(2):
        world.open(server).close()
    evidence = [line for line in server.seen.requests if "nonce" in line]
    assert len(set(evidence)) == 2


def _user_data(world: World, purpose: Purpose) -> bytes:
    return Binding(purpose, world.policy.hash, None).encode()


_FALSE: list[tuple[str, Callable[[World], dict[str, Any]], type[VeracruzError]]] = [
    ("a replayed document", lambda w: {"nonce": bytes(32)}, NonceMismatch),
    ("no nonce", lambda w: {"nonce": None}, NonceMismatch),
    ("another isolate's key", lambda w: {"public_key": ServerKey.new().spki}, KeyMismatch),
    ("no key", lambda w: {"public_key": None}, KeyMismatch),
    ("another image", lambda w: {"pcrs": make_pcrs(OTHER_IMAGE, policy_hash=w.policy.hash)}, MeasurementMismatch),
    ("debug mode", lambda w: {"pcrs": make_pcrs(DEBUG, policy_hash=w.policy.hash)}, DebugEvidence),
    ("another policy", lambda w: {"pcrs": make_pcrs(policy_hash=bytes(32))}, PolicyMismatch),
    ("PCR16 unlocked", lambda w: {"pcrs": make_pcrs(policy_hash=None)}, PolicyMismatch),
    (
        "another purpose",
        lambda w: {"user_data": Binding(Purpose.RECIPIENT, w.policy.hash, None).encode()},
        PolicyMismatch,
    ),
    ("no user data", lambda w: {"user_data": None}, PolicyMismatch),
]


@pytest.mark.parametrize(("change", "error"), [c[1:] for c in _FALSE], ids=[c[0] for c in _FALSE])
def test_sends_no_certificate_where_the_evidence_is_false(
    world: World, change: Callable[[World], dict[str, Any]], error: type[VeracruzError]
) -> None:
    world.document = change(world)
    server = world.serve()
    with pytest.raises(error):
        world.open(server)
    assert server.seen.certificates == [None]
    assert world.pins.find(world.policy.hash) is None


def test_a_foreign_root_is_refused(world: World) -> None:
    server = world.serve()
    for root in (make_pki().root, aws_root()):
        with pytest.raises(UntrustedChain):
            world.open(server, trust=Trust(root, (IMAGE,)))
    assert set(server.seen.certificates) == {None}


def test_evidence_at_another_time_is_refused(world: World) -> None:
    server = world.serve()
    with pytest.raises(UntrustedChain):
        world.open(server, clock=lambda: MADE_AT + timedelta(days=1))


def test_the_clock_is_read_once_the_evidence_is_here(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection may wait for an isolate that is still starting: its document is then younger than the question."""
    now, attest = [MADE_AT - timedelta(minutes=10)], world.attest

    def late(nonce: bytes, spki: bytes) -> bytes:
        now[0] = MADE_AT
        return attest(nonce, spki)

    monkeypatch.setattr(world, "attest", late)
    with world.open(world.serve(), clock=lambda: now[0]):
        pass


def test_an_image_that_the_policy_alone_names_is_refused(world: World) -> None:
    server = world.serve()
    with pytest.raises(MeasurementMismatch, match="your measurements"):
        world.open(server, trust=Trust(world.trust.root, (OTHER_IMAGE,)))
    assert set(server.seen.certificates) <= {None}


def test_a_root_in_the_policy_narrows_the_choice(world: World) -> None:
    world.raw = dump({**world.parties.members(), "root": "aws"})
    world.policy = parse_policy(world.raw)
    server = world.serve()
    with pytest.raises((UntrustedChain, FieldMismatch)):
        world.open(server)
    assert server.seen.certificates == [None]


def test_a_policy_swapped_by_the_host_is_refused(world: World) -> None:
    """The isolate runs another policy, which also names Alice; her own file says otherwise."""
    mine = world.raw
    world.raw = dump({**world.parties.members(), "clock": True})
    world.policy = parse_policy(world.raw)
    server = world.serve()
    with pytest.raises(PolicyMismatch):
        world.open(server, policy=mine)
    assert server.seen.certificates == [None]


def test_debug_evidence_needs_both_a_development_root_and_permission(world: World) -> None:
    world.document = {"pcrs": make_pcrs(DEBUG, policy_hash=world.policy.hash)}
    server = world.serve()
    allowed = Trust(world.trust.root, (), allow_debug=True)
    with world.open(server, trust=allowed) as session:
        assert session.appraisal.verdict == "verified-debug"
    with pytest.raises(UsageError, match="development root"):
        Trust(aws_root(), (), allow_debug=True)


def test_permission_for_debug_mode_is_none_for_an_image_that_nobody_chose(world: World) -> None:
    server = world.serve()
    with pytest.raises(DebugEvidence, match="you trust none"):
        world.open(server, trust=Trust(world.trust.root, (), allow_debug=True))
    assert server.seen.certificates == [None]


def test_trust_in_no_image_is_no_trust(world: World) -> None:
    with pytest.raises(UsageError, match="no image"):
        Trust(world.trust.root, ())


def test_a_host_that_switches_to_its_own_server_after_the_evidence_gets_nothing(world: World) -> None:
    isolate, own = world.serve(), world.serve(key=ServerKey.new())
    with RecordingRelay(isolate.endpoint, own.endpoint) as relay, pytest.raises(KeyMismatch):
        world.open(relay)
    assert own.seen.certificates == []
    assert own.seen.requests == []
    assert all(world.parties.alice.certificate not in bytes(sent) for sent in relay.clients)


def test_a_host_that_switches_to_a_copied_certificate_gets_nothing(world: World) -> None:
    isolate = world.serve()
    own = world.serve(key=isolate.key.copy())
    with RecordingRelay(isolate.endpoint, own.endpoint) as relay, pytest.raises(KeyMismatch):
        world.open(relay)
    assert own.seen.certificates == []


def test_mallory_is_refused_and_leaves_no_pin(world: World) -> None:
    server = world.serve()
    with pytest.raises(CertificateRefused):
        world.open(server, world.parties.mallory)
    assert len(server.seen.requests) == 1  # evidence, which is anybody's
    assert world.pins.find(world.policy.hash) is None


def test_an_isolate_that_serves_another_policy_than_it_proves_is_refused(world: World) -> None:
    def override(request: Request) -> bytes | None:
        return reply(200, b"{}") if request.target == "/v1/policy" else None

    with pytest.raises(PolicyMismatch, match="serves another"):
        world.open(world.serve(override=override))


# Pins


def test_pins_the_first_isolate_and_refuses_a_clone_of_the_same_policy(world: World) -> None:
    first, clone = world.serve(), world.serve()
    world.open(first).close()
    world.open(first).close()
    with pytest.raises(IsolateChanged) as caught:
        world.open(clone)
    assert caught.value.slug == "isolate-changed"
    assert caught.value.expected == hashlib.sha256(first.key.certificate).hexdigest()
    assert clone.seen.certificates == [None]  # nothing but evidence was asked of it
    world.open(first).close()


def test_a_new_isolate_replaces_the_pin_only_once_it_answered(world: World) -> None:
    first, clone = world.serve(), world.serve()
    world.open(first).close()
    with pytest.raises(CertificateRefused):
        world.open(clone, world.parties.mallory, new_isolate=True)
    world.open(first).close()
    world.open(clone, new_isolate=True).close()
    with pytest.raises(IsolateChanged):
        world.open(first)


def test_pins_are_of_one_policy_and_one_root(world: World, tmp_path: Path) -> None:
    store = PinStore(tmp_path / "pins")
    pin = new_pin(b"certificate", b"r" * 32, at=MADE_AT)
    store.keep(b"p" * 32, pin)
    store.keep(b"p" * 32, pin)
    store.keep(b"q" * 32, replace(pin, certificate=b"other"))
    with pytest.raises(IsolateChanged):
        store.keep(b"p" * 32, replace(pin, root=b"s" * 32))
    assert store.find(b"p" * 32) == pin
    assert (tmp_path / "pins" / f"{(b'p' * 32).hex()}.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"schema": 1}', bytes(100_000)])
def test_a_damaged_pin_is_not_taken_for_none(tmp_path: Path, content: bytes) -> None:
    store = PinStore(tmp_path)
    (tmp_path / f"{bytes(32).hex()}.json").write_bytes(content)
    with pytest.raises(UsageError):
        store.check(bytes(32), new_pin(b"certificate", b"r" * 32, at=MADE_AT))


# Files


@pytest.mark.parametrize("content", [b"", b"x", TABLE])
def test_sends_and_fetches_a_file_whole(world: World, content: bytes) -> None:
    server = world.serve()
    source = world.folder / "table.csv"
    source.write_bytes(content)
    seen: list[int] = []
    with world.open(server) as session, source.open("rb") as file:
        stored = session.put("/input/alice/a table.csv", file, progress=seen.append)
        assert (stored.size, stored.sha256) == (len(content), hashlib.sha256(content).digest())
        got = session.get("/input/alice/a table.csv", world.folder / "out.csv")
        assert got.sha256 == stored.sha256
    assert server.files == {"/input/alice/a table.csv": content}
    assert "PUT /v1/files/input/alice/a%20table.csv" in server.seen.requests
    assert (world.folder / "out.csv").read_bytes() == content
    assert seen[-1:] == [len(content)] * bool(content)


def test_appends_lists_and_deletes(world: World) -> None:
    server = world.serve()
    with world.open(server) as session:
        for part in (b"one\n", b"two\n"):
            session.append("/input/alice/log", world.file(part))
        assert server.files == {"/input/alice/log": b"one\ntwo\n"}
        (entry,) = session.list("/input/alice/")
        assert (entry.name, entry.kind, entry.size) == ("log", "file", 8)
        session.delete("/input/alice/log")
        assert session.list("/input/alice/") == ()
    assert server.seen.certificates == [None, world.parties.alice.certificate]  # one connection for all


def test_a_file_that_changes_while_it_is_sent_is_not_stored(world: World) -> None:
    server = world.serve()
    path = world.folder / "growing"
    path.write_bytes(TABLE)

    def shrink(_: int) -> None:
        path.write_bytes(TABLE[:70_000])

    with world.open(server) as session, path.open("rb", buffering=0) as file:
        with pytest.raises(ContentMismatch, match="shrank"):
            session.put("/input/alice/t", file, progress=shrink)
        assert server.files == {}
        path.write_bytes(TABLE)
        session.put("/input/alice/t", file)  # on a new connection
    assert server.files == {"/input/alice/t": TABLE}


def test_a_file_over_the_policys_limit_is_not_sent(world: World) -> None:
    server = world.serve()
    with world.open(server) as session:
        with pytest.raises(TooLarge):
            session.put("/input/alice/t", world.file(bytes(2 * 1024 * 1024 + 1)))
        assert "PUT" not in " ".join(server.seen.requests)


def _answer_files(answer: bytes) -> Callable[[Request], bytes | None]:
    return lambda request: answer if "/v1/files/" in request.target else None


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (reply(200, b"abc", headers={"X-Content-SHA256": hashlib.sha256(b"abd").hexdigest()}), ContentMismatch),
        (reply(200, b"abc"), MalformedAnswer),
        (reply(200, b"abc", headers={"X-Content-SHA256": "ab"}), MalformedAnswer),
        (reply(200, b"abc" * 700_000, headers={"X-Content-SHA256": "ab" * 32}), MalformedAnswer),
        (
            Last(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nX-Content-SHA256: " + b"ab" * 32 + b"\r\n\r\nabc"),
            Unreachable,
        ),
        (refusal(404, "not-available"), NotAvailable),
    ],
)
def test_nothing_is_kept_of_a_file_that_did_not_come_whole(
    world: World, answer: bytes, error: type[VeracruzError]
) -> None:
    server = world.serve(override=_answer_files(answer))
    out = world.folder / "out"
    out.mkdir()
    (out / "model").write_text("the old one")
    with world.open(server) as session, pytest.raises(error):
        session.get("/output/model", out / "model")
    assert {path.name: path.read_text() for path in out.iterdir()} == {"model": "the old one"}


def test_a_refusal_has_the_servers_slug_and_leaves_the_connection_usable(world: World) -> None:
    server = world.serve(override=_answer_files(refusal(409, "frozen", "written \x1b[1m once")))
    with world.open(server) as session:
        for _ in range(2):
            with pytest.raises(Frozen, match=r"written \\x1b") as caught:
                session.put("/input/alice/t", world.file(b"x"))
            assert caught.value.slug == "frozen"
    assert server.seen.certificates.count(world.parties.alice.certificate) == 1


@pytest.mark.parametrize("path", ["/a/../b", "a", "/dev/null", "/a//b", "/a\r\nX: y"])
def test_no_path_out_of_form_reaches_the_isolate(world: World, path: str) -> None:
    server = world.serve()
    with world.open(server) as session:
        for action in (session.delete, lambda p: session.run(p), lambda p: session.get(p, world.folder / "x")):
            with pytest.raises(MalformedInput):
                action(path)
    assert len(server.seen.requests) == 2


def test_an_answer_about_something_else_is_refused(world: World) -> None:
    stored = {"path": "/other", "size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    server = world.serve(override=_answer_files(reply_json(201, stored)))
    with world.open(server) as session, pytest.raises(ContentMismatch):
        session.put("/input/alice/t", world.file(b"x"))


# Jobs


def test_starts_a_job_and_waits_for_its_end(world: World) -> None:
    server = world.serve()
    with world.open(server) as session:
        job_id = session.run(PROGRAM, inputs={"/input/alice/t": bytes(32)})
        assert server.job["request"] == {"program": PROGRAM, "inputs": {"/input/alice/t": "00" * 32}}
        assert session.job(job_id).state is JobState.RUNNING
        server.job.update(outcome(exit_code=3, trap="out of fuel", stdout=b"hello\n"))
        job = session.wait(job_id)
    assert job.state is JobState.ENDED
    assert job.outcome is not None
    assert (job.outcome.exit_code, job.outcome.trap, job.outcome.stdout) == (3, "out of fuel", b"hello\n")
    assert job.outcome.usage == {"fuel": 12, "wall_ms": 3, "memory_bytes": 65536}
    assert not job.outcome.good


def test_who_may_not_observe_learns_the_end_alone(world: World) -> None:
    server = world.serve()
    with world.open(server) as session:
        job = session.wait(session.run(PROGRAM))
    assert (job.state, job.outcome) == (JobState.ENDED, None)


@pytest.mark.parametrize("job_id", ["", "../policy", "AB" * 16, "ab" * 15])
def test_no_job_id_out_of_form_reaches_the_isolate(world: World, job_id: str) -> None:
    server = world.serve()
    with world.open(server) as session, pytest.raises(UsageError, match="job's id"):
        session.job(job_id)


@pytest.mark.parametrize(
    "answer",
    [
        {"id": "ab" * 16},
        {"id": "cd" * 16, "state": "ended"},
        {"id": "ab" * 16, "state": "lost"},
        {"id": "ab" * 16, "state": "ended", "exit_code": "0"},
        {"id": "ab" * 16, "state": "ended", "exit_code": 0, "stdout": "not base64!"},
        {"id": "ab" * 16, "state": ["ended"]},
        [],
    ],
)
def test_refuses_a_job_out_of_form(world: World, answer: object) -> None:
    def override(request: Request) -> bytes | None:
        return reply_json(200, answer) if request.target.startswith("/v1/jobs/") else None

    with world.open(world.serve(override=override)) as session, pytest.raises(MalformedAnswer):
        session.job("ab" * 16)


def test_reports_whether_all_agreed_to_the_end(world: World) -> None:
    with world.open(world.serve()) as session:
        assert session.shutdown() is False


def test_asks_again_where_an_idle_connection_was_closed(world: World) -> None:
    listing = reply_json(200, {"entries": []})
    server = world.serve(override=lambda request: Last(listing) if request.target == "/v1/files/output/" else None)
    with world.open(server) as session:
        assert session.list("/output/") == ()
        assert session.list("/output/") == ()  # the connection was closed meanwhile
    assert server.seen.certificates.count(world.parties.alice.certificate) == 2
