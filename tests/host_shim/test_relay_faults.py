# SPDX-License-Identifier: MIT
"""The relay when others die, stall, crowd or take its descriptors: real processes, and nothing left behind."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from .relays import RESET, Target, Verb, is_refused, is_reset, is_silent, read_all, verb, wait_for

SHORT_CONNECTIONS = 2000
pytestmark = pytest.mark.faults

CLIENT = "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\nwhile True: "
SENDS = CLIENT + "s.send(bytes(65536))"
READS = CLIENT + "s.recv(65536)"
INSIDE = """
import socket, sys
listener = socket.socket(socket.AF_UNIX); listener.bind(sys.argv[1]); listener.listen(8)
print("ready", flush=True)
s, _ = listener.accept()
while True: s.recv(65536)
"""


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    target = Target(tmp_path / "inside")
    yield target
    target.sock.close()


def port_of(relay: Verb) -> str:
    return relay.listen[0].rpartition(":")[2]


def warm(relay: Verb, target: Target) -> int:
    """Carry something in bulk, so that whatever is kept is there; return the descriptors then."""
    with relay.dial() as client, target.accept() as inside:
        thread = threading.Thread(target=client.sendall, args=(bytes(8 << 20),))
        thread.start()
        got = 0
        while got < 8 << 20:
            got += len(inside.recv(1 << 20))
        thread.join()
    wait_for(lambda: relay.counters().open == 0 and relay.counters().accepted)
    return relay.descriptors()


@pytest.mark.parametrize("script", [SENDS, READS])
def test_a_client_killed_in_the_middle_ends_the_isolates_side(tmp_path: Path, target: Target, script: str) -> None:
    with verb(tmp_path, target.endpoint) as relay:
        before = warm(relay, target)
        with subprocess.Popen([sys.executable, "-c", script, port_of(relay)]) as client, target.accept() as inside:
            stop = threading.Event()

            def send() -> None:
                with contextlib.suppress(OSError):
                    while not stop.is_set():
                        inside.send(bytes(65536))

            if script is READS:
                sender = threading.Thread(target=send)
                sender.start()
                wait_for(lambda: relay.counters().bytes_out > 1 << 20)
            else:
                while not relay.counters().bytes_in > 9 << 20:
                    assert inside.recv(1 << 20)
            client.kill()
            client.wait()
            with contextlib.suppress(ConnectionError):
                read_all(inside)
            stop.set()
            if script is READS:
                sender.join()
        wait_for(lambda: relay.counters().open == 0)
        wait_for(lambda: relay.descriptors() <= before)
        assert relay.threads() == 1


def test_an_isolate_killed_in_the_middle_resets_its_clients(tmp_path: Path) -> None:
    place = tmp_path / "inside"
    command = [sys.executable, "-c", INSIDE, str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as inside, verb(tmp_path, f"unix:{place}") as relay:
        assert inside.stdout is not None
        inside.stdout.readline()
        with relay.dial() as client:
            for _ in range(64):
                client.sendall(bytes(65536))
            inside.kill()
            inside.wait()
            with pytest.raises(ConnectionError):
                client.sendall(bytes(64 << 20))
        assert is_refused(relay)  # and at once
        wait_for(lambda: relay.counters().open == 0)
        counters = wait_for(lambda: relay.counters().refused_target == 1 and relay.counters())
        assert counters.broken == 1
        assert "Connection refused" in relay.log()


def test_an_answer_sent_before_a_reset_arrives(tmp_path: Path, target: Target) -> None:
    """Point: a server that refuses early says so and closes with bytes of the request unread."""
    with verb(tmp_path, target.endpoint) as relay, relay.dial() as client:
        inside = target.accept()
        client.sendall(bytes(4096))
        wait_for(lambda: relay.counters().bytes_in)
        inside.sendall(b"refused")
        inside.close()
        assert client.recv(100) == b"refused"
        assert is_reset(client)


def test_out_of_descriptors_it_waits_and_recovers(tmp_path: Path, target: Target) -> None:
    with verb(tmp_path, target.endpoint) as relay:
        before = warm(relay, target)
        clients = [relay.dial() for _ in range(4)]
        inside = [target.accept() for _ in range(4)]
        _, hard = resource.prlimit(relay.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(relay.pid, resource.RLIMIT_NOFILE, (relay.lowest_free(), hard))
        late = [relay.dial() for _ in range(3)]
        for index, sock in enumerate(late):
            sock.sendall(b"%d" % index)
        wait_for(lambda: relay.counters().short_of_descriptors > 2)
        spent = relay.cpu()
        clients[0].sendall(b"those that are open go on")
        assert inside[0].recv(100) == b"those that are open go on"
        assert all(map(is_silent, late))
        assert relay.cpu() - spent < 0.5  # it does not spin: those were nearly a second
        for sock in (*clients, *inside):
            sock.close()
        resource.prlimit(relay.pid, resource.RLIMIT_NOFILE, (hard, hard))
        waited = [target.accept() for _ in range(3)]
        assert {sock.recv(10) for sock in waited} == {b"0", b"1", b"2"}
        for sock in (*late, *waited):
            sock.close()
        wait_for(lambda: relay.counters().open == 0)
        wait_for(lambda: relay.descriptors() <= before)
        assert "short of descriptors" in relay.log()


def test_thousands_of_short_connections_leave_nothing(tmp_path: Path, target: Target) -> None:
    def answer() -> None:
        for _ in range(SHORT_CONNECTIONS):
            with target.accept() as inside:
                inside.sendall(inside.recv(100))

    with verb(tmp_path, target.endpoint) as relay:
        before = warm(relay, target)
        resident = relay.resident()
        thread = threading.Thread(target=answer)
        thread.start()
        for index in range(SHORT_CONNECTIONS):
            with relay.dial() as client:
                client.sendall(b"%d" % index)
                assert client.recv(100) == b"%d" % index
        thread.join()
        counters = wait_for(lambda: relay.counters().finished > SHORT_CONNECTIONS and relay.counters())
        assert counters.open == 0
        wait_for(lambda: relay.descriptors() <= before)
        assert relay.threads() == 1
        assert relay.resident() < resident + (4 << 20)


def test_bulk_that_meets_slow_readers_arrives_whole(tmp_path: Path, target: Target) -> None:
    """Many flows whose receivers are full at once: each holds its own pipe, and none gets another's bytes."""
    count, size = 24, 3 << 20
    with verb(tmp_path, target.endpoint) as relay:
        before = warm(relay, target)
        clients = [relay.dial() for _ in range(count)]
        data = [hashlib.sha256(b"%d" % index).digest() * (size // 32) for index in range(count)]
        senders = [
            threading.Thread(target=lambda s, d: (s.sendall(d), s.shutdown(socket.SHUT_WR)), args=pair)
            for pair in zip(clients, data, strict=True)
        ]
        for sender in senders:
            sender.start()
        inside = [target.accept() for _ in range(count)]
        wait_for(lambda: relay.descriptors() > before + 2 * count + 8, "pipes that are held")
        assert relay.resident() < 128 << 20
        assert {hashlib.sha256(read_all(sock)).digest() for sock in inside} == {
            hashlib.sha256(one).digest() for one in data
        }
        for sender in senders:
            sender.join()
        for sock in (*clients, *inside):
            sock.close()
        wait_for(lambda: relay.counters().open == 0)
        wait_for(lambda: relay.descriptors() <= before + 2 * 16)  # pipes that are kept


def test_a_client_that_is_gone_before_it_is_accepted_is_passed_over(tmp_path: Path, target: Target) -> None:
    with verb(tmp_path, target.endpoint) as relay:
        os.kill(relay.pid, signal.SIGSTOP)
        gone = [relay.dial() for _ in range(20)]
        for sock in gone:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            sock.close()
        os.kill(relay.pid, signal.SIGCONT)
        with relay.dial() as client:
            client.sendall(b"here")
            arrived = b""
            while arrived != b"here":
                with target.accept() as inside:
                    arrived = inside.recv(10)
        wait_for(lambda: relay.counters().open == 0)


def test_a_client_of_a_full_backlog_is_told_within_the_limit(tmp_path: Path) -> None:
    full = Target(tmp_path / "inside", backlog=0)
    with verb(tmp_path, full.endpoint, "--connect-limit", "0.5") as relay:
        clients = [relay.dial() for _ in range(5)]
        for sock in clients:
            sock.sendall(b"x")
        assert sum(map(is_reset, clients[2:])) == 3  # one or two fit into a backlog of none
        assert wait_for(lambda: relay.counters().refused_late) >= 3
        for sock in clients:
            sock.close()
    full.sock.close()


def test_a_target_that_never_answers_is_given_up(tmp_path: Path) -> None:
    silent = socket.socket()
    silent.bind(("127.0.0.1", 0))
    silent.listen(0)
    port = silent.getsockname()[1]
    fillers = []
    for _ in range(3):  # a full TCP backlog drops SYNs
        filler = socket.socket()
        filler.setblocking(False)
        assert filler.connect_ex(("127.0.0.1", port)) in (0, errno.EINPROGRESS)
        fillers.append(filler)
    with verb(tmp_path, f"tcp:127.0.0.1:{port}", "--connect-limit", "0.5") as relay, relay.dial() as client:
        assert is_reset(client)
        assert wait_for(lambda: relay.counters().refused_late) == 1
        wait_for(lambda: "took no connection within 0.5 s" in relay.log())
    for sock in (silent, *fillers):
        sock.close()
