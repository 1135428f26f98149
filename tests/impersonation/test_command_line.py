# SPDX-License-Identifier: MIT
"""The same attacks on `veracruz send` as a user runs it: exit code, slug on stdout, a word on stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from attestation import channel
from host_shim.dev_pki import make_root
from tests.attestation.documents import OTHER_IMAGE
from tests.enclave_image.runtime.household import REPOSITORY, Isolate

from .cast import PATH, SECRET, Cast, ForgingHost, image_member, where
from .impostor import Impostor
from .relay import Deed, Fault, Relay, Way

pytestmark = pytest.mark.faults

StartImpostor = Callable[..., Impostor]
StartRelay = Callable[..., Relay]


@dataclass(frozen=True)
class Result:
    """What a command came to."""

    code: int
    answer: dict[str, Any]
    said: str

    @property
    def slug(self) -> str:
        return str(self.answer["error"]["slug"])


@dataclass(frozen=True)
class Desk:
    """Alice's machine: her files, her state, and the command."""

    cast: Cast
    folder: Path

    def send(
        self, relay: Relay, *more: str, policy: bytes | None = None, by: str = "alice", trusting: bool = True
    ) -> Result:
        """Run `veracruz send`, with Alice's root and measurements unless not `trusting`."""
        (self.folder / "policy.json").write_bytes(policy or self.cast.policy())
        trust = ["--root", str(self.cast.folder / "root.pem")]
        trust += ["--measurements", str(self.cast.folder / "measurements.json")]
        words = [
            "send", str(self.cast.folder / "ledger.csv"), PATH, "--policy", str(self.folder / "policy.json"),
            "--identity", str(self.cast.folder / by), "--isolate", str(relay.endpoint), "--json",
        ]  # fmt: skip
        keys = self.folder / "keys.log"
        done = subprocess.run(
            [sys.executable, "-m", "host_shim.cli", *words, *(trust if trusting else []), *more],
            capture_output=True, text=True, timeout=60, cwd=self.folder, stdin=subprocess.DEVNULL,
            env={
                **os.environ, "XDG_STATE_HOME": str(self.folder / "state"), "PYTHONPATH": str(REPOSITORY),
                "SSLKEYLOGFILE": str(keys),
            },
        )  # fmt: skip
        assert not keys.exists()  # no environment makes the client write its secrets down
        assert "Traceback" not in done.stderr
        relay.settle()
        return Result(done.returncode, json.loads(done.stdout), done.stderr)

    @property
    def pins(self) -> list[Path]:
        return list((self.folder / "state").rglob("*.json"))


@pytest.fixture
def desk(cast: Cast, tmp_path: Path) -> Desk:
    folder = tmp_path / "desk"
    folder.mkdir()
    return Desk(cast, folder)


def test_pins_the_isolate_and_says_aloud_that_another_takes_its_place(
    cast: Cast, desk: Desk, genuine: Isolate, clone: Isolate, relay: StartRelay
) -> None:
    sent = desk.send(relay(genuine))
    assert (sent.code, sent.answer["size"]) == (0, len(SECRET))
    assert "is not AWS's root" in sent.said
    (pin,) = desk.pins
    before = pin.read_bytes()

    wire = relay(clone)
    changed = desk.send(wire)
    assert (changed.code, changed.slug) == (1, "isolate-changed")
    cast.assert_anonymous(wire.tapes[0])
    assert len(wire.tapes) == 1
    assert pin.read_bytes() == before

    anew = desk.send(relay(clone), "--new-isolate")
    assert anew.code == 0
    assert "is forgotten" in anew.said
    assert pin.read_bytes() != before


def test_refuses_a_host_with_evidence_of_its_own(
    cast: Cast, desk: Desk, impostor: StartImpostor, relay: StartRelay
) -> None:
    host = ForgingHost(make_root(datetime.now(UTC)), bound=cast.policy())
    server = impostor(lambda nonce, spki: host.session(cast.policy(), nonce=nonce, public_key=spki))
    wire = relay(server)
    _refused(desk, desk.send(wire), "untrusted-chain")
    cast.assert_anonymous(wire.tapes[0])
    cast.assert_learned_nothing(server, handshakes=1)


def test_refuses_a_host_with_its_own_key_beside_a_genuine_document(
    cast: Cast, desk: Desk, genuine: Isolate, impostor: StartImpostor, relay: StartRelay
) -> None:
    server = impostor(lambda nonce, _: channel.fetch_evidence(where(genuine), nonce).document)
    wire = relay(server)
    _refused(desk, desk.send(wire, "--new-isolate"), "key-mismatch")
    cast.assert_anonymous(wire.tapes[0])
    cast.assert_learned_nothing(server, handshakes=1)


def test_refuses_a_server_that_takes_the_isolates_place_after_the_evidence(
    cast: Cast, desk: Desk, genuine: Isolate, impostor: StartImpostor, relay: StartRelay
) -> None:
    server = impostor(lambda *_: b"")
    wire = relay(genuine, server)
    _refused(desk, desk.send(wire), "key-mismatch")
    cast.assert_stopped_in_handshake(wire.tapes[1])
    cast.assert_learned_nothing(server, handshakes=0)


def test_a_root_that_the_policy_alone_names_is_no_root(cast: Cast, desk: Desk, relay: StartRelay) -> None:
    """The isolate is genuine under that root, the policy names it, and nobody said --root."""
    policy = cast.policy(root=cast.root.fingerprint.hex())
    with cast.isolate(policy) as named:
        wire = relay(named)
        measurements = ["--measurements", str(cast.folder / "measurements.json")]
        _refused(desk, desk.send(wire, *measurements, policy=policy, trusting=False), "untrusted-chain")
        cast.assert_anonymous(wire.tapes[0])


def test_an_image_that_the_policy_alone_names_is_no_image(
    cast: Cast, desk: Desk, impostor: StartImpostor, relay: StartRelay
) -> None:
    """Without measurements of one's own nobody is even called; with them another image is refused."""
    policy = cast.policy(images=[image_member(OTHER_IMAGE)])
    host = ForgingHost(cast.authority, image=OTHER_IMAGE, bound=policy)
    server = impostor(lambda nonce, spki: host.session(policy, nonce=nonce, public_key=spki))
    silent, wire = relay(server), relay(server)
    stopped = desk.send(silent, "--root", str(cast.folder / "root.pem"), policy=policy, trusting=False)
    assert (stopped.code, stopped.slug) == (2, "usage")
    assert "--measurements" in stopped.said
    assert silent.tapes == []
    _refused(desk, desk.send(wire, policy=policy), "measurement-mismatch")
    cast.assert_anonymous(wire.tapes[0])
    cast.assert_learned_nothing(server, handshakes=1)


def test_refuses_debug_evidence(cast: Cast, desk: Desk, impostor: StartImpostor, relay: StartRelay) -> None:
    host = ForgingHost(cast.authority, image=None, bound=cast.policy())
    server = impostor(lambda nonce, spki: host.session(cast.policy(), nonce=nonce, public_key=spki))
    _refused(desk, desk.send(relay(server)), "debug-evidence")
    cast.assert_learned_nothing(server, handshakes=1)


def test_a_person_who_is_not_in_the_policy_is_told_so(desk: Desk, genuine: Isolate, relay: StartRelay) -> None:
    refused = desk.send(relay(genuine), by="mallory")
    _refused(desk, refused, "certificate-refused")
    assert "the policy does not name" in refused.said


def test_a_connection_that_the_host_cuts_is_no_traceback(desk: Desk, genuine: Isolate, relay: StartRelay) -> None:
    wire = relay(genuine, faults=(Fault(Deed.CUT, Way.TO_SERVER, 7, connection=1),))
    cut = desk.send(wire)
    assert (cut.code, cut.slug) == (5, "unreachable")


def _refused(desk: Desk, result: Result, slug: str) -> None:
    assert (result.code, result.slug) == (1, slug), result.said
    assert "error:" in result.said
    assert desk.pins == []
