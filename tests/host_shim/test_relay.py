# SPDX-License-Identifier: MIT
"""The relay as a process: real sockets on both sides."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from host_shim.board import read_board
from host_shim.children import python_command
from host_shim.errors import CannotListen, MalformedEndpoint
from host_shim.listen import Listener, TcpEndpoint, parse_endpoint
from host_shim.relay.counters import Counters
from tests.waiting import eventually


class Isolate:
    """A Unix socket whose connections the test holds."""

    def __init__(self, path: Path, backlog: int = 128) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(backlog)
        self._listener.settimeout(10)

    def accept(self) -> socket.socket:
        connection, _ = self._listener.accept()
        connection.settimeout(10)
        return connection

    def close(self) -> None:
        self._listener.close()


@contextmanager
def relay(listener: Listener, target: Path, *options: str) -> Iterator[int]:
    """Run a relay; give its pid."""
    command = python_command(
        "host_shim.relay", "--listen-fd", str(listener.fileno()), "--target", str(target), *options
    )
    fds = [listener.fileno(), *(int(value) for name, value in pairwise(options) if name.endswith("-fd"))]
    with subprocess.Popen(command, pass_fds=fds) as process:
        try:
            yield process.pid
        finally:
            process.terminate()
            process.wait(10)


def dial(listener: Listener) -> socket.socket:
    assert isinstance(listener.endpoint, TcpEndpoint)
    return socket.create_connection((str(listener.endpoint.host), listener.endpoint.port), timeout=10)


@pytest.fixture
def isolate(tmp_path: Path) -> Iterator[Isolate]:
    with closing(Isolate(tmp_path / "v_5000")) as isolate:
        yield isolate


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener(parse_endpoint("127.0.0.1:0")) as listener:
        yield listener


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


def test_carries_bytes_both_ways_and_each_end_alone(isolate: Isolate, listener: Listener) -> None:
    with relay(listener, isolate.path), dial(listener) as client, isolate.accept() as inside:
        client.sendall(b"question")
        assert inside.recv(100) == b"question"
        client.shutdown(socket.SHUT_WR)
        assert inside.recv(100) == b""
        inside.sendall(b"answer after the end")  # half-closed, not closed
        inside.close()
        assert read_all(client) == b"answer after the end"


@pytest.mark.parametrize("outward", [False, True])
def test_carries_64_mib_unchanged(isolate: Isolate, listener: Listener, outward: bool) -> None:
    block = os.urandom(1 << 20)
    with relay(listener, isolate.path), dial(listener) as client, isolate.accept() as inside:
        sender, receiver = (inside, client) if outward else (client, inside)

        def send() -> None:
            for _ in range(64):
                sender.sendall(block)
            sender.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=send)
        thread.start()
        digest = hashlib.sha256()
        while data := receiver.recv(1 << 18):
            digest.update(data)
        thread.join()
    expected = hashlib.sha256()
    for _ in range(64):
        expected.update(block)
    assert digest.digest() == expected.digest()


def test_a_slow_reader_stops_its_sender_and_nobody_else(isolate: Isolate, listener: Listener) -> None:
    with relay(listener, isolate.path) as pid, dial(listener) as slow, isolate.accept() as slow_inside:
        slow_inside.settimeout(0.5)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 1 << 28:
                sent += slow_inside.send(b"x" * 65536)
        assert sent < 64 << 20  # what sockets and one buffer hold
        with dial(listener) as other, isolate.accept() as other_inside:
            other.sendall(b"ping")
            assert other_inside.recv(10) == b"ping"
        used = int((Path("/proc") / str(pid) / "statm").read_text().split()[1]) * 4096
        assert used < 64 << 20
        slow_inside.close()
        assert len(read_all(slow)) == sent


def test_an_aborted_end_aborts_the_other(isolate: Isolate, listener: Listener) -> None:
    with relay(listener, isolate.path), dial(listener) as client, isolate.accept() as inside:
        client.sendall(b"x")
        assert inside.recv(1) == b"x"
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        assert inside.recv(1) == b""


def test_a_dead_isolate_is_a_reset_and_no_silent_end(isolate: Isolate, listener: Listener) -> None:
    isolate.close()
    isolate.path.unlink()
    with relay(listener, isolate.path), pytest.raises(ConnectionResetError), dial(listener) as client:
        client.recv(1)


def test_waits_in_the_backlog_until_the_gate_opens(isolate: Isolate, listener: Listener) -> None:
    gate, opener = os.pipe()
    with relay(listener, isolate.path, "--gate-fd", str(gate)), dial(listener) as client:
        os.close(gate)
        client.sendall(b"early")
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(1)
        os.close(opener)
        with isolate.accept() as inside:
            assert inside.recv(10) == b"early"


def test_tells_its_counters_before_the_gate_opens(isolate: Isolate, listener: Listener, tmp_path: Path) -> None:
    gate, opener = os.pipe()
    with (
        (tmp_path / "counters").open("w+b") as file,
        os.fdopen(opener),
        relay(listener, isolate.path, "--gate-fd", str(gate), "--counters-fd", str(file.fileno())),
    ):
        os.close(gate)
        assert eventually(lambda: read_board(file.fileno(), Counters) == Counters())


def test_holds_the_limit_on_connections(isolate: Isolate, listener: Listener) -> None:
    with relay(listener, isolate.path, "--max-connections", "2"):
        first, second = dial(listener), dial(listener)
        inside = [isolate.accept(), isolate.accept()]
        with dial(listener) as third:  # in the kernel's backlog
            third.sendall(b"third")
            isolate._listener.settimeout(0.3)
            with pytest.raises(TimeoutError):
                isolate.accept()
            isolate._listener.settimeout(10)
            first.close()
            inside[0].close()
            inside[1].sendall(b"still here")
            assert second.recv(20) == b"still here"
            with isolate.accept() as late:
                assert late.recv(10) == b"third"
        second.close()
        inside[1].close()


def test_closes_what_is_idle_and_keeps_what_is_not(isolate: Isolate, listener: Listener) -> None:
    with relay(listener, isolate.path, "--idle", "0.7"), dial(listener) as idle, isolate.accept() as idle_inside:
        with dial(listener) as busy, isolate.accept() as busy_inside:
            until = time.monotonic() + 2.4
            while time.monotonic() < until:
                busy.sendall(b"x")
                assert busy_inside.recv(1) == b"x"
                time.sleep(0.2)
        assert idle_inside.recv(1) == b""
        with pytest.raises(ConnectionResetError):
            idle.recv(1)


def test_serves_many_at_once_and_leaves_no_descriptor(isolate: Isolate, listener: Listener) -> None:
    with relay(listener, isolate.path) as pid:
        with dial(listener) as client, isolate.accept() as inside:
            client.sendall(b"x")
            inside.recv(1)
            before = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208
        for _ in range(3):
            clients = [dial(listener) for _ in range(100)]
            inside_all = [isolate.accept() for _ in range(100)]
            for index, sock in enumerate(clients):
                sock.sendall(b"%d" % index)
            assert {sock.recv(10) for sock in inside_all} == {b"%d" % index for index in range(100)}
            for sock in (*clients, *inside_all):
                sock.close()
        deadline = time.monotonic() + 5
        while len(os.listdir(f"/proc/{pid}/fd")) > before and time.monotonic() < deadline:  # noqa: PTH208
            time.sleep(0.05)
        assert len(os.listdir(f"/proc/{pid}/fd")) < before  # noqa: PTH208


def test_a_full_backlog_of_the_isolate_is_waited_for(tmp_path: Path, listener: Listener) -> None:
    with closing(Isolate(tmp_path / "v_5000", backlog=0)) as isolate, relay(listener, isolate.path):
        clients = [dial(listener) for _ in range(8)]
        time.sleep(0.2)
        inside = [isolate.accept() for _ in range(8)]
        assert len(inside) == 8
        for sock in (*clients, *inside):
            sock.close()


@pytest.mark.parametrize(
    "text",
    ["", "5000", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "127.0.0.1:-1", "::1:5000",
     "[127.0.0.1]:5", "example.org:5000", ":5000", "unix:", "unix:/" + "x" * 107, "127.0.0.1:٣"],
)  # fmt: skip
def test_refuses_endpoints_of_another_form(text: str) -> None:
    with pytest.raises(MalformedEndpoint):
        parse_endpoint(text)


@pytest.mark.parametrize("text", ["127.0.0.1:5000", "[::1]:5000", "0.0.0.0:0", "unix:/run/x"])
def test_endpoints_read_as_they_are_written(text: str) -> None:
    assert str(parse_endpoint(text)) == text


def test_a_port_in_use_is_an_error_with_a_hint() -> None:
    with Listener(parse_endpoint("127.0.0.1:0")) as first:
        with pytest.raises(CannotListen, match="in use") as caught:
            Listener(first.endpoint)
        assert caught.value.hint is not None
        assert "--listen" in caught.value.hint


def test_a_stale_unix_socket_is_replaced_a_live_one_is_not(tmp_path: Path) -> None:
    endpoint = parse_endpoint(f"unix:{tmp_path}/s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(tmp_path / "s"))
    with Listener(endpoint):
        with pytest.raises(CannotListen, match="in use"):
            Listener(endpoint)
        assert (tmp_path / "s").is_socket()
    assert not (tmp_path / "s").exists()
    (tmp_path / "s").write_text("a file of somebody's")
    with pytest.raises(CannotListen):
        Listener(endpoint)
    assert (tmp_path / "s").read_text() == "a file of somebody's"


def test_relays_on_a_unix_socket(isolate: Isolate, tmp_path: Path) -> None:
    with (
        Listener(parse_endpoint(f"unix:{tmp_path}/s")) as listener,
        relay(listener, isolate.path),
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client,
    ):
        client.connect(str(tmp_path / "s"))
        client.sendall(b"x")
        with isolate.accept() as inside:
            assert inside.recv(1) == b"x"
