# SPDX-License-Identifier: MIT
"""`veracruz enclave list`, `describe` and `stop` as people meet them, also over damaged and abandoned state."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host_shim.children import ProcessId
from host_shim.errors import NameTaken
from host_shim.list_cli import span, uptime
from host_shim.record import Outside, Record, Stage
from host_shim.state import Isolates
from tests.waiting import eventually

from .test_enclave_cli import PROCESS, Host, host
from .test_state import a_record

pytestmark = pytest.mark.faults

__all__ = ["host"]  # a fixture


def lost(host: Host, name: str) -> None:
    """Leave what a supervisor leaves that is killed."""
    pid = host.json(*PROCESS, str(host.policy), "--detach", "--name", name)["pid"]
    supervisor = ProcessId.of(pid)
    assert supervisor is not None
    supervisor.signal(signal.SIGKILL)
    assert eventually(lambda: not supervisor.alive)  # a process does not end with the call that kills it


def test_describe_tells_all_that_is_known(host: Host) -> None:
    told = host.json(*PROCESS, str(host.policy), "--detach", "--name", "one", "--restart", "on-failure:2")
    known = host.json("describe", "one")
    assert known["stage"] == "serving"
    assert (known["endpoint"], known["policy"], known["Measurements"]) == (
        told["endpoint"], told["policy"], told["Measurements"]
    )  # fmt: skip
    assert [one["role"] for one in known["processes"]] == ["supervisor", "relay", "runtime"]
    assert all(one["alive"] for one in known["processes"])
    assert known["restart"] == "on-failure:2"
    none = {"open": 0, "accepted": 0, "refused": 0, "bytes_in": 0, "bytes_out": 0}
    assert eventually(lambda: host.json("describe", "one")["traffic"] == none)  # published once a second
    assert known["debug_mode"] is True
    assert 0 <= known["uptime_s"] < 120
    assert Path(known["console"]).is_file()
    assert Path(known["log"]).is_file()
    code, out, _ = host.run("describe", "one")
    assert code == 0
    assert f"endpoint    {told['endpoint']}" in out
    assert f"{told['pid']} supervisor" in out
    assert "PCR0        00000000" in out
    host.run("stop", "one")
    known = host.json("describe", "one")
    assert (known["stage"], known["processes"], known["uptime_s"]) == ("ended", [], None)
    assert known["ended"]


def test_list_is_short_and_says_why(host: Host) -> None:
    told = host.json(*PROCESS, str(host.policy), "--detach", "--name", "one")
    code, out, err = host.run("list")
    assert (code, err) == (0, "")
    heading, row = out.splitlines()
    assert heading.split() == ["NAME", "STAGE", "ISOLATE", "ACCEL", "ENDPOINT", "UP", "POLICY", "NOTE"]
    assert told["policy"][:12] in row
    assert " s " in row


def test_after_kill_9_it_is_lost_until_it_is_cleared(host: Host) -> None:
    lost(host, "one")
    assert [(one["name"], one["stage"]) for one in host.isolates()] == [("one", "lost")]
    assert "its supervisor was killed" in host.run("list")[1]
    assert host.json("describe", "one")["reason"] == "its supervisor was killed"
    code, out, _ = host.run("stop", "one")
    assert (code, out) == (0, "one ended: its supervisor was killed\n")
    assert host.isolates() == []
    assert "protects nothing" in host.run("console", "one")[1]


def test_run_takes_the_name_of_a_lost_one(host: Host) -> None:
    lost(host, "one")
    told = host.json(*PROCESS, str(host.policy), "--detach", "--name", "one")
    assert told["stage"] == "serving"
    assert [one["stage"] for one in host.isolates()] == ["serving"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "Expecting value"), (b"{", "Expecting property"), (b"[]", "no JSON object"), (b"{}", "KeyError"),
        (b"\xff\xfe\x00", "decode"), (b"[" * 60_000, "recursion"), (b" " * 70_000, "more than 65536 bytes"),
        (b'{"name": 7}', "name is of another kind"), (b'{"surprise": 1}', "unknown key surprise"),
    ],
)  # fmt: skip
def test_a_damaged_state_is_shown_with_its_problem_and_cure(host: Host, content: bytes, problem: str) -> None:
    directory = Isolates().directory("one")
    directory.mkdir(parents=True)
    (directory / "state.json").write_bytes(content)
    listed = host.json("list")
    assert listed["isolates"] == []
    (damaged,) = listed["damaged"]
    assert damaged["name"] == "one"
    assert problem in damaged["problem"]
    assert damaged["cure"] == "veracruz enclave stop one"
    code, out, err = host.run("list")
    assert (code, "damaged" in out) == (0, True)
    assert "to mend it: veracruz enclave stop one" in err
    code, _, err = host.run("describe", "one")
    assert code == 3
    assert "hint: veracruz enclave stop one" in err
    assert host.run("console", "one")[0] == 0
    code, out, _ = host.run("stop", "one")
    assert code == 0
    assert "is kept as" in out
    assert host.json("list", "--all")["damaged"] == []
    assert (directory / "state.json.damaged").read_bytes() == content


def test_a_live_isolate_whose_state_was_damaged_is_ended_all_the_same(host: Host) -> None:
    told = host.json(*PROCESS, str(host.policy), "--detach", "--name", "one")
    (Isolates().directory("one") / "state.json").write_bytes(b"junk")
    (damaged,) = host.json("list")["damaged"]
    assert damaged["pid"] == told["pid"]
    code, out, _ = host.run("stop", "--all")
    assert (code, out) == (0, "one ended: stopped by SIGTERM\n")
    assert host.json("list", "--all")["isolates"][0]["stage"] == "ended"


def test_a_name_that_runs_on_is_not_taken_away_by_who_looks(tmp_path: Path) -> None:
    isolates = Isolates(tmp_path)
    with isolates.claim("one") as claim:
        claim.write(a_record(claim))
        assert isolates.owner("one") == ProcessId.of(os.getpid())
        with pytest.raises(NameTaken):
            isolates.discard("one")
    assert isolates.owner("one") is None


def test_an_enclave_of_others_is_never_killed_in_the_clean_up(tmp_path: Path) -> None:
    isolates = Isolates(tmp_path)
    with isolates.claim("one") as claim:
        gone = ProcessId(os.getpid(), 1)
        claim.write(replace(a_record(claim), supervisor=gone, outside=Outside("/usr/bin/nitro-cli", "veracruz-x", 16)))
    found = isolates.find("one")
    assert found.stage is Stage.LOST
    assert found.outside == Outside("/usr/bin/nitro-cli", "veracruz-x", 16)
    with pytest.raises(NameTaken, match="runs on without its supervisor"), isolates.claim("one"):
        pass


def test_durations_read_as_people_say_them() -> None:
    told = [span(seconds) for seconds in (0, 59.9, 60, 3599, 3600, 7500, 86399, 86400, 1e6)]
    assert told == ["0 s", "59 s", "1 min", "59 min", "1 h 0 min", "2 h 5 min", "23 h 59 min", "1 d 0 h", "11 d 13 h"]


def test_uptime_is_that_of_the_service(tmp_path: Path) -> None:
    at = datetime(2026, 11, 22, 12, tzinfo=UTC)
    with Isolates(tmp_path).claim("one") as claim:
        record = replace(a_record(claim), started="2026-11-22T10:00:00+00:00", served="2026-11-22T11:00:00+00:00")
    assert uptime(record, at) == 3600
    assert uptime(replace(record, served=None), at) == 7200
    assert uptime(replace(record, stage=Stage.ENDED), at) is None
    assert uptime(record, at - timedelta(days=1)) == 0  # a clock that was set back
    assert uptime(replace(record, served="yesterday"), at) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(key=st.sampled_from(sorted(Record.__dataclass_fields__)), value=JSON)
def test_a_record_is_read_back_whole_or_refused(key: str, value: Any) -> None:
    good = Record(
        "one", Stage.LOST, "nitro", "127.0.0.1:1", None, None, {"PCR0": "00"}, None, "2026-11-22T12:00:00+00:00",
        supervisor=ProcessId(1, 2), children=(ProcessId(3, 4),), roles=("relay",), outside=Outside("/n", "x", 16),
    )  # fmt: skip
    raw = good.dump()
    assert Record.load(raw) == good
    try:
        changed = Record.load(json.dumps({**json.loads(raw), key: value}).encode())
    except (ValueError, TypeError, KeyError, AttributeError):
        return
    assert Record.load(changed.dump()) == changed
