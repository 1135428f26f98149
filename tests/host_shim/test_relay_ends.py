# SPDX-License-Identifier: MIT
"""How connections end through the relay, in this process: all that was sent arrives, and no break looks regular."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from host_shim.relay.connection import Connection
from host_shim.relay.dial import Target as Dialled
from host_shim.relay.dial import end_dialling
from host_shim.relay.flow import BUFFER, BULK, Flow
from host_shim.relay.limits import Limits, Source
from host_shim.relay.pipes import Pipes
from host_shim.relay.server import Relay

from .relays import LIMIT, RESET, Target, is_reset, read_all, wait_for

HERE = ("127.0.0.1", 0)
SO_BUF_LOCK = 72  # socket(7), Linux 5.14; bit 0: the send buffer's size was set


@contextlib.contextmanager
def relay(target: Target | Dialled, **arguments: Any) -> Iterator[tuple[Relay, Callable[[], socket.socket]]]:
    """Run a relay in a thread; give it, and how to connect to it."""
    dialled = target if isinstance(target, Dialled) else Dialled.unix(Path(target.endpoint.removeprefix("unix:")))
    with socket.create_server(HERE) as listener:
        listener.setblocking(False)
        place = listener.getsockname()
        running = Relay([listener], dialled, **{"limits": Limits(drain=0), **arguments})
        thread = threading.Thread(target=running.run)
        thread.start()
        try:
            yield running, lambda: socket.create_connection(place, timeout=LIMIT)
        finally:
            running.stop()
            thread.join(LIMIT)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    target = Target(tmp_path / "inside")
    yield target
    target.sock.close()


def tcp_pair(buffer: int = 0) -> tuple[socket.socket, socket.socket]:
    """Return both ends of a connection over loopback, the first one's receive buffer of so many bytes."""
    with socket.create_server(HERE) as listener:
        near = socket.socket()
        if buffer:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        near.settimeout(LIMIT)
        near.connect(listener.getsockname())
        far, _ = listener.accept()
        far.setblocking(False)
        return near, far


def test_what_the_isolate_sent_before_it_broke_off_arrives_however_slow_the_client(target: Target) -> None:
    """A reset drops what its peer has not confirmed: it waits until the client has all."""
    with relay(target) as (running, dial), dial() as client:
        client.sendall(b"a request that will not be read")
        inside = target.accept()
        inside.settimeout(0.5)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while True:  # until the client's kernel and ours take no more
                sent += inside.send(bytes(65536))
        inside.settimeout(LIMIT)
        inside.close()  # with bytes unread: no regular end
        got = 0
        reset = False
        try:
            while data := client.recv(1 << 20):
                got += len(data)
        except ConnectionResetError:
            reset = True
        assert (got, reset) == (sent, True)
        wait_for(lambda: running.counters.broken == 1)


def test_a_break_that_a_send_meets_first_is_no_regular_end(tmp_path: Path) -> None:
    """The kernel tells of a break once, to whoever asks: then it reads as an end of file."""
    client, near = tcp_pair()
    far, inside = socket.socketpair(socket.AF_UNIX)
    far.setblocking(False)
    connection = Connection(near, far, Source("", ""), Pipes(), first=b"", now=0.0)
    inside.sendall(b"answer")
    client.sendall(b"unread")
    buffer = memoryview(bytearray(BUFFER))

    def until(flow_has: str) -> None:
        def moved() -> bool:
            connection.inward.move(buffer)
            return bool(getattr(connection.inward, flow_has))

        wait_for(moved)

    until("moved")
    inside.close()
    client.sendall(b"more")
    until("broken")
    for _ in range(3):
        connection.target_end.serve(1, buffer)
        connection.pass_on_ends()
    assert connection.finished
    assert connection.broken
    wait_for(lambda: not connection.on_the_way)
    connection.close(abort=True)
    assert client.recv(100) == b"answer"
    assert is_reset(client)
    client.close()


def test_what_a_client_that_broke_off_had_sent_arrives(target: Target) -> None:
    with relay(target) as (_, dial):
        client = dial()
        inside = target.accept()
        client.sendall(b"all of it")
        assert inside.recv(3) == b"all"
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.close()
        assert read_all(inside) == b" of it"
        inside.close()


def test_a_receiver_that_is_gone_keeps_nobody_waiting(target: Target) -> None:
    """Its unconfirmed bytes never will be: the kernel of a dead connection still counts them."""
    with relay(target) as (running, dial):
        client, inside = dial(), target.accept()
        client.sendall(b"unread")
        wait_for(lambda: running.counters.accepted)
        inside.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            while True:
                inside.send(bytes(65536))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.close()
        inside.close()
        wait_for(lambda: running.counters.broken == 1 and not running.counters.open)


def test_bulk_leaves_tcp_its_own_way_to_find_a_buffers_size() -> None:
    """A size that is set is kept, below what TCP would take: a far client would get a fraction of the speed."""
    sender, from_sender = socket.socketpair(socket.AF_UNIX)
    client, near = tcp_pair()
    pipes = Pipes()
    with sender, from_sender, client, near, contextlib.closing(pipes):
        from_sender.setblocking(False)
        flow = Flow(from_sender, near, pipes)
        for _ in range(4):
            sender.sendall(bytes(2 * BULK))
            flow.move(memoryview(bytearray(BUFFER)))
        assert flow._bulk
        with contextlib.suppress(OSError):  # an older kernel does not tell
            assert not near.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK) & 1
        flow.close()


@pytest.mark.parametrize("errors", [errno.EINVAL, errno.ECONNRESET])
def test_a_splice_that_fails_is_tried_once(monkeypatch: pytest.MonkeyPatch, errors: int) -> None:
    """The kernel cannot: it is copied. The sender has broken off: the flow ends. Neither loses a pipe."""
    asked = []

    def refuse(*_: Any, **__: Any) -> int:
        asked.append(1)
        raise OSError(errors, os.strerror(errors))

    sender, from_sender = socket.socketpair()
    receiver, to_receiver = socket.socketpair()
    pipes = Pipes()
    with sender, from_sender, receiver, to_receiver, contextlib.closing(pipes):
        from_sender.setblocking(False)
        to_receiver.setblocking(False)
        flow = Flow(from_sender, to_receiver, pipes)
        flow._bulk = True
        monkeypatch.setattr("host_shim.relay.flow._splice", refuse)
        sender.sendall(b"bytes")
        buffer = memoryview(bytearray(BUFFER))
        flow.move(buffer)
        assert len(asked) == len(pipes._empty) == 1
        assert flow.cut is (errors == errno.ECONNRESET)
        flow.move(buffer)
        assert flow.cut or receiver.recv(100) == b"bytes"


def test_tcp_that_met_itself_is_no_connection() -> None:
    with socket.socket() as sock:
        sock.bind(HERE)
        sock.connect(sock.getsockname())
        with pytest.raises(ConnectionRefusedError):
            end_dialling(sock)


def test_a_full_backlog_is_asked_by_one_of_those_who_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much goes on meanwhile: each attempt costs, and all of them would slow those who are connected."""
    attempts = []
    begin = Dialled.begin

    def counted(self: Dialled) -> tuple[socket.socket, bool]:
        attempts.append(1)
        return begin(self)

    monkeypatch.setattr(Dialled, "begin", counted)
    full = Target(tmp_path / "inside", backlog=0)
    with relay(full, limits=Limits(drain=0, connect=60)) as (running, dial):
        first = dial()
        inside = full.accept()
        waiting = [dial() for _ in range(40)]
        wait_for(lambda: running.counters.open == 41)
        before = len(attempts)
        for _ in range(200):
            first.sendall(b"x")
            assert inside.recv(1) == b"x"
        assert len(attempts) - before < 100  # twenty a second
        waiting[7].sendall(b"eighth")
        served = [full.accept() for _ in waiting]
        assert served[7].recv(10) == b"eighth"  # in their order
        for sock in (first, inside, *waiting, *served):
            sock.close()
    full.sock.close()


def test_a_signal_may_come_when_all_is_over(target: Target) -> None:
    with relay(target) as (running, _):
        running.stop()
        wait_for(lambda: running._ended)
        running.stop()
