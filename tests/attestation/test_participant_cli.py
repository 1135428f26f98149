# SPDX-License-Identifier: MIT
"""The participants' command line: identities, policies, evidence and the verbs of a session, with their exit codes."""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attestation import cli
from attestation.binding import Binding, Purpose
from attestation.console import run_verb
from attestation.measurements import Measurements, dump_measurements
from attestation.policy import Policy, Right, parse_policy

from .documents import DEBUG, IMAGE, MADE_AT, OTHER_IMAGE, Pki, make_document, make_pcrs, make_pki, milliseconds
from .isolate_server import IsolateServer, Request, outcome, refusal, reply
from .parties import PROGRAM, WASM, Parties, dump


@dataclass(frozen=True)
class Result:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Veracruz = Callable[..., Result]


@pytest.fixture
def veracruz(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Veracruz:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)

    def run(*argv: object) -> Result:
        parser = argparse.ArgumentParser(prog="veracruz", allow_abbrev=False)
        cli.add_verbs(parser.add_subparsers(dest="command", required=True))
        capsys.readouterr()
        try:
            code = run_verb(parser.parse_args([str(word) for word in argv]))
        except SystemExit as end:  # argparse's own
            code = int(str(end.code))
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Result(code, captured.out, captured.err)

    return run


# identity new


def test_identity_new_writes_both_files_and_prints_the_fingerprint(veracruz: Veracruz, tmp_path: Path) -> None:
    result = veracruz("identity", "new", "alice", "--out", "keys", "--json")
    assert result.code == 0
    pem = (tmp_path / "keys" / "alice.pem").read_bytes()
    der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    assert result.json["sha256"] == hashlib.sha256(der).hexdigest()
    assert veracruz("identity", "new", "alice", "--out", "keys").code == 2


# policy


@pytest.fixture
def measurements(tmp_path: Path) -> Path:
    return _measurements(tmp_path / "measurements.json", IMAGE)


def _measurements(path: Path, image: Measurements) -> Path:
    path.write_text(json.dumps(dump_measurements(image)))
    return path


def _new_policy(veracruz: Veracruz, parties: Parties, measurements: Path, *more: object) -> Result:
    program = measurements.parent / "recommender.wasm"
    program.write_bytes(WASM)
    return veracruz(
        "policy", "new", "--name", "two retailers", "--measurements", measurements,
        "--participant", f"alice={parties.alice.certificate_file}",
        "--participant", f"bob={parties.bob.certificate_file}",
        "--right", "alice:/input/alice/:write,list", "--right", "alice:/output/:read",
        "--right", f"alice:{PROGRAM}:write,execute,observe",
        "--right", "bob:/input/bob/:write", "--right", "bob:/output/:read", "--right", f"bob:{PROGRAM}:execute,observe",
        "--program", f"{PROGRAM}={program}",
        "--program-right", f"{PROGRAM}:/input/:read", "--program-right", f"{PROGRAM}:/output/:write",
        *more,
    )  # fmt: skip


def test_policy_new_writes_what_its_options_say(
    veracruz: Veracruz, parties: Parties, measurements: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.json").write_text("{}")
    result = _new_policy(
        veracruz, parties, measurements,
        "--program-arg", f"{PROGRAM}=--rounds", "--program-arg", f"{PROGRAM}=10",
        "--program-env", f"{PROGRAM}=SEED=a=b", "--program-limit", f"{PROGRAM}=wall_s=5",
        "--join", "bob,alice", "--pin", "/input/model.json=model.json",
        "--pin", "/input/x=" + "ab" * 32, "--once", "/input/alice/", "--runs", f"{PROGRAM}=2", "--shutdown", "bob",
        "--not-after", "2030-01-01T00:00:00Z", "--root", "aws", "--storage-mib", "9", "--file-mib", "3", "--jobs", "2",
        "--clock", "--out", "policy.json", "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    raw = (tmp_path / "policy.json").read_bytes()
    policy = parse_policy(raw)
    assert result.json["hash"] == hashlib.sha256(raw).hexdigest()
    program = policy.programs[0]
    assert program.sha256 == hashlib.sha256(WASM).digest()
    assert (program.args, program.env, program.limits.wall_s) == (("--rounds", "10"), (("SEED", "a=b"),), 5)
    assert policy.participants[0].rights.allow("/input/alice/x", Right.WRITE)
    assert policy.join == ("bob", "alice")
    assert policy.pins["/input/model.json"] == hashlib.sha256(b"{}").digest()
    assert (policy.limits.storage_mib, policy.limits.file_mib, policy.limits.jobs) == (9, 3, 2)
    assert policy.clock
    assert policy.lifecycle.shutdown == ("bob",)
    assert dict(policy.lifecycle.runs) == {PROGRAM: 2}


def test_policy_new_prints_the_same_bytes_each_time(veracruz: Veracruz, parties: Parties, measurements: Path) -> None:
    first = _new_policy(veracruz, parties, measurements)
    assert first.out == _new_policy(veracruz, parties, measurements).out
    assert parse_policy(first.out.encode()).join == ("alice", "bob")


def test_policy_new_replaces_a_file_only_when_told(veracruz: Veracruz, parties: Parties, measurements: Path) -> None:
    assert _new_policy(veracruz, parties, measurements, "--out", "p.json").code == 0
    again = _new_policy(veracruz, parties, measurements, "--out", "p.json")
    assert again.code == 2
    assert "exists" in again.err
    assert _new_policy(veracruz, parties, measurements, "--out", "p.json", "--force").code == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--right", "alice"], "--right: wrong form"),
        (["--right", "carol:/x/:read"], "--right: not known; expected alice, bob, got carol"),
        (["--right", "alice:/x/:own"], "no such right"),
        (["--right", "alice:/x/../y:read"], "no .."),
        (["--program-right", "/program/other.wasm:/x/:read"], "--program-right: not known"),
        (["--program", "/program/x.wasm=missing.wasm"], "missing.wasm"),
        (["--program", "/program/x.wasm=measurements.json"], "no WebAssembly"),
        (["--program-limit", f"{PROGRAM}=threads=2"], "no such limit"),
        (["--program-limit", f"{PROGRAM}=wall_s=-1"], "no number"),
        (["--participant", "carol=measurements.json"], "exactly one PEM"),
        (["--join", "carol"], "join[0]: no such participant"),
        (["--runs", f"{PROGRAM}=0"], "out of range"),
        (["--not-after", "tomorrow"], "not_after: wrong form"),
        (["--pin", "/x=missing"], "missing"),
        (["--root", "missing.pem"], "missing.pem"),
    ],
)
def test_policy_new_refuses_options_that_make_no_policy(
    veracruz: Veracruz, parties: Parties, measurements: Path, more: list[str], said: str, tmp_path: Path
) -> None:
    result = _new_policy(veracruz, parties, measurements, *more, "--out", "p.json")
    assert result.code == 2
    assert said in result.err
    assert not (tmp_path / "p.json").exists()


def test_policy_check_says_what_each_party_may_do(veracruz: Veracruz, parties: Parties, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_bytes(parties.policy())
    result = veracruz("policy", "check", "p.json")
    assert result.code == 0
    assert "/input/alice/  list, write" in result.out
    data = veracruz("policy", "check", "p.json", "--json").json
    assert data["participants"]["bob"] == {
        "/input/bob/": ["write"], "/output/": ["read"], PROGRAM: ["execute"],
    }  # fmt: skip
    assert data["hash"] == hashlib.sha256(parties.policy()).hexdigest()


def _grant(name: int, key: str, *words: str) -> Callable[[dict[str, Any]], None]:
    return lambda members: members["participants"][name]["rights"].__setitem__(key, list(words))


def _revoke(name: int, key: str) -> Callable[[dict[str, Any]], None]:
    return lambda members: members["participants"][name]["rights"].pop(key)


def _both(*changes: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    return lambda members: [change(members) for change in changes] and None


@pytest.mark.parametrize(
    ("slug", "change"),
    [
        ("output-unread", _both(_revoke(0, "/output/"), _revoke(1, "/output/"))),
        ("no-output", lambda m: m["programs"][0]["rights"].pop("/output/")),
        ("input-unwritten", lambda m: m["programs"][0]["rights"].__setitem__("/model/", ["read"])),
        ("read-nothing", _grant(1, "/elsewhere/", "read")),
        ("no-program", lambda m: (m["programs"].clear(), m.pop("lifecycle"))),
        ("program-unsent", _grant(0, PROGRAM, "execute", "observe")),
        ("program-unused", _both(_grant(0, PROGRAM, "write"), _revoke(1, PROGRAM))),
        ("unobserved", _grant(0, PROGRAM, "write", "execute")),
        ("runs-unlimited", lambda m: m["lifecycle"].pop("runs")),
        ("read-by-others", _grant(1, "/input/", "read")),
        ("written-by-others", _grant(1, "/input/alice/x", "write")),
        ("input-replaceable", lambda m: m.pop("once")),
        ("wide-right", _grant(1, "/", "read")),
        ("list-without-directory", _grant(1, "/output/model", "list")),
        ("no-such-program", _grant(1, "/program/other.wasm", "execute")),
        ("not-in-join", lambda m: m["join"].remove("alice")),
        ("lone-shutdown", lambda m: m["lifecycle"]["shutdown"].remove("alice")),
        ("clock", lambda m: m.__setitem__("clock", True)),
        ("no-end", lambda m: m["lifecycle"].pop("not_after")),
        ("expired", lambda m: m["lifecycle"].__setitem__("not_after", "2020-01-01T00:00:00Z")),
    ],
)
def test_policy_check_warns_of_what_is_likely_not_meant(
    veracruz: Veracruz, parties: Parties, tmp_path: Path, slug: str, change: Callable[[dict[str, Any]], None]
) -> None:
    members = parties.members()
    (tmp_path / "sound.json").write_bytes(dump(members))
    change(members)
    (tmp_path / "p.json").write_bytes(dump(members))
    sound = veracruz("policy", "check", "sound.json", "--json").json["warnings"]
    result = veracruz("policy", "check", "p.json", "--json")
    assert slug in [warning["slug"] for warning in result.json["warnings"] if warning not in sound]
    assert f"[{slug}]" in result.err
    assert (result.code, veracruz("policy", "check", "p.json", "--strict").code) == (0, 1)


def test_policy_hash_is_of_the_exact_bytes(veracruz: Veracruz, parties: Parties, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_bytes(parties.policy())
    assert veracruz("policy", "hash", "p.json").out == hashlib.sha256(parties.policy()).hexdigest() + "\n"


def test_policy_explain_follows_what_a_party_puts_in(veracruz: Veracruz, parties: Parties, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_bytes(parties.policy())
    result = veracruz("policy", "explain", "p.json")
    assert "What alice puts under /input/alice/:" in result.out
    assert "is read as it is by no other party" in result.out
    assert "can show in results under /output/, read by alice, bob" in result.out
    assert "can show in exit code, usage and streams of runs, seen by alice\n" in result.out
    assert "at most 3 times in all" in result.out
    flow = veracruz("policy", "explain", "p.json", "--json").json["flows"][0]
    assert flow == {
        "writer": "alice", "key": "/input/alice/", "readers": [], "programs": [PROGRAM], "outputs": ["/output/"],
        "learners": ["alice", "bob"], "observers": ["alice"],
    }  # fmt: skip


def test_policy_explain_follows_a_chain_of_programs(veracruz: Veracruz, parties: Parties, tmp_path: Path) -> None:
    members = parties.members()
    second = {**members["programs"][0], "path": "/program/b.wasm", "rights": {"/output/": ["read"], "/end/": ["write"]}}
    members["programs"].append(second)
    members["participants"][1]["rights"] = {"/end/": ["read"]}
    (tmp_path / "p.json").write_bytes(dump(members))
    flow = veracruz("policy", "explain", "p.json", "--json").json["flows"][0]
    assert flow["programs"] == [PROGRAM, "/program/b.wasm"]
    assert flow["learners"] == ["alice", "bob"]


@pytest.mark.parametrize("verb", ["check", "hash", "explain"])
def test_policy_verbs_name_what_is_malformed(veracruz: Veracruz, tmp_path: Path, verb: str) -> None:
    (tmp_path / "p.json").write_text('{"schema": "veracruz.policy/1", "nam": 1}')
    result = veracruz("policy", verb, "p.json", "--json")
    assert result.code == 2
    assert result.json["error"]["slug"] == "malformed-policy"
    assert "nam: unknown key" in result.err
    assert veracruz("policy", verb, "missing.json").code == 2


# A session


@pytest.fixture(scope="module")
def pki() -> Pki:
    """A chain that is valid now."""
    age = datetime.now(UTC) - MADE_AT
    window = {"before": timedelta(hours=1) - age, "after": age + timedelta(hours=2)}
    return make_pki(regional=window, zonal=window, instance=window, leaf=window)


class World:
    """An isolate that attests truly unless told otherwise, and the options by which Alice talks to it."""

    def __init__(self, folder: Path, parties: Parties, pki: Pki) -> None:
        self.policy: Policy = parse_policy(parties.policy())
        self.image = IMAGE
        self.answer: dict[str, bytes] = {}  # by target: what the isolate says instead
        self.server = IsolateServer(folder, self.policy, self._attest, override=self._override)
        self._pki = pki
        root = folder / "root.pem"
        root.write_bytes(x509.load_der_x509_certificate(pki.root.certificate).public_bytes(Encoding.PEM))
        (folder / "policy.json").write_bytes(parties.policy())
        _measurements(folder / "measurements.json", IMAGE)
        self.isolate = ["--isolate", str(self.server.endpoint)]
        self.root = ["--root", str(root)]
        self.images = ["--measurements", "measurements.json"]
        self.who = ["--policy", "policy.json", "--identity", str(parties.alice.key_file.parent)]
        self.alice = [*self.who, *self.isolate, *self.root, *self.images]

    def _attest(self, nonce: bytes, spki: bytes) -> bytes:
        return make_document(
            self._pki,
            nonce=nonce,
            public_key=spki,
            user_data=Binding(Purpose.SESSION, self.policy.hash, None).encode(),
            pcrs=make_pcrs(self.image, policy_hash=self.policy.hash),
            timestamp=milliseconds(datetime.now(UTC)),
        )

    def _override(self, request: Request) -> bytes | None:
        return self.answer.get(f"{request.method} {request.target.partition('?')[0]}")


@pytest.fixture
def world(tmp_path: Path, parties: Parties, pki: Pki) -> Iterator[World]:
    world = World(tmp_path, parties, pki)
    yield world
    world.server.close()


def test_fetch_writes_a_document_that_verify_takes(veracruz: Veracruz, world: World, tmp_path: Path) -> None:
    result = veracruz("attest", "fetch", *world.isolate, "--out", "doc.cbor", "--json")
    assert result.code == 0
    assert "not verified" in result.err
    data = result.json
    assert base64.b64decode(data["document"]) == (tmp_path / "doc.cbor").read_bytes()
    assert (data["file"], data["verdict"], data["public_key"]) == ("doc.cbor", None, world.server.key.spki.hex())
    verified = veracruz(
        "attest", "verify", "doc.cbor", *world.images, *world.root, "--policy", "policy.json", "--nonce", data["nonce"],
        "--public-key", data["public_key"], "--json",
    )  # fmt: skip
    assert (verified.code, verified.json["verdict"]) == (0, "verified-development")


def test_fetch_prints_base64_where_no_file_is_named(veracruz: Veracruz, world: World) -> None:
    nonce = "ab" * 32
    result = veracruz("attest", "fetch", *world.isolate, "--nonce", nonce.upper())
    assert base64.b64decode(result.out)[:1] == b"\x84"
    assert nonce in result.err
    assert world.server.seen.requests == [f"GET /v1/attestation?nonce={nonce}"]


def test_fetch_verifies_at_once_what_it_is_told_to(veracruz: Veracruz, world: World) -> None:
    whole = veracruz("attest", "fetch", *world.isolate, *world.root, *world.images, "--policy", "policy.json", "--json")
    assert (whole.code, whole.json["verdict"]) == (0, "verified-development")
    assert whole.json["Measurements"]["PCR0"] == IMAGE.pcr0.hex()
    assert "is not AWS's root" in whole.err
    image_only = veracruz("attest", "fetch", *world.isolate, *world.root, *world.images)
    assert image_only.code == 0
    assert "not checked which policy" in image_only.err
    assert world.server.seen.certificates == [None, None]


def test_fetch_leaves_no_word_on_trust_unheard(veracruz: Veracruz, world: World) -> None:
    for words in (world.root, ("--root", "missing.pem"), ("--allow-debug",)):
        result = veracruz("attest", "fetch", *world.isolate, *words)
        assert result.code == 2
        assert "nothing to verify by" in result.err


def test_fetch_exits_1_with_the_slug_of_what_does_not_hold(veracruz: Veracruz, world: World, tmp_path: Path) -> None:
    other = _measurements(tmp_path / "other.json", OTHER_IMAGE)
    arguments = ["attest", "fetch", *world.isolate, "--json"]
    refused = veracruz(*arguments, *world.root, "--measurements", other)
    assert (refused.code, refused.json["error"]["slug"]) == (1, "measurement-mismatch")
    aws = veracruz(*arguments, *world.images)
    assert (aws.code, aws.json["error"]["slug"]) == (1, "untrusted-chain")


@pytest.mark.parametrize("nonce", ["", "ab", "zz" * 32, "ab" * 33])
def test_fetch_refuses_a_nonce_out_of_form(veracruz: Veracruz, world: World, nonce: str) -> None:
    result = veracruz("attest", "fetch", *world.isolate, "--nonce", nonce)
    assert result.code == 2
    assert "--nonce" in result.err


def test_send_get_and_ls(veracruz: Veracruz, world: World, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(b"a,b\n")
    sent = veracruz("send", "table.csv", "/input/alice/", *world.alice, "--json")
    assert (sent.code, sent.json["path"], sent.json["size"]) == (0, "/input/alice/table.csv", 4)
    assert world.server.files == {"/input/alice/table.csv": b"a,b\n"}
    assert veracruz("send", "table.csv", "/input/alice/table.csv", "--append", *world.alice).code == 0
    listed = veracruz("ls", "/input/alice", *world.alice)
    assert listed.out.split() == ["8", "table.csv"]
    got = veracruz("get", "/input/alice/table.csv", "--out", "back.csv", *world.alice)
    assert got.code == 0
    assert (tmp_path / "back.csv").read_bytes() == b"a,b\na,b\n"
    assert veracruz("get", "/input/alice/table.csv", "--out", "-", *world.alice).out == "a,b\na,b\n"


def test_send_stops_without_measurements_of_ones_own(veracruz: Veracruz, world: World, tmp_path: Path) -> None:
    (tmp_path / "t").write_text("secret")
    arguments = ["send", "t", "/input/alice/t", *world.who, *world.isolate, *world.root]
    stopped = veracruz(*arguments)
    assert stopped.code == 2
    assert "hint:" in stopped.err
    assert "--unsafe-accept-policy-image" in stopped.err
    assert world.server.seen.certificates == []
    loud = veracruz(*arguments, "--unsafe-accept-policy-image")
    assert loud.code == 0
    assert "you trust the image that the policy's writer chose" in loud.err
    assert veracruz(*arguments, *world.images, "--unsafe-accept-policy-image").code == 2


def test_a_development_root_is_announced_each_time(veracruz: Veracruz, world: World) -> None:
    for _ in range(2):
        result = veracruz("ls", "/output/", *world.alice)
        assert "is not AWS's root" in result.err


def test_debug_mode_needs_permission_and_a_development_root(veracruz: Veracruz, world: World) -> None:
    world.image = DEBUG
    arguments = ["ls", "/output/", *world.who, *world.isolate]
    refused = veracruz(*arguments, *world.root, *world.images, "--json")
    assert (refused.code, refused.json["error"]["slug"]) == (1, "debug-evidence")
    allowed = veracruz(*arguments, *world.root, "--allow-debug")
    assert allowed.code == 0
    assert "--allow-debug: the host" in allowed.err
    assert veracruz(*arguments, "--allow-debug").code == 2


def test_mallory_is_told_and_then_refused_by_the_isolate(
    veracruz: Veracruz, world: World, parties: Parties, tmp_path: Path
) -> None:
    (tmp_path / "t").write_text("x")
    mallory = ["--policy", "policy.json", "--identity", parties.mallory.key_file, *world.isolate, *world.root]
    result = veracruz("send", "t", "/input/alice/t", *mallory, *world.images, "--json")
    assert (result.code, result.json["error"]["slug"]) == (1, "certificate-refused")
    assert "does not name" in result.err
    assert world.server.files == {}


def test_another_isolate_is_refused_until_the_old_one_is_given_up(
    veracruz: Veracruz, world: World, parties: Parties, pki: Pki, tmp_path: Path
) -> None:
    assert veracruz("ls", "/output/", *world.alice).code == 0
    clone = World(tmp_path, parties, pki)
    try:
        refused = veracruz("ls", "/output/", *clone.alice, "--json")
        assert (refused.code, refused.json["error"]["slug"]) == (1, "isolate-changed")
        assert "--new-isolate" in refused.err
        aloud = veracruz("ls", "/output/", *clone.alice, "--new-isolate")
        assert aloud.code == 0
        assert "is forgotten" in aloud.err
        assert veracruz("ls", "/output/", *clone.alice).code == 0
    finally:
        clone.server.close()


def test_run_prints_the_job_and_status_tells_of_it(veracruz: Veracruz, world: World) -> None:
    started = veracruz("run", PROGRAM, *world.alice, "--input", "/input/alice/t=" + "ab" * 32)
    assert (started.code, started.out) == (0, "ab" * 16 + "\n")
    assert world.server.job["request"] == {"program": PROGRAM, "inputs": {"/input/alice/t": "ab" * 32}}
    assert "running" in veracruz("status", "ab" * 16, *world.alice).out
    assert veracruz("status", "ab" * 16, *world.alice, "--json").json == {"id": "ab" * 16, "state": "ended"}


@pytest.mark.parametrize(
    ("end", "code"), [({"exit_code": 0}, 0), ({"exit_code": 3}, 6), ({"exit_code": None, "trap": "out-of-fuel"}, 6)]
)
def test_run_with_wait_exits_6_where_the_job_ended_badly(
    veracruz: Veracruz, world: World, end: dict[str, Any], code: int
) -> None:
    body = json.dumps({"id": "ab" * 16, "state": "ended", **outcome(**end, stdout=b"\x1b[2Jhi\n")}).encode()
    world.answer["GET /v1/jobs/" + "ab" * 16] = reply(200, body)
    result = veracruz("run", PROGRAM, "--wait", *world.alice)
    assert result.code == code
    assert "\\x1b[2Jhi" in result.out
    data = veracruz("run", PROGRAM, "--wait", *world.alice, "--json").json
    assert (data["exit_code"], data["stdout"], data["usage"]["fuel"]) == (end["exit_code"], "\x1b[2Jhi\n", 12)


def test_run_with_wait_exits_0_for_who_may_not_observe(veracruz: Veracruz, world: World) -> None:
    result = veracruz("run", PROGRAM, "--wait", *world.alice)
    assert (result.code, result.out.split()) == (0, ["ab" * 16, "ended"])


def test_a_refusal_names_the_isolates_slug_and_a_hint(veracruz: Veracruz, world: World) -> None:
    world.answer["POST /v1/jobs"] = refusal(409, "join-incomplete", "bob is missing")
    result = veracruz("run", PROGRAM, *world.alice, "--json")
    assert (result.code, result.json["error"]["slug"]) == (1, "join-incomplete")
    assert "hint:" in result.err


def test_shutdown_says_whether_it_ends(veracruz: Veracruz, world: World) -> None:
    assert veracruz("shutdown", *world.alice, "--json").json == {"agreed": False}
    assert "have not all asked" in veracruz("shutdown", *world.alice).out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["send", "missing", "/input/alice/t"], 2),
        (["send", ".", "/input/alice/t"], 2),
        (["send", "measurements.json", "/input/../t"], 2),
        (["get", "/output/", "--out", "x"], 2),
        (["get", "/output/x", "--out", "x"], 1),
        (["get", "/output/x", "--out", "no/such/folder/x"], 3),
        (["run", PROGRAM, "--input", "x"], 2),
        (["run", PROGRAM, "--input", "/x=zz"], 2),
        (["status", "x"], 2),
        (["ls", "/output/", "--timeout", "1"], 2),
    ],
)
def test_bad_input_has_a_clear_error_and_the_right_exit_code(
    veracruz: Veracruz, world: World, arguments: list[str], code: int, tmp_path: Path
) -> None:
    before = sorted(path.name for path in tmp_path.iterdir() if path.name != "state")
    result = veracruz(*arguments, *world.alice)
    assert result.code == code
    assert "error:" in result.err
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "state") == before


def test_nobody_at_the_address_exits_5(veracruz: Veracruz, world: World) -> None:
    world.server.close()
    result = veracruz("ls", "/output/", *world.alice)
    assert result.code == 5
    assert "hint:" in result.err
