# SPDX-License-Identifier: MIT
"""What a stranger, or a participant who means harm, tries on an isolate that others depend on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from enclave_image.runtime.blobs import Blobs
from enclave_image.runtime.modules import Modules
from enclave_image.runtime.task import MAX_REPORT, Report

from . import guests
from .household import Client, Isolate, Party, isolate, make_policy, participant, program

MIB = 1 << 20
SECRET = b"yes"
QUICK, SLEEPER, GUESS = "/program/quick.wasm", "/program/sleeper.wasm", "/program/guess.wasm"
CODE = {
    QUICK: guests.guest("nop"),
    SLEEPER: guests.sleep(60),
    GUESS: guests.write("answer", SECRET.decode()),
}

Start = Callable[..., Isolate]


@pytest.fixture(scope="module")
def house(alice: Party, bob: Party) -> Iterator[Isolate]:
    policy = make_policy(
        participants=[
            participant(alice, {"/": ["read", "write", "execute", "observe"]}),
            participant(bob, {"/program/": ["execute"], "/shared/": ["write", "append"], "/bob/": ["write", "read"]}),
        ],
        programs=[
            program(QUICK, CODE[QUICK], {"/alice/": ["read"]}),
            program(SLEEPER, CODE[SLEEPER], {"/alice/": ["read"]}, limits={"wall_s": 30}),
            program(GUESS, CODE[GUESS], {"/frozen/": ["write"]}),
        ],
        join=["alice"],
        once=["/frozen/"],
        limits={"storage_mib": 6, "file_mib": 1, "jobs": 1},
    )
    with isolate(policy) as ran:
        with ran.connect(alice) as client:
            for path, code in CODE.items():
                assert client.put(path, code).status == 201
        yield ran


@contextlib.contextmanager
def busy(house: Isolate, alice: Party) -> Iterator[Client]:
    """Let a job of Alice's run; nothing else runs until it is cancelled."""
    with house.connect(alice) as client:
        job = submit(client, SLEEPER)
        try:
            while client.ask("GET", f"/v1/jobs/{job}").json["state"] == "queued":
                time.sleep(0.01)
            yield client
        finally:
            client.ask("DELETE", f"/v1/jobs/{job}")
            client.wait(job)


def submit(client: Client, path: str, **more: Any) -> str:
    answer = client.ask("POST", "/v1/jobs", json.dumps({"program": path, **more}).encode())
    assert answer.status == 202, answer
    return str(answer.json["id"])


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(
    "raw",
    [
        b"POST /v1/nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc",
        b"GET /v1/policy HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n",
        b"PUT /v1/files/proc/x HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc",
        b"POST /v1/nothing HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n" + b'{"program": "\\ud800"}'[:20],
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n\x16\x03",
        b"GET /v1/policy HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n\x16\x03",
    ],
)
def test_a_body_that_breaks_off_ends_its_connection_alone(
    house: Isolate, alice: Party, raw: bytes, known: bool
) -> None:
    with house.connect(alice if known else None) as client:
        client.tls.sendall(raw)
        client.tls.settimeout(0.2)
        with contextlib.suppress(OSError):
            client.tls.recv(4096)  # first the answer, which most of these get before their body
        with contextlib.suppress(OSError):
            client.tls.unwrap()
    with house.connect(alice) as client:
        assert client.ask("GET", "/v1/policy").status == 200
    assert not [event for event in house.host.events if event.halts]


@pytest.mark.parametrize("length", ["", "Content-Length: 10\r\n"])
def test_no_body_is_longer_than_it_says(house: Isolate, alice: Party, length: str) -> None:
    """Chunked, it would be of any length, whatever Content-Length was checked against a limit."""
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: a\r\n{length}Transfer-Encoding: chunked\r\n\r\n"
    with house.connect(alice) as client:
        client.tls.sendall(head.encode() + b"a\r\n" + b" " * 10 + b"\r\n0\r\n\r\n")
        answer = b""
        while part := client.tls.recv(4096):
            answer += part
    assert b" 400 " in answer


@pytest.mark.parametrize(
    "text", ['"\\ud800"', '"/\\u0000"', '"/\\u00e9"', '"/a/../b"', '"//a"', '"/a/"', "1" * 5000, "[" * 30_000, "NaN"]
)
def test_no_json_ends_more_than_its_request(house: Isolate, alice: Party, text: str) -> None:
    with house.connect(alice) as client:
        for body in (f'{{"program": {text}}}', f'{{"program": "/a", "inputs": {{{text}: ""}}}}'):
            assert client.ask("POST", "/v1/jobs", body.encode()).slug == "malformed-request"


def test_without_observe_the_queue_tells_nothing(house: Isolate, alice: Party, bob: Party) -> None:
    with busy(house, alice), house.connect(bob) as theirs:
        jobs = [submit(theirs, QUICK) for _ in range(8)]
        assert {theirs.ask("GET", f"/v1/jobs/{job}").json["state"] for job in jobs} == {"running"}
        for job in jobs:
            assert theirs.ask("DELETE", f"/v1/jobs/{job}").status == 202
        # they are over at once; that a new one is taken at once would tell it
        answer = theirs.ask("POST", "/v1/jobs", json.dumps({"program": QUICK}).encode())
        assert answer.slug == "busy"
        for job in jobs:
            assert theirs.wait(job) == {"id": job, "state": "ended"}


def test_who_may_write_over_a_content_cannot_have_a_guess_of_it_confirmed(
    house: Isolate, alice: Party, bob: Party
) -> None:
    digest = hashlib.sha256(SECRET).hexdigest()
    with house.connect(alice) as ours, house.connect(bob) as theirs:
        assert ours.put("/shared/answer", SECRET).status == 201
        body = json.dumps({"program": QUICK, "inputs": {"/shared/answer": digest}}).encode()
        assert theirs.ask("POST", "/v1/jobs", body).slug == "input-mismatch"
        assert theirs.put("/shared/answer", b"", method="PATCH").status == 200
        assert theirs.ask("POST", "/v1/jobs", body).slug == "input-mismatch"
        assert theirs.put("/shared/answer", SECRET).status == 201  # now it is their own
        theirs.wait(submit(theirs, QUICK, inputs={"/shared/answer": digest}))


def test_a_program_cannot_have_a_guess_of_a_frozen_content_confirmed(house: Isolate, alice: Party) -> None:
    with house.connect(alice) as client:
        assert client.put("/frozen/answer", SECRET).status == 201
        assert client.run(GUESS)["trap"] == "outputs-refused"


def test_a_waiting_job_holds_no_content_that_its_program_may_not_read(house: Isolate, alice: Party, bob: Party) -> None:
    with busy(house, alice) as ours, house.connect(bob) as theirs:
        jobs = []
        for turn in range(3):
            for name in "ab":
                assert theirs.put(f"/bob/{name}", bytes([turn]) * (MIB - 64)).status == 201
            jobs.append(submit(ours, QUICK))
        for job in jobs:
            ours.ask("DELETE", f"/v1/jobs/{job}")


def threads_of(process: int) -> int:
    return len(os.listdir(f"/proc/{process}/task"))  # noqa: PTH208


def test_a_program_that_is_sent_again_and_again_is_prepared_once(start: Start, alice: Party) -> None:
    # a function of so many steps takes Cranelift seconds
    long = "(local $x i64) " + "(local.set $x (i64.add (local.get $x) (i64.const 1)))" * 60_000
    code = bytes(wasmtime.wat2wasm(f'(module (memory (export "memory") 1) (func (export "_start") {long}))'))
    ran = start(make_policy(alice, programs=[program(QUICK, code, {})]))
    with ran.connect(alice) as client:
        before = threads_of(ran.process.pid)
        for _ in range(20):
            assert client.put(QUICK, code).status == 201
        assert threads_of(ran.process.pid) <= before + 2


def test_a_compiled_program_does_not_wait_for_another_to_be_compiled(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "blobs", allowance=MIB)
    ready, other = (blobs.write(iter([content]), owner="alice") for content in (b"ready", b"other"))
    modules, begun, done = Modules(), threading.Event(), threading.Event()

    def compile_at_once(_: int, artifact: int) -> Report:
        os.write(artifact, b"code")
        return Report(0, None, 0)

    def compile_slowly(source: int, artifact: int) -> Report:
        begun.set()
        assert done.wait(10)
        return compile_at_once(source, artifact)

    first = modules.find(ready, compile_at_once)
    slow = threading.Thread(target=modules.find, args=(other, compile_slowly))
    slow.start()
    try:
        assert begun.wait(10)
        found: list[int] = []
        reader = threading.Thread(target=lambda: found.append(modules.find(ready, compile_slowly)))
        reader.start()
        reader.join(5)
        assert found == [first]
    finally:
        done.set()
        slow.join()
    for descriptor in (first, modules.find(other, compile_slowly)):
        os.close(descriptor)


@pytest.mark.parametrize("raw", [b"[" * MAX_REPORT, b"\xff", b"{}", b"9" * MAX_REPORT, b'{"fuel": 1e999}'])
def test_a_report_that_a_worker_forged_is_no_more_than_no_report(raw: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Report.decode(raw)


def test_empty_contents_cost_nothing_that_stays(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "blobs", allowance=MIB)
    for _ in range(100):
        blobs.write(iter(()), owner="alice")
    assert not blobs._given_back
    assert list((tmp_path / "blobs").iterdir()) == []
