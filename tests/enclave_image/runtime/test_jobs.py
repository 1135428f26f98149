# SPDX-License-Identifier: MIT
"""Programs in their workers, through the API: what they may read and write, where they end, what is told of them."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from tests.waiting import eventually

from . import guests
from .household import Isolate, Party, isolate, make_policy, participant, program, text

READ_WRITE = {"/input/": ["read"], "/output/": ["write"]}
OUT = {"/output/": ["write"]}
SMALL = {"memory_mib": 2, "wall_s": 2, "fuel": 10_000_000}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the size of a job's tree is limited by a mount")

PROGRAMS: dict[str, tuple[bytes, dict[str, list[str]], dict[str, Any]]] = {
    "copy": (guests.copy("table", "result"), READ_WRITE, {}),
    "nested": (guests.copy("table", "deep"), {"/input/": ["read"], "/output/deep": ["write"]}, {}),
    "read-absent": (guests.copy("absent", "result"), READ_WRITE, {}),
    "read-unreadable": (guests.copy("table", "result"), {"/input/other": ["read"], "/output/": ["write"]}, {}),
    "write-to-input": (guests.write("planted", "x", directory=3), READ_WRITE, {}),
    "write-beside": (guests.write("beside", "x"), {"/output/result": ["write"]}, {}),
    "escape": (guests.copy("../../streams/stdout", "result"), READ_WRITE, {}),
    "no-directory": (guests.write("x", "x"), {}, {}),
    "three": (guests.write("partial", "x", exit_code=3), OUT, {}),
    "loop": (guests.loop(), OUT, {"limits": SMALL | {"fuel": 2**60, "wall_s": 1}}),
    "fuel": (guests.loop(), OUT, {"limits": SMALL}),
    "sleep": (guests.sleep(60), OUT, {"limits": SMALL | {"wall_s": 1}}),
    "grow": (guests.grow(64), OUT, {"limits": SMALL}),
    "grow-enough": (guests.grow(16), OUT, {"limits": SMALL}),
    "flood-stdout": (guests.flood("1"), OUT, {"limits": SMALL | {"fuel": 10**9}}),
    "flood-file": (guests.flood("file"), OUT, {"limits": SMALL | {"fuel": 10**9}}),
    "link": (guests.link("/etc/passwd", "result"), OUT, {}),
    "link-inside": (guests.link("nowhere", "result"), OUT, {}),
    "clocks": (guests.clocks("now"), OUT, {}),
    "sleep-until": (guests.sleep(0, until=True), OUT, {}),
    "trap": (guests.guest("unreachable"), OUT, {}),
    "append": (guests.write("log", "more"), {"/output/log": ["append"]}, {}),
    "unlink": (guests.unlink("kept"), {"/output/": ["read", "write"]}, {}),
    "unlink-allowed": (guests.unlink("kept"), {"/output/": ["read", "delete"]}, {}),
    "pinned": (guests.write("pinned", "x"), OUT, {}),
    "frozen": (guests.write("frozen", "x"), OUT, {}),
    "no-start": (b"\0asm\1\0\0\0", OUT, {}),
    "no-module": (b"(module)", OUT, {}),
    "broken": (b"\0asm\1\0\0\0garbage", OUT, {}),
    "other-import": (
        b"\0asm\1\0\0\0\1\4\1\x60\0\0\2\x07\1\1e\1f\0\0", OUT, {},
    ),
}  # fmt: skip
NOT_THERE = ["read-absent", "read-unreadable", "write-to-input", "escape", "no-directory", "link", "link-inside"]
TABLE = b"a table of secrets"


def path_of(name: str) -> str:
    return f"/program/{name}.wasm"


@pytest.fixture(scope="module")
def house(alice: Party, bob: Party) -> Iterator[Isolate]:
    policy = make_policy(
        participants=[
            participant(alice, {"/": ["read", "write", "list", "execute", "observe", "delete"]}),
            participant(bob, {"/program/": ["execute"], "/output/": ["read"]}),
        ],
        programs=[program(path_of(name), code, rights, **more) for name, (code, rights, more) in PROGRAMS.items()],
        join=["alice"],
        pins={"/output/pinned": "0" * 64},
        once=["/output/frozen"],
        limits={"storage_mib": 4, "file_mib": 1},
    )
    with isolate(policy) as ran:
        with ran.connect(alice) as client:
            for name, (code, _, _) in PROGRAMS.items():
                assert client.put(path_of(name), code).status == 201
            client.put("/input/table", TABLE)
        yield ran


@pytest.fixture
def run(house: Isolate, alice: Party) -> Callable[[str], dict[str, Any]]:
    def run(name: str) -> dict[str, Any]:
        with house.connect(alice) as client:
            return client.run(path_of(name))

    return run


def result(house: Isolate, alice: Party, path: str) -> bytes | None:
    with house.connect(alice) as client:
        answer = client.get(path)
        return answer.body if answer.status == 200 else None


Run = Callable[[str], dict[str, Any]]


def test_a_program_reads_writes_and_speaks(house: Isolate, alice: Party, run: Run) -> None:
    ended = run("copy")
    assert (ended["exit_code"], ended["trap"], text(ended["stdout"]), ended["stderr"]) == (0, None, "copied", "")
    assert result(house, alice, "/output/result") == TABLE
    assert ended["usage"]["fuel"] > 0
    assert ended["usage"]["memory_bytes"] > 1 << 16
    assert run("copy")["usage"]["fuel"] == ended["usage"]["fuel"]


def test_a_right_to_one_file_lets_it_be_made(house: Isolate, alice: Party, run: Run) -> None:
    assert run("nested")["exit_code"] == 0
    assert result(house, alice, "/output/deep") == TABLE


@pytest.mark.parametrize("name", NOT_THERE)
def test_what_its_rights_do_not_name_is_not_there(house: Isolate, alice: Party, run: Run, name: str) -> None:
    ended = run(name)
    assert ended["exit_code"] not in (0, None)
    assert result(house, alice, "/input/planted") is None


@pytest.mark.parametrize("name", ["write-beside", "unlink", "pinned"])
def test_one_result_that_is_not_allowed_refuses_all(house: Isolate, alice: Party, run: Run, name: str) -> None:
    with house.connect(alice) as client:
        client.put("/output/kept", b"kept")
    ended = run(name)
    assert (ended["exit_code"], ended["trap"]) == (None, "outputs-refused")
    assert result(house, alice, "/output/beside") is None
    assert result(house, alice, "/output/pinned") is None
    assert result(house, alice, "/output/kept") == b"kept"


def test_a_frozen_path_stays(house: Isolate, alice: Party, run: Run) -> None:
    with house.connect(alice) as client:
        client.put("/output/frozen", b"first")
    assert run("frozen")["trap"] == "outputs-refused"
    assert result(house, alice, "/output/frozen") == b"first"


def test_a_program_may_delete_where_it_has_the_right(house: Isolate, alice: Party, run: Run) -> None:
    with house.connect(alice) as client:
        client.put("/output/kept", b"kept")
    assert run("unlink-allowed")["exit_code"] == 0
    assert result(house, alice, "/output/kept") is None


def test_what_an_appending_program_writes_is_added(house: Isolate, alice: Party, run: Run) -> None:
    with house.connect(alice) as client:
        client.put("/output/log", b"some ")
    assert run("append")["exit_code"] == 0
    assert result(house, alice, "/output/log") == b"some more"


def test_a_program_that_fails_leaves_nothing(house: Isolate, alice: Party, run: Run) -> None:
    assert run("three")["exit_code"] == 3
    assert result(house, alice, "/output/partial") is None


@pytest.mark.parametrize(
    ("name", "trap"),
    [
        ("loop", "wall-time"), ("sleep", "wall-time"), ("fuel", "out-of-fuel"), ("trap", "unreachable"),
        ("no-start", "link"), ("other-import", "link"), ("no-module", "invalid-module"), ("broken", "invalid-module"),
    ],
)  # fmt: skip
def test_a_program_that_does_not_end_well_is_told_from_others(run: Run, name: str, trap: str) -> None:
    started = time.monotonic()
    ended = run(name)
    assert (ended["exit_code"], ended["trap"]) == (None, trap)
    assert time.monotonic() - started < 5


def test_memory_is_limited(run: Run) -> None:
    assert run("grow")["exit_code"] == 9
    assert run("grow-enough")["exit_code"] == 0


def test_output_is_limited(run: Run) -> None:
    ended = run("flood-stdout")
    assert ended["exit_code"] not in (0, None)
    assert len(text(ended["stdout"])) == 64 * 1024


def test_files_are_limited(house: Isolate, alice: Party, run: Run) -> None:
    assert run("flood-file")["exit_code"] not in (0, None)
    assert result(house, alice, "/output/flood") is None


def test_no_clock_is_to_be_seen(run: Run) -> None:
    assert run("clocks")["exit_code"] == 0


def test_no_moment_can_be_waited_for_without_a_clock(run: Run) -> None:
    """Which of two waits ends first, for a moment or for a while, would tell the time."""
    assert run("sleep-until")["exit_code"] == 58  # ENOTSUP of WASI preview 1


def test_a_clock_is_to_be_seen_where_the_policy_gives_one(start: Callable[..., Isolate], alice: Party) -> None:
    code = guests.clocks("now")
    ran = start(make_policy(alice, clock=True, programs=[program("/c.wasm", code, OUT)]))
    with ran.connect(alice) as client:
        client.put("/c.wasm", code)
        assert client.run("/c.wasm")["exit_code"] == 1


def test_arguments_and_environment_come_from_the_policy_alone(start: Callable[..., Isolate], alice: Party) -> None:
    code = bytes(
        wasmtime.wat2wasm(
            """(module (import "wasi_snapshot_preview1" "args_sizes_get" (func $a (param i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "environ_sizes_get" (func $e (param i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (memory (export "memory") 1) (func (export "_start")
            (drop (call $a (i32.const 0) (i32.const 4))) (drop (call $e (i32.const 8) (i32.const 12)))
            (call $exit (i32.add (i32.mul (i32.load (i32.const 0)) (i32.const 10)) (i32.load (i32.const 8))))))"""
        )
    )
    given = program("/c.wasm", code, {}, args=["--fast", "2"], env={"MODE": "x"})
    ran = start(make_policy(alice, programs=[given]))
    with ran.connect(alice) as client:
        client.put("/c.wasm", code)
        assert client.run("/c.wasm")["exit_code"] == 31


def test_a_program_of_another_hash_cannot_be_sent(house: Isolate, alice: Party) -> None:
    with house.connect(alice) as client:
        assert client.put(path_of("copy"), PROGRAMS["three"][0]).slug == "pin-mismatch"


def test_without_observe_one_learns_that_it_ended_and_when_rounded(house: Isolate, bob: Party) -> None:
    for name in ("copy", "trap"):
        started = time.monotonic()
        with house.connect(bob) as client:
            ended = client.run(path_of(name))
        assert set(ended) == {"id", "state"}
        assert 0.9 < time.monotonic() - started < 2


def test_without_execute_a_program_is_not_available(house: Isolate, bob: Party) -> None:
    with house.connect(bob) as client:
        for path in ("/program/absent.wasm", "/output/result"):
            assert client.ask("POST", "/v1/jobs", json.dumps({"program": path}).encode()).status == 404


def test_a_job_is_its_owners_alone(house: Isolate, alice: Party, bob: Party) -> None:
    with house.connect(alice) as ours, house.connect(bob) as theirs:
        job = ours.run(path_of("copy"))["id"]
        assert len(job) == 32
        assert theirs.ask("GET", f"/v1/jobs/{job}").slug == "not-available"
        assert theirs.ask("DELETE", f"/v1/jobs/{job}").slug == "not-available"
        assert ours.ask("GET", f"/v1/jobs/{job}?wait=31").slug == "malformed-request"


def test_a_job_runs_on_the_inputs_that_were_expected_or_not_at_all(house: Isolate, alice: Party, bob: Party) -> None:
    digest = hashlib.sha256(TABLE).hexdigest()
    with house.connect(alice) as client:
        assert client.run(path_of("copy"), inputs={"/input/table": digest})["exit_code"] == 0
        for inputs in ({"/input/table": "0" * 64}, {"/input/absent": digest}):
            body = json.dumps({"program": path_of("copy"), "inputs": inputs}).encode()
            assert client.ask("POST", "/v1/jobs", body).slug == "input-mismatch"
    with house.connect(bob) as client:  # who may neither read nor write it cannot have a guess confirmed
        body = json.dumps({"program": path_of("copy"), "inputs": {"/input/table": digest}}).encode()
        assert client.ask("POST", "/v1/jobs", body).slug == "input-mismatch"


def test_a_running_and_a_queued_job_can_be_cancelled(house: Isolate, alice: Party) -> None:
    body = json.dumps({"program": path_of("sleep")}).encode()
    with house.connect(alice) as client:
        first, second = (client.ask("POST", "/v1/jobs", body).json["id"] for _ in range(2))
        assert client.ask("GET", f"/v1/jobs/{second}").json["state"] == "queued"
        for job in (second, first):
            assert client.ask("DELETE", f"/v1/jobs/{job}").status == 202
        assert [client.wait(job)["trap"] for job in (first, second)] == ["cancelled", "cancelled"]


def test_a_participants_queue_is_bounded(house: Isolate, alice: Party) -> None:
    body = json.dumps({"program": path_of("copy")}).encode()
    with house.connect(alice) as client:
        blocker = client.ask("POST", "/v1/jobs", json.dumps({"program": path_of("sleep")}).encode()).json["id"]
        answers = [client.ask("POST", "/v1/jobs", body) for _ in range(8)]
        assert [answer.status for answer in answers] == [202] * 7 + [429]
        client.ask("DELETE", f"/v1/jobs/{blocker}")
        for answer in answers[:7]:
            assert client.wait(answer.json["id"])["exit_code"] == 0


def test_nobodys_queue_holds_up_anothers(house: Isolate, alice: Party, bob: Party) -> None:
    copy, sleep = (json.dumps({"program": path_of(name)}).encode() for name in ("copy", "sleep"))
    with house.connect(alice) as ours, house.connect(bob) as theirs:
        blocker = ours.ask("POST", "/v1/jobs", sleep).json["id"]
        queued = [ours.ask("POST", "/v1/jobs", copy).json["id"] for _ in range(3)]
        late = theirs.ask("POST", "/v1/jobs", sleep).json["id"]
        ours.ask("DELETE", f"/v1/jobs/{blocker}")
        assert ours.wait(blocker)["trap"] == "cancelled"
        assert ours.ask("GET", f"/v1/jobs/{queued[0]}?wait=1").json["state"] == "queued"  # it is Bob's turn
        theirs.ask("DELETE", f"/v1/jobs/{late}")
        assert [ours.wait(job)["exit_code"] for job in queued] == [0, 0, 0]


def test_nothing_runs_before_everybody_has_joined(start: Callable[..., Isolate], alice: Party, bob: Party) -> None:
    code = guests.guest("nop")
    ran = start(make_policy(alice, bob, join=["alice", "bob"], programs=[program("/c.wasm", code, {})]))
    with ran.connect(alice) as client:
        client.put("/c.wasm", code)
        body = json.dumps({"program": "/c.wasm"}).encode()
        assert client.ask("POST", "/v1/jobs", body).slug == "join-incomplete"
        ran.connect(bob).close()
        with ran.connect(bob) as other:
            other.ask("GET", "/v1/policy")
        assert client.run("/c.wasm")["exit_code"] == 0


def test_runs_are_counted(start: Callable[..., Isolate], alice: Party) -> None:
    code = guests.guest("nop")
    lifecycle = {"runs": {"/c.wasm": 2}}
    ran = start(make_policy(alice, lifecycle=lifecycle, programs=[program("/c.wasm", code, {})]))
    with ran.connect(alice) as client:
        client.put("/c.wasm", code)
        assert [client.run("/c.wasm")["exit_code"] for _ in range(2)] == [0, 0]
        assert client.ask("POST", "/v1/jobs", json.dumps({"program": "/c.wasm"}).encode()).slug == "runs-spent"


def test_a_job_leaves_nothing_behind(house: Isolate, run: Run) -> None:
    run("copy")
    stage = Path(house.host.base).parent / "scratch" / "stage"
    assert eventually(lambda: list(stage.iterdir()) == [])  # the other programs are still being compiled


@needs_root
def test_all_files_of_a_job_together_are_limited(start: Callable[..., Isolate], alice: Party) -> None:
    code = guests.flood("file")
    limits = {"storage_mib": 2, "file_mib": 2}
    ran = start(make_policy(alice, limits=limits, programs=[program("/c.wasm", code, OUT)]))
    with ran.connect(alice) as client:
        client.put("/c.wasm", code)
        assert client.run("/c.wasm")["exit_code"] not in (0, None)
