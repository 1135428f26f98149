# SPDX-License-Identifier: MIT
"""Isolates that boot for real: a new one after a death, QEMU's own machine, what kill -9 leaves while one serves."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from host_shim.children import ProcessId
from host_shim.errors import NoNitroMachine
from host_shim.qemu_nitro import VARIABLE, find_qemu_nitro
from tests.waiting import eventually

from .machines import BOOT_LIMIT, World

pytestmark = [pytest.mark.boot, pytest.mark.timeout(900)]


@pytest.fixture
def own(tmp_path: Path) -> World:
    return World(tmp_path)


def describe(world: World, name: str) -> Any:
    return world.run("enclave", "describe", name, "--json").json


def process(told: Any, role: str) -> ProcessId:
    (pid,) = (one["pid"] for one in told["processes"] if one["role"] == role)
    found = ProcessId.of(pid)
    assert found is not None
    return found


def fetch_key(world: World, endpoint: str, policy: Path, measurements: Path) -> str:
    words = ("--policy", policy, "--measurements", measurements, "--root", world.root)
    key: str = world.run("attest", "fetch", "--isolate", endpoint, *words, "--json").json["public_key"]
    return key


def test_a_new_isolate_after_a_death_has_a_new_key(own: World, image: Path) -> None:
    measurements = image.with_suffix(".json")
    policy = own.policy("restarts", measurements)
    with own.enclave(image, policy, "--restart", "on-failure:2", "--accel", "tcg") as enclave:
        before = fetch_key(own, enclave.endpoint, policy, measurements)
        process(describe(own, enclave.name), "QEMU").signal(signal.SIGKILL)
        assert eventually(
            lambda: (told := describe(own, enclave.name))["stage"] == "serving" and told["restarts"] == 1, BOOT_LIMIT
        )
        told = describe(own, enclave.name)
        assert told["endpoint"] == enclave.endpoint
        assert fetch_key(own, enclave.endpoint, policy, measurements) != before
    assert own.processes() == []


@pytest.mark.parametrize("victim", ["supervisor", "vsock backend", "QEMU"])
def test_kill_9_while_it_serves_leaves_nothing(own: World, image: Path, victim: str) -> None:
    sockets = Path(f"/tmp/vi-{os.getpid()}")
    sockets.mkdir(mode=0o700)
    own.environment["TMPDIR"] = str(sockets)
    policy = own.policy("killed", image.with_suffix(".json"))
    words = ("enclave", "run", image, "--policy", policy, "--detach", "--json", "--accel", "tcg", "--name", "one")
    try:
        own.run(*words)
        process(describe(own, "one"), victim).signal(signal.SIGKILL)
        assert eventually(lambda: own.processes() == [])
        told = describe(own, "one")
        assert told["stage"] == ("lost" if victim == "supervisor" else "failed")
        if victim == "QEMU":
            assert "killed it (SIGKILL)" in told["reason"]
        assert list(sockets.iterdir()) == []
        if victim == "supervisor":
            assert own.run(*words).json["stage"] == "serving"
        own.run("enclave", "stop", "one")
    finally:
        shutil.rmtree(sockets)


def test_qemus_own_machine_serves_and_its_evidence_is_refused(own: World, image: Path) -> None:
    try:
        find_qemu_nitro()
    except NoNitroMachine as error:
        if os.environ.get("VERACRUZ_DEMAND_QEMU_NITRO") or os.environ.get(VARIABLE):
            raise
        pytest.skip(str(error))
    measurements = image.with_suffix(".json")
    policy = own.policy("nitro", measurements)
    role = ("--role", "arn:aws:iam::123456789012:role/parent", "--instance-id", "i-0123456789abcdef0")
    with own.enclave(image, policy, "--isolate", "qemu-nitro", *role) as enclave:
        told = describe(own, enclave.name)
        assert (told["isolate"], told["evidence"], told["root"]) == ("qemu-nitro", "unsigned", None)
        assert [one["role"] for one in told["processes"]] == ["supervisor", "relay", "QEMU", "vsock backend"]
        done = own.run(
            "attest",
            "fetch",
            "--isolate",
            enclave.endpoint,
            "--policy",
            policy,
            "--measurements",
            measurements,
            expect=1,
        )
        assert "the document is not signed" in done.err
    assert own.processes() == []
