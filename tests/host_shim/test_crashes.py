# SPDX-License-Identifier: MIT
"""kill -9 of whatever is ours, at each stage, with real processes: no orphan, no socket, the truth in the record."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from host_shim.children import ProcessId
from host_shim.record import Record
from host_shim.state import Isolates, Stage
from tests.waiting import eventually

from .test_supervisor import run, stage, temporary, wait_for_end

pytestmark = pytest.mark.faults

__all__ = ["temporary"]  # a fixture


def record_of(home: Path) -> Record | None:
    try:
        return Isolates(home).find("one")
    except Exception:  # not there yet
        return None


def pids_of(home: Path, found: list[ProcessId]) -> bool:
    record = record_of(home)
    found[:] = list(record.children) if record else []
    return len(found) == 2


@pytest.mark.parametrize("way", ["silent", "serves", "restarting"])
def test_the_supervisor_is_killed_while(way: str, tmp_path: Path, temporary: Path) -> None:
    """...it boots, serves, or waits to start another: `lost`, and the name is free for a new one."""
    ways = {"silent": "silent", "serves": "serves", "restarting": "dies"}
    children: list[ProcessId] = []
    with run(tmp_path, [ways[way]], restart="on-failure") as running:
        if way == "restarting":
            assert eventually(lambda: (found := record_of(tmp_path)) is not None and found.stage is Stage.RESTARTING)
        else:
            if way == "serves":
                running.endpoint()
            assert eventually(lambda: pids_of(tmp_path, children))
        running.process.kill()
        running.finish()
    wait_for_end(children)
    assert stage(tmp_path) == (Stage.LOST, "its supervisor was killed")
    assert list(temporary.iterdir()) == []
    with run(tmp_path) as again:
        again.endpoint()
        assert stage(tmp_path)[0] is Stage.SERVING
        again.process.send_signal(signal.SIGTERM)
        again.finish()


@pytest.mark.parametrize("signed", ["SIGKILL", "SIGTERM"])
def test_the_guest_is_killed(signed: str, tmp_path: Path, temporary: Path) -> None:
    number = signal.Signals[signed]
    with run(tmp_path) as running, socket.create_connection(running.endpoint(), timeout=20) as client:
        client.sendall(b"x" * 1000)
        assert client.recv(10)
        record = Isolates(tmp_path).find("one")
        assert record.roles == ("relay", "stub guest")
        record.children[1].signal(number)
        with contextlib.suppress(ConnectionResetError):  # a client in the middle of a transfer sees its end
            while client.recv(65536):
                pass
        code, said = running.finish()
    assert code == 5
    assert f"stub guest ended by {signed}" in said
    assert ("somebody on this machine killed it" in said) == (number is signal.SIGKILL)
    wait_for_end(list(record.children))
    assert list(temporary.iterdir()) == []


def test_a_helper_is_killed(tmp_path: Path, temporary: Path) -> None:
    with run(tmp_path, ["stubborn-after-helper"]) as running:
        record: list[ProcessId] = []

        def found() -> bool:
            one = record_of(tmp_path)
            record[:] = list(one.children) if one else []
            return len(record) == 3

        assert eventually(found)
        code, said = running.finish()
    assert code == 5
    assert "the helper ended with exit code 0, and the isolate with it" in said
    wait_for_end(record)
    assert list(temporary.iterdir()) == []


def test_a_death_is_followed_by_a_new_isolate(tmp_path: Path) -> None:
    with run(tmp_path, [f"dies-until:{tmp_path}/mark"], restart="on-failure:3") as running:
        running.endpoint()
        assert eventually(lambda: (tmp_path / "mark").exists())
        assert eventually(
            lambda: (one := record_of(tmp_path)) is not None and (one.stage, one.restarts) == (Stage.SERVING, 1)
        )
        record = Isolates(tmp_path).find("one")
        assert (record.restart, record.reason) == ("on-failure:3", None)
        running.process.send_signal(signal.SIGTERM)
        code, said = running.finish()
    assert code == 40 + signal.SIGTERM, said
    assert "a new isolate starts in 1 s (the 1st after a death): it has a new key" in said
    assert said.count("started stub guest") == 2


@pytest.mark.parametrize(
    ("way", "policy", "says"),
    [("agreed", "{}", None), ("serves", "malformed", "refuses the policy"), ("dies", "{}", "SIGKILL")],
)
def test_is_not_started_again(tmp_path: Path, way: str, policy: str, says: str | None) -> None:
    """...after a regular end, over a policy that would be refused again, or beyond the row's limit."""
    restart = "on-failure:1" if way == "dies" else "on-failure"
    with run(tmp_path, [way], policy=policy, restart=restart) as running:
        code, said = running.finish(within=30)
    assert code == (5 if says else 0)
    assert (says or "") in said
    assert said.count("started stub guest") == (2 if way == "dies" else 1)


def test_a_signal_to_every_process_at_once_is_no_death(tmp_path: Path, temporary: Path) -> None:
    with run(tmp_path, restart="on-failure") as running:  # as service managers do
        running.endpoint()
        children = running.children()
        for pid in (*(child.pid for child in children), running.pid):
            os.kill(pid, signal.SIGTERM)
        code, _ = running.finish()
    assert code == 40 + signal.SIGTERM
    assert stage(tmp_path) == (Stage.ENDED, "stopped by SIGTERM")
    wait_for_end(children)
    assert list(temporary.iterdir()) == []


def test_asked_to_end_while_it_waits_to_start_another(tmp_path: Path) -> None:
    with run(tmp_path, ["dies"], restart="on-failure") as running:
        assert eventually(lambda: (found := record_of(tmp_path)) is not None and found.stage is Stage.RESTARTING)
        running.process.send_signal(signal.SIGTERM)
        code, _ = running.finish()
    assert code == 40 + signal.SIGTERM
    assert stage(tmp_path)[0] is Stage.ENDED


@pytest.fixture
def orphan() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def test_a_child_that_escaped_is_ended_and_another_of_its_number_is_not(
    tmp_path: Path, orphan: subprocess.Popen[bytes]
) -> None:
    from dataclasses import replace

    from .test_state import a_record

    identity = ProcessId.of(orphan.pid)
    assert identity is not None
    isolates = Isolates(tmp_path)
    for child, dies in ((ProcessId(identity.pid, identity.start + 1), False), (identity, True)):
        with isolates.claim("one") as claim:
            record = replace(a_record(claim), supervisor=ProcessId(os.getpid(), 1), children=(child,))
            claim.write(record)
        assert isolates.find("one").stage is Stage.LOST
        if dies:
            assert eventually(lambda: orphan.poll() is not None)
        else:
            assert orphan.poll() is None
