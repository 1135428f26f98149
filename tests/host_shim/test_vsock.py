# SPDX-License-Identifier: MIT
"""The backend as a real process: streams both ways, credit, half-close, refusals, reboots."""

from __future__ import annotations

import os
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from host_shim.children import GRACE
from host_shim.vhost_user import packet
from host_shim.vhost_user.backend import LAST_S
from host_shim.vhost_user.connections import MAX_CONNECTIONS, WINDOW
from host_shim.vhost_user.packet import HEADER, Header
from host_shim.vhost_user.protocol import Feature

from .fake_driver import GUEST_CID, BackendProcess, FakeDriver, booted


@pytest.fixture(scope="module")
def backend() -> Iterator[BackendProcess]:
    with tempfile.TemporaryDirectory() as directory:
        process = BackendProcess(Path(directory))
        yield process
        assert process.stop() == ""  # nothing that a good guest does is worth a line


@pytest.fixture
def guest(backend: BackendProcess) -> Iterator[FakeDriver]:
    with booted(backend) as driver:
        yield driver


@pytest.fixture(scope="module")
def listener(backend: BackendProcess) -> Iterator[socket.socket]:
    with backend.listen(9000) as listener:
        yield listener


def host_end(listener: socket.socket) -> socket.socket:
    host, _ = listener.accept()
    host.settimeout(5)
    return host


def receive_exactly(guest: FakeDriver, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        header, payload = guest.receive()
        assert header.op in (packet.RW, packet.CREDIT_UPDATE)
        received += payload
    return bytes(received)


@pytest.mark.parametrize("cid", [2, 3])
def test_the_parent_answers_at_the_cid_that_the_guest_dialled(
    guest: FakeDriver, listener: socket.socket, cid: int
) -> None:
    answer = guest.connect(1024, 9000, dst_cid=cid)
    assert (answer.src_cid, answer.dst_cid, answer.src_port, answer.dst_port) == (cid, GUEST_CID, 9000, 1024)
    assert answer.buf_alloc == WINDOW
    with host_end(listener) as host:
        guest.send(packet.RW, 1024, 9000, b"\xb7", dst_cid=cid)
        assert host.recv(10) == b"\xb7"
        host.sendall(b"\xb7")
        header, payload = guest.receive()
        assert (header.src_cid, payload) == (cid, b"\xb7")


@pytest.mark.parametrize("port", [1, 5000, 9999, 0xFFFF_FFFF])
def test_a_port_where_nobody_listens_is_reset_at_once(guest: FakeDriver, port: int) -> None:
    # 5000 is the guest's own: dialling it must not come back to the guest.
    guest.send(packet.REQUEST, 1024, port)
    header = guest.expect(packet.RST)
    assert (header.src_port, header.dst_port) == (port, 1024)


@pytest.mark.parametrize("changes", [{"dst_cid": 1}, {"dst_cid": 77}, {"type": 2}])
def test_other_cids_and_types_are_reset(guest: FakeDriver, listener: socket.socket, changes: dict[str, int]) -> None:
    guest.send(packet.REQUEST, 1024, 9000, b"", **changes)
    header = guest.expect(packet.RST)
    assert header.src_cid == changes.get("dst_cid", 3)


def test_a_stale_socket_file_is_reset_at_once(guest: FakeDriver, backend: BackendProcess) -> None:
    backend.listen(9100).close()
    guest.send(packet.REQUEST, 1024, 9100)
    guest.expect(packet.RST)


def test_the_host_opens_a_port_of_the_guest(guest: FakeDriver, backend: BackendProcess) -> None:
    with backend.dial(5000) as host:
        host.sendall(b"early")
        request = guest.accept()
        assert (request.src_cid, request.dst_cid, request.dst_port) == (3, GUEST_CID, 5000)
        assert receive_exactly(guest, 5) == b"early"
        guest.send(packet.RW, 5000, request.src_port, b"answer")
        assert host.recv(10) == b"answer"


def test_the_host_hears_at_once_that_the_guest_refuses(guest: FakeDriver, backend: BackendProcess) -> None:
    with backend.dial(5000) as host:
        request = guest.expect(packet.REQUEST)
        guest.send(packet.RST, 5000, request.src_port)
        assert host.recv(1) == b""


def test_the_host_is_refused_while_no_guest_is_there(backend: BackendProcess) -> None:
    with backend.dial(5000) as host:
        assert host.recv(1) == b""


def test_bytes_arrive_whole_both_ways(guest: FakeDriver, listener: socket.socket) -> None:
    data = os.urandom(200_000)
    guest.connect(1024, 9000)
    with host_end(listener) as host:
        for at in range(0, len(data), 10_000):
            guest.send(packet.RW, 1024, 9000, data[at : at + 10_000])
        got = bytearray()
        while len(got) < len(data):
            got += host.recv(65536)
        assert got == data
        host.sendall(data)
        assert receive_exactly(guest, len(data)) == data


def test_a_guest_that_is_asked_for_no_kick_is_heard_by_the_clock(guest: FakeDriver, listener: socket.socket) -> None:
    guest.connect(1024, 9000)
    with host_end(listener) as host:
        for _ in range(20):  # much and slowly: from 64 KiB on the ring is looked at every millisecond
            guest.send(packet.RW, 1024, 9000, bytes(4096))
            assert len(host.recv(4096, socket.MSG_WAITALL)) == 4096
        guest.send(packet.RW, 1024, 9000, b"nobody is kicked", kick=False)
        assert host.recv(100) == b"nobody is kicked"
        time.sleep(0.1)  # the clock finds nothing, and ends
        assert guest.transmit_ring.kick_wanted_at == guest.transmit_ring.filled


def test_a_header_may_be_cut_in_two(guest: FakeDriver, listener: socket.socket) -> None:
    guest.connect(1024, 9000)
    with host_end(listener) as host:
        header = Header(GUEST_CID, 3, 1024, 9000, 5, 1, packet.RW, 0, 1000, 0)
        for cut in (1, 43, 44, 46):
            guest.transmit(HEADER.pack(*header) + b"hello", cut=cut)
            assert host.recv(10) == b"hello"


def test_a_slow_host_holds_the_guest_by_credit_and_loses_nothing(guest: FakeDriver, listener: socket.socket) -> None:
    guest.connect(1024, 9000)
    data = os.urandom(16_000)
    with host_end(listener) as host:
        sent = forwarded = 0
        while sent - forwarded + len(data) <= WINDOW:
            guest.send(packet.RW, 1024, 9000, data)
            sent += len(data)
            while not guest.quiet(0.001):
                forwarded = guest.expect(packet.CREDIT_UPDATE).fwd_cnt
        assert 0 < forwarded < sent  # the kernel's buffer took some, the backend holds the rest
        guest.send(packet.CREDIT_REQUEST, 1024, 9000)
        assert sent - guest.expect(packet.CREDIT_UPDATE).fwd_cnt > WINDOW // 2
        got = bytearray()
        while len(got) < sent:
            got += host.recv(65536)
        assert got == data * (sent // len(data))
        while forwarded < sent - WINDOW // 4:
            forwarded = guest.expect(packet.CREDIT_UPDATE).fwd_cnt


def test_the_host_is_held_by_the_guests_credit(guest: FakeDriver, listener: socket.socket) -> None:
    guest.connect(1024, 9000, buf_alloc=3000)
    with host_end(listener) as host:
        host.sendall(b"x" * 10_000)
        assert len(receive_exactly(guest, 3000)) == 3000
        assert guest.quiet()
        guest.send(packet.CREDIT_UPDATE, 1024, 9000, b"", buf_alloc=3000, fwd_cnt=2999)
        assert len(receive_exactly(guest, 2999)) == 2999
        assert guest.quiet()
        # Credit that cannot be: never more than nothing.
        guest.send(packet.CREDIT_UPDATE, 1024, 9000, b"", buf_alloc=3000, fwd_cnt=6000)
        guest.send(packet.CREDIT_UPDATE, 1024, 9000, b"", buf_alloc=0, fwd_cnt=5999)
        assert guest.quiet()
        guest.send(packet.CREDIT_UPDATE, 1024, 9000, b"", buf_alloc=1 << 20, fwd_cnt=5999)
        receive_exactly(guest, 4001)


def test_a_guest_without_buffers_delays_and_loses_nothing(backend: BackendProcess, listener: socket.socket) -> None:
    with booted(backend, buffers=2) as guest:
        guest.connect(1024, 9000)
        with host_end(listener) as host:
            data = os.urandom(100_000)
            host.sendall(data)
            assert receive_exactly(guest, len(data)) == data


def test_the_guest_closes_its_half_and_still_hears(guest: FakeDriver, listener: socket.socket) -> None:
    guest.connect(1024, 9000)
    with host_end(listener) as host:
        guest.send(packet.RW, 1024, 9000, b"question")
        guest.send(packet.SHUTDOWN, 1024, 9000, flags=packet.SHUTDOWN_SEND)
        assert host.recv(100) == b"question"
        assert host.recv(100) == b""
        host.sendall(b"answer")
        assert receive_exactly(guest, 6) == b"answer"
    assert guest.expect(packet.SHUTDOWN).flags == packet.SHUTDOWN_BOTH


def test_the_host_closes_its_half_and_still_hears(guest: FakeDriver, backend: BackendProcess) -> None:
    with backend.dial(5000) as host:
        host.sendall(b"question")
        host.shutdown(socket.SHUT_WR)  # before the guest has even answered
        port = guest.accept().src_port
        assert receive_exactly(guest, 8) == b"question"
        assert guest.expect(packet.SHUTDOWN).flags == packet.SHUTDOWN_SEND
        guest.send(packet.RW, 5000, port, b"answer")
        assert host.recv(100) == b"answer"
        guest.send(packet.SHUTDOWN, 5000, port, flags=packet.SHUTDOWN_BOTH)
        guest.expect(packet.RST)
        assert host.recv(100) == b""


def test_what_the_host_sent_before_it_closed_reaches_the_guest_first(
    guest: FakeDriver, listener: socket.socket
) -> None:
    guest.connect(1024, 9000, buf_alloc=50_000)
    with host_end(listener) as host:
        host.sendall(b"x" * 80_000)
    receive_exactly(guest, 50_000)
    assert guest.quiet()
    guest.send(packet.CREDIT_UPDATE, 1024, 9000, b"", fwd_cnt=50_000)
    receive_exactly(guest, 30_000)
    assert guest.expect(packet.SHUTDOWN).flags == packet.SHUTDOWN_BOTH


def test_a_guest_that_closes_is_reset_at_once_and_its_last_bytes_reach_a_slow_host(
    guest: FakeDriver, listener: socket.socket
) -> None:
    guest.connect(1024, 9000)
    with host_end(listener) as host:
        data = os.urandom(15_000)
        for _ in range(17):
            guest.send(packet.RW, 1024, 9000, data)
        guest.send(packet.SHUTDOWN, 1024, 9000, flags=packet.SHUTDOWN_BOTH)
        guest.expect(packet.RST)
        guest.connect(1024, 9000)  # the same ports again, while the old bytes are on their way
        with host_end(listener):
            got = bytearray()
            while chunk := host.recv(65536):
                got += chunk
                time.sleep(0.001)
            assert got == data * 17


def test_a_host_that_stops_reading_is_told_to_the_guest(guest: FakeDriver, listener: socket.socket) -> None:
    guest.connect(1024, 9000)
    with host_end(listener) as host:
        host.shutdown(socket.SHUT_RD)
        guest.send(packet.RW, 1024, 9000, b"unheard")
        assert guest.expect(packet.SHUTDOWN).flags == packet.SHUTDOWN_RECEIVE
        host.sendall(b"still talking")
        receive_exactly(guest, 13)


def test_a_guest_that_stops_reading_is_told_to_the_host(guest: FakeDriver, listener: socket.socket) -> None:
    guest.connect(1024, 9000)
    with host_end(listener) as host:
        guest.send(packet.SHUTDOWN, 1024, 9000, flags=packet.SHUTDOWN_RECEIVE)
        assert guest.quiet()
        with pytest.raises(BrokenPipeError):
            host.sendall(b"unheard")
        guest.send(packet.RW, 1024, 9000, b"last words")
        assert host.recv(100) == b"last words"
    assert guest.expect(packet.SHUTDOWN).flags == packet.SHUTDOWN_BOTH


def test_a_host_that_closes_with_bytes_unread_resets_the_guest(guest: FakeDriver, listener: socket.socket) -> None:
    guest.connect(1024, 9000)
    host = host_end(listener)
    guest.send(packet.RW, 1024, 9000, b"unread")
    host.close()
    guest.expect(packet.RST)


def test_a_full_backlog_of_the_host_is_waited_for(guest: FakeDriver, backend: BackendProcess) -> None:
    with backend.listen(9200, backlog=0) as listener:
        guest.connect(1024, 9200)
        guest.send(packet.REQUEST, 1025, 9200)
        guest.send(packet.REQUEST, 1026, 9200)
        assert guest.quiet()
        guest.send(packet.SHUTDOWN, 1026, 9200, flags=3)  # does not want to wait any more
        guest.expect(packet.RST)
        with host_end(listener), host_end(listener) as host:
            assert guest.expect(packet.RESPONSE).dst_port == 1025
            host.sendall(b"x")
            receive_exactly(guest, 1)


def test_packets_to_unknown_connections_are_reset_and_resets_are_not(guest: FakeDriver) -> None:
    for op in (packet.RW, packet.SHUTDOWN, packet.CREDIT_UPDATE, packet.CREDIT_REQUEST, packet.RESPONSE):
        guest.send(op, 1024, 9000, b"x" if op == packet.RW else b"")
        guest.expect(packet.RST)
    guest.send(packet.RST, 1024, 9000)
    assert guest.quiet()


def test_three_hundred_streams_each_way_at_once(backend: BackendProcess, listener: socket.socket) -> None:
    with booted(backend, buffers=200) as guest:
        dialled, accepted = [], []
        for port in range(300):
            guest.connect(10_000 + port, 9000)
            dialled.append(host_end(listener))
            accepted.append(backend.dial(5000))
            guest.accept()
        for index, host in enumerate(dialled + accepted):
            host.sendall(index.to_bytes(2, "big"))
        seen = set()
        for _ in range(600):
            seen.add(int.from_bytes(guest.receive()[1], "big"))
        assert seen == set(range(600))
        for host in dialled + accepted:
            host.close()
        for _ in range(600):
            assert guest.expect(packet.SHUTDOWN).flags == packet.SHUTDOWN_BOTH
    backend.settle(20)


def test_one_side_cannot_take_all_connections(backend: BackendProcess) -> None:
    with booted(backend, buffers=200) as guest, backend.listen(9300, backlog=4096) as _:
        for port in range(MAX_CONNECTIONS):
            guest.connect(10_000 + port, 9300)
        guest.send(packet.REQUEST, 9_999, 9300)
        guest.expect(packet.RST)
        with backend.dial(5000) as host:
            guest.accept()
            host.sendall(b"x")
            assert receive_exactly(guest, 1) == b"x"
        guest.expect(packet.SHUTDOWN)
        guest.send(packet.RST, 10_000, 9300)
        assert guest.connect(9_999, 9300).buf_alloc < WINDOW  # the budget of large windows is used up


def test_five_hundred_short_connections_leave_nothing_behind(guest: FakeDriver, backend: BackendProcess) -> None:
    before = backend.descriptors()
    for _ in range(500):
        with backend.dial(5000):
            guest.accept()
        guest.expect(packet.SHUTDOWN)
    backend.settle(before)


def test_a_reboot_drops_connections_and_starts_afresh(
    guest: FakeDriver, listener: socket.socket, backend: BackendProcess
) -> None:
    for _ in range(3):
        guest.connect(1024, 9000)
        with host_end(listener) as host, backend.dial(5000) as other:
            guest.accept()
            guest.reset()
            assert host.recv(1) == b""
            assert other.recv(1) == b""


def test_the_guests_last_word_before_a_stop_is_heard(guest: FakeDriver, listener: socket.socket) -> None:
    guest.connect(1024, 9003 - 3)
    with host_end(listener) as host:
        header = Header(GUEST_CID, 3, 1024, 9000, 1, 1, packet.RW, 0, 1000, 0)
        at = 0x40000 + 256 * 0x1000
        raw = HEADER.pack(*header) + b"\x81"
        guest.memory[at : at + len(raw)] = raw
        guest.transmit_ring.describe(250, at, len(raw))
        guest.transmit_ring.offer(250, kick=False)
        guest.stop()
        assert host.recv(10) == b"\x81"
        assert host.recv(10) == b""
        guest.reset()


def test_a_refused_connection_is_reset_although_the_rings_stopped_meanwhile(
    backend: BackendProcess, listener: socket.socket
) -> None:
    with booted(backend, buffers=0) as guest:
        guest.send(packet.REQUEST, 1024, 9999)  # nobody listens, and there is no buffer for the reset yet
        guest.set_memory()
        for slot in range(4):
            guest.offer_buffer(slot)
        assert guest.expect(packet.RST).src_port == 9999


def send_more_than_a_host_takes(guest: FakeDriver) -> bytes:
    data = os.urandom(15_000)
    for _ in range(26):
        guest.send(packet.RW, 1024, 9000, data)
    return data * 26


def test_the_last_bytes_reach_a_slow_host_although_the_guest_powers_off(tmp_path: Path) -> None:
    """As `enclave run` starts it: the backend ends with QEMU's connection, but not before the host has all."""
    ours, theirs = socket.socketpair()
    os.set_inheritable(theirs.fileno(), True)
    backend = BackendProcess(tmp_path, "--fd", str(theirs.fileno()))
    theirs.close()
    with backend.listen(9000) as listener:
        guest = FakeDriver(ours)
        guest.negotiate()
        guest.start()
        guest.connect(1024, 9000)
        with host_end(listener) as host:
            data = send_more_than_a_host_takes(guest)
            guest.send(packet.SHUTDOWN, 1024, 9000, flags=packet.SHUTDOWN_BOTH)
            guest.expect(packet.RST)
            guest.stop()
            guest.close()
            backend.process.terminate()  # the supervisor does so once QEMU has ended
            time.sleep(0.3)
            got = bytearray()
            while part := host.recv(65536):
                got += part
            assert got == data
    assert backend.process.communicate(timeout=5) == (b"", b"")
    assert backend.process.returncode == 0


def test_a_host_that_never_takes_its_last_bytes_is_not_waited_for_long(tmp_path: Path) -> None:
    backend = BackendProcess(tmp_path)
    with backend.listen(9000) as listener, booted(backend) as guest:
        guest.connect(1024, 9000)
        with host_end(listener):
            send_more_than_a_host_takes(guest)
            guest.send(packet.SHUTDOWN, 1024, 9000, flags=packet.SHUTDOWN_BOTH)
            guest.expect(packet.RST)
            start = time.monotonic()
            backend.process.terminate()
            assert backend.process.communicate(timeout=GRACE) == (b"", b"")
            assert backend.process.returncode == 0
            assert time.monotonic() - start > LAST_S - 0.5


def test_a_host_that_writes_before_it_reads_hears_that_its_stream_has_ended(
    guest: FakeDriver, listener: socket.socket
) -> None:
    guest.connect(1024, 9000, buf_alloc=0)
    with host_end(listener) as host:
        data = send_more_than_a_host_takes(guest)
        guest.send(packet.SHUTDOWN, 1024, 9000, flags=packet.SHUTDOWN_BOTH)
        guest.expect(packet.RST)
        with pytest.raises(BrokenPipeError):
            host.sendall(bytes(4_000_000))
        got = bytearray()
        while part := host.recv(65536):
            got += part
        assert got == data


def test_a_stop_returns_the_position_of_the_first_unused_buffer(guest: FakeDriver, listener: socket.socket) -> None:
    guest.connect(1024, 9000)
    with host_end(listener) as host:
        host.sendall(b"x" * 50_000)
        receive_exactly(guest, 50_000)
        time.sleep(0.02)
        receive, transmit = guest.stop()
        used = [struct.unpack_from("<H", guest.memory, ring.used + 2)[0] for ring in guest.rings]
        assert [receive, transmit] == used
    guest.reset()


def test_new_memory_under_running_rings_changes_nothing(guest: FakeDriver, listener: socket.socket) -> None:
    guest.connect(1024, 9000)
    with host_end(listener) as host:
        for _ in range(3):
            host.sendall(b"before")
            assert receive_exactly(guest, 6) == b"before"
            guest.set_memory()
            host.sendall(b"after")
            assert receive_exactly(guest, 5) == b"after"
            guest.send(packet.RW, 1024, 9000, b"hello")
            assert host.recv(10) == b"hello"


@pytest.mark.parametrize("features", [Feature.ALL, Feature.PROTOCOL, Feature.PROTOCOL | Feature.VERSION_1])
def test_old_and_new_drivers_are_served(backend: BackendProcess, listener: socket.socket, features: int) -> None:
    with booted(backend, features=features) as guest:
        guest.connect(1024, 9000)
        with host_end(listener) as host:
            guest.send(packet.RW, 1024, 9000, b"hello")
            assert host.recv(10) == b"hello"
            host.sendall(b"x" * 20_000)
            receive_exactly(guest, 20_000)


def test_a_killed_qemu_is_followed_by_a_new_one(backend: BackendProcess, listener: socket.socket) -> None:
    for _ in range(3):
        with booted(backend) as guest:
            guest.connect(1024, 9000)
            host = host_end(listener)
        with host:
            assert host.recv(1) == b""
