# SPDX-License-Identifier: MIT
"""The device in this process, turn by turn: bounded work and bounded memory, whatever packets a guest sends."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import resource
import socket
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host_shim.vhost_user import connections, packet
from host_shim.vhost_user.connection import State
from host_shim.vhost_user.connections import MAX_CONNECTIONS, WINDOW, WINDOW_BUDGET, Connections
from host_shim.vhost_user.device import LINGER_PART, MAX_RESETS, RECEIVE_BATCH, TRANSMIT_BATCH, Device
from host_shim.vhost_user.errors import FaultLog
from host_shim.vhost_user.loop import Loop
from host_shim.vhost_user.memory import Memory, Region
from host_shim.vhost_user.packet import HEADER, HEADER_SIZE, Address, Header
from host_shim.vhost_user.virtqueue import MAX_PIECES, Layout, Virtqueue

CID = 4
QUEUE = 1024  # QEMU's
SIZE = 8 << 20
RECEIVE, TRANSMIT = 0x0, 0x10000
AVAILABLE = 16 * QUEUE
USED = (AVAILABLE + 6 + 2 * QUEUE + 3) & ~3
PACKETS = 0x20000  # one slot a descriptor of the transmit ring
SLOT = 0x800
BUFFERS = PACKETS + QUEUE * SLOT
BUFFER_SIZE = 0x1000
NEXT, WRITE, INDIRECT = 1, 2, 4


class Guest:
    """Both rings of a guest in this process's memory, and the device that serves them."""

    def __init__(self, directory: Path, *, buffers: int = QUEUE, event_idx: bool = True) -> None:
        self.raw = mmap.mmap(-1, SIZE)
        view = memoryview(self.raw)
        self.words = view.cast("H")
        self.memory = Memory([Region(0, 0, SIZE, view)])
        self.loop = Loop()
        self.log = FaultLog()
        self.connections = Connections(self.loop, str(directory / "v"), self.log, reserved=[5000])
        self.device = Device(self.connections, self.log, guest_cid=CID)
        self.queues = [
            Virtqueue(self.memory, Layout(QUEUE, at, at + AVAILABLE, at + USED), base=0, event_idx=event_idx, call=None)
            for at in (RECEIVE, TRANSMIT)
        ]
        self.sent = self.got = self.offered = 0
        self.offer(buffers)
        self.device.attach(*self.queues)

    def close(self) -> None:
        self.device.detach()
        self.device.lose_guest()
        self.loop._close_discarded()

    def offer(self, count: int) -> None:
        """Offer receive buffers; a slot is offered again only once the device has used it."""
        for _ in range(count):
            slot = self.offered % QUEUE
            at = BUFFERS + slot * BUFFER_SIZE
            struct.pack_into("<QIHH", self.raw, RECEIVE + 16 * slot, at, BUFFER_SIZE, WRITE, 0)
            struct.pack_into("<H", self.raw, RECEIVE + AVAILABLE + 4 + 2 * slot, slot)
            self.offered += 1
        self.words[(RECEIVE + AVAILABLE) // 2 + 1] = self.offered & 0xFFFF

    def put(self, raw: bytes, *, cuts: tuple[int, ...] = ()) -> None:
        """Put a packet into the transmit ring, cut at some places through an indirect table."""
        slot = self.sent % QUEUE
        at = PACKETS + slot * SLOT
        self.raw[at : at + len(raw)] = raw
        table = at + SLOT - 16 * (len(cuts) + 1)
        edges = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
        for number, (first, last) in enumerate(itertools.pairwise(edges)):
            flags = NEXT if number < len(cuts) else 0
            struct.pack_into("<QIHH", self.raw, table + 16 * number, at + first, last - first, flags, number + 1)
        struct.pack_into("<QIHH", self.raw, TRANSMIT + 16 * slot, table, 16 * (len(cuts) + 1), INDIRECT, 0)
        struct.pack_into("<H", self.raw, TRANSMIT + AVAILABLE + 4 + 2 * slot, slot)
        self.sent += 1
        self.words[(TRANSMIT + AVAILABLE) // 2 + 1] = self.sent & 0xFFFF

    def send(self, op: int, port: int = 1024, payload: bytes = b"", **changes: int) -> None:
        header = Header(CID, 3, port, 9000, len(payload), packet.STREAM, op, 0, WINDOW, 0)._replace(**changes)
        self.put(HEADER.pack(*header) + payload)

    @property
    def kick_wanted_at(self) -> int:
        """The transmit index at which the device asked for a kick."""
        return self.words[(TRANSMIT + USED) // 2 + 2 + 4 * QUEUE]

    @property
    def told_not_to_kick(self) -> bool:
        """Whether the device has set VIRTQ_USED_F_NO_NOTIFY on the transmit ring."""
        return bool(self.words[(TRANSMIT + USED) // 2])

    @property
    def taken(self) -> int:
        """Packets that the device has handed back."""
        return self.words[(TRANSMIT + USED) // 2 + 1]

    def receive(self) -> list[Header]:
        """Return the headers of the packets that have come."""
        headers = []
        while (self.words[(RECEIVE + USED) // 2 + 1] - self.got) & 0xFFFF:
            slot, length = struct.unpack_from("<II", self.raw, RECEIVE + USED + 4 + 8 * (self.got % QUEUE))
            headers.append(Header._make(HEADER.unpack_from(self.raw, BUFFERS + slot * BUFFER_SIZE)))
            assert headers[-1].length == length - HEADER_SIZE
            self.got += 1
        return headers

    def settle(self) -> None:
        """Let the device work until it has nothing to do."""
        for _ in range(10_000):
            if not self.device.service():
                self.loop._close_discarded()
                return
        raise AssertionError("the device never rests")


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture
def listener(directory: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "v_9000"))
        listener.listen(4096)
        listener.settimeout(5)
        yield listener


@pytest.fixture
def guest(directory: Path, listener: socket.socket) -> Iterator[Guest]:
    guest = Guest(directory)
    yield guest
    guest.close()


def test_a_full_ring_is_served_in_turns(guest: Guest) -> None:
    for port in range(QUEUE):
        guest.send(packet.CREDIT_UPDATE, port)
    turns = 0
    while guest.device.service():
        turns += 1
        assert guest.taken <= turns * TRANSMIT_BATCH
        assert len(guest.receive()) <= MAX_RESETS
    assert guest.taken == QUEUE
    assert turns >= QUEUE // TRANSMIT_BATCH - 1


def test_many_streams_are_served_in_turns(guest: Guest, listener: socket.socket) -> None:
    hosts = []
    for port in range(100):
        guest.send(packet.REQUEST, port)
        guest.settle()
        hosts.append(listener.accept()[0])
    guest.receive()
    for number, host in enumerate(hosts):
        with host:
            host.sendall(b"x" * (number + 1))
    for connection in list(guest.connections._table.values()):
        connection.readable = True
        guest.connections.wake(connection)
    guest.device.service()
    assert len(guest.receive()) <= RECEIVE_BATCH
    guest.settle()
    assert {header.length for header in guest.receive() if header.op == packet.RW} <= set(range(1, 101))


def test_a_run_of_packets_reaches_the_host_in_order_and_in_one_piece(guest: Guest, listener: socket.socket) -> None:
    for port in (1, 2):
        guest.send(packet.REQUEST, port)
    guest.settle()
    first, second = listener.accept()[0], listener.accept()[0]
    with first, second:
        for number in range(40):
            guest.send(packet.RW, 1 + (number % 10 == 9), bytes([number]) * 5)
        guest.send(packet.SHUTDOWN, 1, flags=packet.SHUTDOWN_SEND)
        guest.settle()
        numbers = [bytes([number]) * 5 for number in range(40)]
        assert first.recv(1000) == b"".join(n for at, n in enumerate(numbers) if at % 10 != 9)
        assert first.recv(1000) == b""
        assert second.recv(1000) == b"".join(numbers[9::10])


@pytest.fixture
def stream(guest: Guest, listener: socket.socket) -> Iterator[socket.socket]:
    guest.send(packet.REQUEST)
    guest.settle()
    with listener.accept()[0] as host:
        host.settimeout(5)
        yield host


def send_slowly(guest: Guest, host: socket.socket, total: int, *, turn: int) -> None:
    """Let the device find `turn` KiB of one stream in the queue, again and again, and read them."""
    for _ in range(total // turn):
        for _ in range(turn):
            guest.send(packet.RW, payload=bytes(1024))
        guest.settle()
        assert len(host.recv(turn * 1024, socket.MSG_WAITALL)) == turn * 1024


def test_a_guest_that_sends_much_and_slowly_is_asked_for_no_kick(guest: Guest, stream: socket.socket) -> None:
    send_slowly(guest, stream, 63, turn=1)
    assert not guest.device.lingers
    assert guest.kick_wanted_at == guest.sent
    send_slowly(guest, stream, 1, turn=1)
    assert guest.device.lingers
    assert guest.kick_wanted_at == guest.sent - 1
    send_slowly(guest, stream, 50, turn=10)
    assert guest.device.lingers
    guest.settle()  # by the clock, and nothing is there
    assert not guest.device.lingers
    assert guest.kick_wanted_at == guest.sent


def test_a_guest_that_fills_its_queue_fast_is_never_kept_waiting(guest: Guest, stream: socket.socket) -> None:
    send_slowly(guest, stream, 320, turn=32)
    assert not guest.device.lingers


def test_a_guest_in_a_dialogue_is_never_kept_waiting(guest: Guest, stream: socket.socket) -> None:
    for _ in range(100):
        send_slowly(guest, stream, 8, turn=4)
        stream.sendall(b"an answer")
        for connection in guest.connections._table.values():
            connection.readable = True
            guest.connections.wake(connection)
        guest.settle()
    send_slowly(guest, stream, 8, turn=8)
    assert not guest.device.lingers


def test_a_guest_that_waits_for_room_in_its_queue_is_never_kept_waiting(guest: Guest, stream: socket.socket) -> None:
    send_slowly(guest, stream, 80, turn=1)
    assert guest.device.lingers
    for _ in range(QUEUE // LINGER_PART):
        guest.send(packet.RW, payload=b"x")
    guest.settle()
    assert not guest.device.lingers
    assert guest.kick_wanted_at == guest.sent


def test_without_event_idx_a_guest_that_sends_much_and_slowly_is_told_not_to_kick(tmp_path: Path) -> None:
    with contextlib.closing(Guest(tmp_path, event_idx=False)) as guest, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "v_9000"))
        listener.listen()
        guest.send(packet.REQUEST)
        guest.settle()
        with listener.accept()[0] as host:
            send_slowly(guest, host, 80, turn=8)
            assert guest.device.lingers
            assert guest.told_not_to_kick
            guest.settle()
            assert not guest.device.lingers
            assert not guest.told_not_to_kick


def test_what_a_lingering_guest_sent_last_is_not_lost_when_it_stops(guest: Guest, stream: socket.socket) -> None:
    send_slowly(guest, stream, 80, turn=8)
    assert guest.device.lingers
    for number in range(75):
        guest.send(packet.RW, payload=bytes([number]) * 100)
        if number == 69:
            guest.device.service()  # the ring's index as it is now; five more come unseen
    guest.device.detach()
    stream.settimeout(0)
    assert stream.recv(8000) == b"".join(bytes([number]) * 100 for number in range(75))


def test_a_guest_that_stops_while_it_is_polled_is_asked_for_kicks_when_it_comes_again(
    guest: Guest, stream: socket.socket
) -> None:
    send_slowly(guest, stream, 80, turn=8)
    assert guest.device.lingers
    guest.device.detach()
    assert not guest.device.lingers
    guest.device.attach(*guest.queues)
    assert not guest.device.lingers
    guest.settle()
    assert guest.kick_wanted_at == guest.sent


def test_a_guest_whose_resets_wait_is_not_polled(guest: Guest, stream: socket.socket) -> None:
    guest.device._resets.extend([Address(3, 9000, 7)] * MAX_RESETS)
    guest.device._lingers = True
    guest.device._receive(guest.queues[1], TRANSMIT_BATCH)
    assert not guest.device.lingers


def test_a_polled_guest_that_breaks_its_ring_is_polled_no_more(guest: Guest, stream: socket.socket) -> None:
    send_slowly(guest, stream, 80, turn=8)
    assert guest.device.lingers
    guest.words[(TRANSMIT + AVAILABLE) // 2 + 1] = (guest.sent + QUEUE + 1) & 0xFFFF
    guest.device.service()
    assert not guest.device.running
    assert not guest.device.lingers


def test_packets_are_sent_on_before_their_stream_is_reset(guest: Guest, listener: socket.socket) -> None:
    guest.send(packet.REQUEST)
    guest.settle()
    host, _ = listener.accept()
    with host:
        guest.send(packet.RW, payload=b"last words")
        guest.send(packet.RST)
        guest.settle()
        assert host.recv(100) == b"last words"
        assert host.recv(100) == b""


def test_connections_that_came_and_went_leave_nothing_behind(guest: Guest, listener: socket.socket) -> None:
    """Each pair costs no reset and no place: kept until its turn, it would be kept for ever where nothing is taken."""
    for _ in range(100):
        for port in range(32):
            guest.send(packet.REQUEST, port)
            guest.send(packet.RST, port)
        guest.device.service()
        guest.loop._close_discarded()
        with contextlib.suppress(BlockingIOError):
            while True:
                listener.setblocking(False)
                listener.accept()[0].close()
    assert len(guest.connections) == 0
    assert len(guest.connections.ready) == 0


def test_what_the_guest_has_never_heard_of_is_given_up_without_a_word(tmp_path: Path) -> None:
    with contextlib.closing(Guest(tmp_path, buffers=0)) as guest, pytest.MonkeyPatch.context() as patch:
        patch.setattr(connections, "ANSWER_S", 0.0)
        for _ in range(3 * MAX_RESETS):
            ours, theirs = socket.socketpair()
            with theirs:
                assert guest.connections.accept(ours, 5000)
                guest.device.service()
                guest.loop._close_discarded()
        assert len(guest.connections) == len(guest.connections.ready) == len(guest.device._resets) == 0


def test_a_buffer_that_is_offered_twice_stops_the_device_and_not_the_backend(tmp_path: Path) -> None:
    """The guest shows the one buffer of its ring again before it was handed back."""
    with contextlib.closing(Guest(tmp_path)) as guest, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "v_9000"))
        listener.listen()
        guest.send(packet.REQUEST)
        guest.settle()
        with listener.accept()[0]:
            assert guest.device._inbox is not None
            assert guest.device._inbox.reserve(QUEUE)  # all are with the device now
            guest.offer(2)  # one for the answer that it has got, and one too many
            for connection in guest.connections._table.values():
                connection.owe_credit()
                guest.connections.wake(connection)
            guest.device._inbox._parked.clear()
            guest.device.service()
            assert not guest.device.running


def test_a_fault_of_ours_stops_the_device_and_not_the_backend(
    guest: Guest, stream: socket.socket, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("secret")

    monkeypatch.setattr(guest.device, "_take", fail)
    guest.send(packet.RW, payload=b"x")
    assert guest.device.service() is False
    assert not guest.device.running
    said = capfd.readouterr().err
    assert "a fault of this program's own: ValueError" in said
    assert "secret" not in said


def test_heavy_chains_take_their_turns_like_others(guest: Guest, stream: socket.socket) -> None:
    cuts = tuple(range(HEADER_SIZE, HEADER_SIZE + 60))
    header = HEADER.pack(*Header(CID, 3, 1024, 9000, 100, packet.STREAM, packet.RW, 0, WINDOW, 0))
    for number in range(200):
        guest.put(header + bytes([number]) * 100, cuts=cuts)
    before = guest.taken
    assert guest.device.service()
    assert guest.taken - before <= MAX_PIECES // len(cuts) + 1
    guest.settle()
    assert stream.recv(20_000, socket.MSG_WAITALL) == b"".join(bytes([number]) * 100 for number in range(200))


@pytest.mark.parametrize("broken", [(PACKETS, 100, WRITE, 0), (SIZE, 100, 0, 0), (PACKETS, 7, INDIRECT, 0)])
@pytest.mark.parametrize("stops", [False, True], ids=["at work", "as it stops"])
def test_what_came_before_a_broken_chain_is_passed_on(
    guest: Guest, stream: socket.socket, broken: tuple[int, int, int, int], stops: bool
) -> None:
    guest.send(packet.RW, payload=b"before")
    slot = guest.sent % QUEUE
    guest.send(packet.RW, payload=b"broken")
    struct.pack_into("<QIHH", guest.raw, TRANSMIT + 16 * slot, *broken)
    if stops:
        guest.device.detach()
    else:
        guest.settle()
    assert not guest.device.running
    assert stream.recv(100) == b"before"


def test_queues_that_are_served_anew_are_not_polled(guest: Guest, stream: socket.socket) -> None:
    send_slowly(guest, stream, 60, turn=4)
    guest.device.detach()
    guest.device.attach(*guest.queues)
    send_slowly(guest, stream, 8, turn=4)
    assert not guest.device.lingers, "what was sent before does not count"


def test_ports_run_out_without_harm(guest: Guest) -> None:
    for port in range(MAX_CONNECTIONS + 50):
        guest.send(packet.REQUEST, port)
        guest.settle()
        guest.offer(len(guest.receive()))
    assert len(guest.connections) == MAX_CONNECTIONS
    held = sum(connection.window for connection in guest.connections._table.values())
    assert held <= WINDOW_BUDGET + MAX_CONNECTIONS * 32 * 1024


def test_a_host_without_descriptors_refuses_and_goes_on(guest: Guest, listener: socket.socket) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
    try:
        held: list[socket.socket] = []
        with contextlib.suppress(OSError):
            while True:
                held.append(socket.socket(socket.AF_UNIX))
        guest.send(packet.REQUEST, 7)
        guest.settle()
        assert [header.op for header in guest.receive()] == [packet.RST]
    finally:
        for one in held:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    guest.send(packet.REQUEST, 7)
    guest.settle()
    assert [header.op for header in guest.receive()] == [packet.RESPONSE]


def test_a_storm_of_resets_and_lies_about_credit_cost_no_memory(guest: Guest, listener: socket.socket) -> None:
    guest.send(packet.REQUEST, buf_alloc=0xFFFF_FFFF)
    guest.settle()
    host, _ = listener.accept()
    with host:
        for number in range(500):
            guest.send(packet.RST, number + 2000)
            guest.send(packet.CREDIT_UPDATE, buf_alloc=number, fwd_cnt=(number * 0x1234567) & 0xFFFF_FFFF)
        guest.settle()
        assert len(guest.connections) == 1
        assert [header.op for header in guest.receive()] == [packet.RESPONSE]
        host.sendall(b"x" * 100)
        connection = guest.connections.get((3, 9000, 1024))
        assert connection is not None
        assert connection.credit >= 0


HEADERS = st.builds(
    Header,
    src_cid=st.sampled_from((CID, CID, CID, CID, 3, 1 << 63)),
    dst_cid=st.sampled_from((2, 3, 3, 3, 1, 0, (1 << 64) - 1)),
    src_port=st.integers(0, 3),
    dst_port=st.sampled_from((9000, 9000, 9000, 5000, 1 << 30, 0xFFFF_FFFF)),
    length=st.sampled_from((0, 5, 5, 100, 1000, 0xFFFF_FFFF)),
    type=st.sampled_from((1, 1, 1, 1, 2, 0)),
    op=st.sampled_from((*range(9), packet.REQUEST, packet.RW, packet.RW, packet.RW, 0xFFFF)),
    flags=st.sampled_from((0, 0, 1, 2, 3, 0xFFFF_FFFF)),
    buf_alloc=st.sampled_from((0, 10, WINDOW, 0xFFFF_FFFF)),
    fwd_cnt=st.sampled_from((0, 5, 0x7FFF_FFFF, 0xFFFF_FFFF)),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("packet"), HEADERS, st.booleans(), st.tuples(st.integers(0, 60), st.integers(0, 60))),
        st.tuples(st.sampled_from(("serve", "host sends", "host closes", "host opens", "buffers"))),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_any_packets_leave_the_host_whole(steps: list[tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory() as name, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{name}/v_9000")
        listener.listen(64)
        listener.setblocking(False)
        guest = Guest(Path(name), buffers=20)
        hosts: list[socket.socket] = []
        try:
            for step in steps:
                match step:
                    case ("packet", Header() as header, bool(honest), tuple(cuts)):
                        size = min(header.length, 1000)
                        raw = HEADER.pack(*(header._replace(length=size) if honest else header)) + bytes(size)
                        guest.put(raw, cuts=cuts)
                    case ("serve",):
                        guest.device.service()
                    case ("buffers",):
                        guest.offer(len(guest.receive()))
                    case ("host sends",):
                        for host in hosts:
                            with contextlib.suppress(OSError):
                                host.send(b"x" * 3000)
                        for connection in guest.connections._table.values():
                            connection.readable = True
                            guest.connections.wake(connection)
                    case ("host closes",) if hosts:
                        hosts.pop().close()
                    case ("host opens",):
                        ours, theirs = socket.socketpair()
                        ours.setblocking(False)
                        theirs.setblocking(False)
                        hosts.append(theirs)
                        if not guest.connections.accept(ours, 5000):
                            ours.close()
                with contextlib.suppress(BlockingIOError):
                    hosts.append(listener.accept()[0])
                for connection in guest.connections._table.values():
                    assert len(connection.backlog) <= connection.window
                    assert connection.state is not State.CLOSED
                    assert connection.credit >= 0
                assert len(guest.device._resets) <= MAX_RESETS + 1
            assert guest.device.running  # packets alone never stop it
            for _ in range(50):
                guest.offer(len(guest.receive()))
                guest.device.service()
            assert guest.taken == guest.sent & 0xFFFF
        finally:
            guest.close()
            for host in hosts:
                host.close()
            for connection in list(guest.connections._table.values()):
                guest.connections.close(connection)
            guest.loop._close_discarded()
        assert len(guest.connections) == 0
