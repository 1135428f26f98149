# SPDX-License-Identifier: MIT
"""The registry of isolates: names, locks, and what a dead supervisor leaves."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from attestation.errors import UsageError
from host_shim.children import ProcessId
from host_shim.console_log import MAX_LOG, ConsoleLog, printable_bytes, read_console, tail
from host_shim.errors import NameTaken, NoSuchIsolate, UnsafeState
from host_shim.state import Claim, Isolates, Record, Stage, make_private, make_sockets, remove_sockets, state_home

HOLD = """
import sys, time
from pathlib import Path
from host_shim.state import Isolates
from tests.host_shim.test_state import a_record
with Isolates(Path(sys.argv[1])).claim("one") as claim:
    claim.write(a_record(claim, sockets=sys.argv[2], child=int(sys.argv[3])))
    print("held", flush=True)
    time.sleep(600)
"""


def a_record(claim: Claim, *, sockets: str | None = None, child: int | None = None) -> Record:
    return Record(
        name=claim.name,
        stage=Stage.SERVING,
        isolate="stub",
        endpoint="127.0.0.1:1",
        image=None,
        policy="00" * 32,
        measurements={},
        root="/root.pem",
        started="2026-11-22T12:00:00+00:00",
        supervisor=ProcessId.of(os.getpid()),
        children=tuple(filter(None, [ProcessId.of(child)])) if child else (),
        sockets=sockets,
    )


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    isolates = Isolates(tmp_path)
    with isolates.claim("one") as claim:
        record = a_record(claim, sockets="/tmp/veracruz-x", child=os.getpid())
        claim.write(record)
        assert isolates.find("one") == record
        assert isolates.all() == [record]
        assert stat.S_IMODE((claim.directory / "state.json").stat().st_mode) == 0o600
        assert stat.S_IMODE(claim.directory.stat().st_mode) == 0o700


def test_a_name_is_held_by_one(tmp_path: Path) -> None:
    isolates = Isolates(tmp_path)
    with isolates.claim("one"), pytest.raises(NameTaken), isolates.claim("one"):
        pass
    with isolates.claim("one"):
        pass


def test_names_are_found_for_who_gives_none(tmp_path: Path) -> None:
    isolates = Isolates(tmp_path)
    with isolates.claim(None) as first, isolates.claim(None) as second:
        assert (first.name, second.name) == ("isolate", "isolate-2")
    with isolates.claim(None) as third:
        assert third.name == "isolate"


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "-x", "a" * 64, "a\n", "ä"])
def test_refuses_names_of_another_form(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError), Isolates(tmp_path).claim(name):
        pass


def test_knows_nothing_of_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(NoSuchIsolate):
        Isolates(tmp_path).find("one")
    assert Isolates(tmp_path).all() == []


def test_a_damaged_record_is_an_error_with_a_hint(tmp_path: Path) -> None:
    isolates = Isolates(tmp_path)
    with isolates.claim("one") as claim:
        (claim.directory / "state.json").write_text('{"name": "one"}')
    with pytest.raises(UnsafeState, match="damaged"):
        isolates.find("one")
    assert isolates.all() == []
    with isolates.claim("one") as claim:  # and does not block the name
        claim.write(a_record(claim))


def test_what_is_no_regular_file_is_damaged_and_waited_for_by_nobody(tmp_path: Path) -> None:
    isolates = Isolates(tmp_path)
    for name in ("pipe", "link"):
        make_private(isolates.directory(name))
    os.mkfifo(isolates.directory("pipe") / "state.json")
    (isolates.directory("link") / "state.json").symlink_to("/etc/passwd")
    told = {one.name: one.problem for one in isolates.damaged()}
    assert "it is no regular file" in told["pipe"]
    assert "symbolic links" in told["link"]
    assert isolates.discard("pipe").name == "state.json.damaged"


@pytest.mark.parametrize("loose", ["enclaves", "enclaves/one"])
def test_a_record_that_others_could_have_written_is_not_believed(tmp_path: Path, loose: str) -> None:
    isolates = Isolates(tmp_path)
    with isolates.claim("one") as claim:
        claim.write(a_record(claim))
    (tmp_path / loose).chmod(0o777)
    with pytest.raises(UnsafeState, match="not this user's own directory") as caught:
        isolates.find("one")
    assert caught.value.hint == f"look at what is in it, then: chmod 700 {tmp_path / loose}"
    assert [one.cure for one in isolates.damaged()] == [caught.value.hint]


def test_a_lock_that_others_could_have_written_names_nobody_to_end(tmp_path: Path) -> None:
    isolates = Isolates(tmp_path)
    with isolates.claim("one"):
        assert isolates.owner("one") == ProcessId.of(os.getpid())
        isolates.directory("one").chmod(0o777)
        assert isolates.owner("one") is None


def test_nothing_of_the_isolate_before_is_taken_for_this_ones(tmp_path: Path) -> None:
    isolates = Isolates(tmp_path)
    with isolates.claim("one") as claim:
        for path in (claim.console, claim.log, claim.counters, claim.module):
            path.touch()
    with isolates.claim("one") as claim:
        assert [path.name for path in claim.directory.iterdir()] == ["lock"]


def test_sockets_outlive_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    sockets = make_sockets()
    remove_sockets(sockets)
    assert sockets.parent != tmp_path


def test_what_a_killed_supervisor_left_is_cleaned_up(tmp_path: Path) -> None:
    sockets = make_sockets()
    (sockets / "v_9000").touch()
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), str(sockets), str(orphan.pid)],
        stdout=subprocess.PIPE, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        isolates = Isolates(tmp_path)
        assert isolates.find("one").stage is Stage.SERVING
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
        found = isolates.find("one")
        assert (found.stage, found.reason, found.children) == (Stage.LOST, "its supervisor was killed", ())
        assert not sockets.exists()
        assert orphan.wait(10) == -signal.SIGKILL
    finally:
        for process in (orphan, holder):
            process.kill()
            process.wait()
        assert holder.stdout is not None
        holder.stdout.close()


def test_a_process_is_not_taken_for_another_with_its_number() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        identity = ProcessId.of(process.pid)
        assert identity is not None
        assert identity.alive
        other = replace(identity, start=identity.start - 1)
        assert not other.alive
        assert not other.signal(signal.SIGKILL)
        assert identity.signal(signal.SIGKILL)
        process.wait(10)
    assert not identity.alive
    assert not identity.signal(signal.SIGKILL)


def test_children_die_with_their_parent() -> None:
    script = (
        "import os, sys, time; from host_shim.children import Child;"
        "c = Child(['sleep', '600'], name='sleep'); print(c.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as parent:
        assert parent.stdout is not None
        child = ProcessId.of(int(parent.stdout.readline()))
        assert child is not None
        parent.kill()
        parent.wait(10)
        deadline = time.monotonic() + 10
        while child.alive and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not child.alive


def test_sockets_have_a_short_private_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    sockets = make_sockets()
    assert len(f"{sockets}/v_65535") <= 107
    assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    remove_sockets(sockets)
    assert not sockets.exists()
    remove_sockets(tmp_path)  # no directory of ours
    assert tmp_path.exists()


def test_state_home_follows_the_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert state_home() == Path("/somewhere/veracruz")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/alice")
    assert state_home() == Path("/home/alice/.local/state/veracruz")


def test_refuses_a_state_directory_that_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(UnsafeState):
        make_private(tmp_path / "link")


def test_a_guest_cannot_fill_the_disk_with_its_console(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    log = ConsoleLog(path)
    for index in range(200):
        log.write(b"%06d " % index + b"x" * 65536)
    log.close()
    sizes = [file.stat().st_size for file in tmp_path.iterdir()]
    assert len(sizes) == 2
    assert max(sizes) <= MAX_LOG
    kept = b"".join(read_console(path, follow=False))
    assert kept.count(b"000199 ") == 1
    assert b"000000 " not in kept


def test_console_cannot_steer_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"fine\r\n\x1b[31mred\x9b\xff\n")
    assert printable_bytes(path.read_bytes()) == "fine\n\\x1b[31mred\\x9b\\xff\n"
    assert tail(path) == ["fine", "\\x1b[31mred\\\\x9b\\\\xff"]
