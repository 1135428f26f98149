# SPDX-License-Identifier: MIT
"""The participants' verbs against the real runtime in a `process` isolate: the main job, refusals included."""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from attestation.errors import ApiRefusal
from attestation.refusals import parse_refusal
from enclave_image.runtime.errors import ApiError

from .parties import PROGRAM, Parties, dump

pytestmark = pytest.mark.faults

pytest.importorskip("wasmtime", reason="the engine of the isolate: extra [host]")
tables = pytest.importorskip("examples.recommender.tables", reason="the demo's data: extra [demo]")

ROOT = Path(__file__).parents[2]
WASM = ROOT / "examples" / "recommender" / "recommender.wasm"


@dataclass(frozen=True)
class Result:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def slug(self) -> str:
        return str(json.loads(self.out)["error"]["slug"])


class Host:
    """A machine with one isolate; commands run on it as a user's do, each a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._env = {**os.environ, "XDG_STATE_HOME": str(folder / "state"), "PYTHONPATH": str(ROOT)}
        self._isolate: subprocess.Popen[str] | None = None
        self.options: list[str] = []

    def start(self, policy: Path) -> None:
        """Start the isolate, and wait until it serves."""
        with (self.folder / "run.log").open("w") as log:
            self._isolate = subprocess.Popen(
                self._command("enclave", "run", "--isolate", "process", "--policy", str(policy)),
                stdout=subprocess.PIPE, stderr=log, text=True, env=self._env,
            )  # fmt: skip
        assert self._isolate.stdout is not None
        ready, _, _ = select.select([self._isolate.stdout], [], [], 30)
        line = self._isolate.stdout.readline() if ready else ""
        assert line, (self.folder / "run.log").read_text()
        root = self.folder / "state" / "veracruz" / "dev-root" / "root.pem"
        self.options = ["--policy", str(policy), "--isolate", line.split()[-1], "--root", str(root), "--allow-debug"]

    def wait(self) -> int:
        """Return the exit code of `enclave run` when the isolate has ended by itself."""
        assert self._isolate is not None
        return self._isolate.wait(20)

    def stop(self) -> None:
        """End it, whatever happened."""
        if self._isolate is None:
            return
        if self._isolate.poll() is None:
            self._isolate.send_signal(signal.SIGTERM)
            self._isolate.wait(20)
        assert self._isolate.stdout is not None
        self._isolate.stdout.close()

    def veracruz(self, *words: object) -> Result:
        """Run a verb with --json."""
        done = subprocess.run(
            self._command(*(str(word) for word in words), "--json"),
            capture_output=True, text=True, env=self._env, cwd=self.folder, timeout=60,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        return Result(done.returncode, done.stdout, done.stderr)

    @staticmethod
    def _command(*words: str) -> list[str]:
        return [sys.executable, "-m", "host_shim.cli", *words]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.stop()


def test_alice_and_bob_compute_together_and_nobody_else_does(host: Host, parties: Parties) -> None:
    folder = host.folder
    members = parties.members()
    members["programs"][0] |= {
        "sha256": hashlib.sha256(WASM.read_bytes()).hexdigest(), "args": [], "env": {},
        "limits": {"memory_mib": 64, "wall_s": 20, "fuel": 1_000_000_000},
    }  # fmt: skip
    members["lifecycle"]["runs"] = {PROGRAM: 2}
    (folder / "policy.json").write_bytes(dump(members))
    tables.write_tables(folder)
    host.start(folder / "policy.json")

    def by(name: str) -> Callable[..., Result]:
        identity = getattr(parties, name).key_file.parent
        return lambda verb, *words: host.veracruz(verb, *words, *host.options, "--identity", identity)

    alice, bob, mallory = by("alice"), by("bob"), by("mallory")
    fetched = host.veracruz("attest", "fetch", *host.options)
    assert (fetched.code, json.loads(fetched.out)["verdict"]) == (0, "verified-debug")

    _refused(alice("send", "bob.csv", PROGRAM), "pin-mismatch")
    assert alice("send", WASM, PROGRAM).code == 0
    assert alice("send", "alice.csv", "/input/alice/").code == 0
    _refused(alice("send", "alice.csv", "/input/alice/"), "frozen")
    _refused(alice("run", PROGRAM, "--wait"), "join-incomplete")
    _refused(mallory("send", "bob.csv", "/input/bob/"), "certificate-refused")
    assert bob("send", "bob.csv", "/input/bob/").code == 0
    absent, forbidden = bob("get", "/input/no", "--out", "x"), bob("get", "/input/alice/alice.csv", "--out", "x")
    _refused(absent, "not-available")
    assert (forbidden.out, forbidden.err) == (absent.out, absent.err)
    assert not (folder / "x").exists()
    _refused(alice("run", PROGRAM, "--input", "/input/alice/alice.csv=" + "ab" * 32), "input-mismatch")

    seen_by_bob = json.loads(bob("run", PROGRAM, "--wait").out)
    assert set(seen_by_bob) == {"id", "state"}
    seen_by_alice = json.loads(alice("run", PROGRAM, "--wait").out)
    assert (seen_by_alice["state"], seen_by_alice["exit_code"]) == ("ended", 0)
    _refused(alice("run", PROGRAM), "runs-spent")
    for name, party in (("alice", alice), ("bob", bob)):
        assert party("get", "/output/model.json", "--out", f"{name}.json").code == 0
    model = json.loads((folder / "alice.json").read_text())
    assert model["schema"] == "recommender.model/1"
    assert (folder / "alice.json").read_bytes() == (folder / "bob.json").read_bytes()

    assert _agreed(alice("shutdown")) is False
    assert _agreed(bob("shutdown")) is True
    host.wait()
    assert alice("ls", "/output/").code == 5


def test_another_isolate_under_the_same_policy_and_another_policy_are_refused(host: Host, parties: Parties) -> None:
    policy, other = host.folder / "policy.json", host.folder / "other.json"
    policy.write_bytes(parties.policy())
    other.write_bytes(dump({**parties.members(), "clock": True}))
    identity = ["--identity", parties.alice.key_file.parent]
    host.start(policy)
    assert host.veracruz("ls", "/input/alice/", *host.options, *identity).code == 0
    swapped = [str(other) if option == str(policy) else option for option in host.options]
    _refused(host.veracruz("ls", "/input/alice/", *swapped, *identity), "policy-mismatch")
    without = [option for option in host.options if option != "--allow-debug"]
    measured = ["--unsafe-accept-policy-image"]
    _refused(host.veracruz("ls", "/input/alice/", *without, *measured, *identity), "debug-evidence")

    host.stop()
    host.start(policy)
    _refused(host.veracruz("ls", "/input/alice/", *host.options, *identity), "isolate-changed")
    assert host.veracruz("ls", "/input/alice/", *host.options, *identity, "--new-isolate").code == 0


def _refused(result: Result, slug: str) -> None:
    assert (result.code, result.slug) == (1, slug), result.err


def _agreed(result: Result) -> Any:
    return json.loads(result.out)["agreed"]


def test_every_slug_of_the_api_has_a_class_on_the_participants_side() -> None:
    kinds = ApiError.__subclasses__()
    slugs = {kind.slug for kind in (*kinds, *(leaf for kind in kinds for leaf in kind.__subclasses__()))}
    known = {kind.slug for kind in ApiRefusal.__subclasses__()}
    assert slugs == known
    for kind in kinds:
        assert type(parse_refusal(kind.status, kind.body())).slug == kind.slug
