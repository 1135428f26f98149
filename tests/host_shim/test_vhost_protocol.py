# SPDX-License-Identifier: MIT
"""The backend's process and its vhost-user socket: good and bad frontends, socket files, signals, hostile guests."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from host_shim.vhost_user import packet
from host_shim.vhost_user.connections import WINDOW
from host_shim.vhost_user.device import MAX_RESETS
from host_shim.vhost_user.packet import HEADER, Header
from host_shim.vhost_user.protocol import (
    CONFIG,
    MAX_PAYLOAD,
    NO_FD,
    RING_ADDRESS,
    RING_STATE,
    U64,
    Channel,
    Request,
)

from .fake_driver import GUEST_CID, RING, WRITE, BackendProcess, FakeDriver, booted, pack_message, pack_regions

pytestmark = pytest.mark.faults


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[BackendProcess]:
    process = BackendProcess(tmp_path)
    yield process
    if process.process.poll() is None:
        process.stop()


def assert_serves(backend: BackendProcess, guest: FakeDriver) -> None:
    """A stream works, whatever came before."""
    with backend.dial(5000) as host:
        port = guest.accept().src_port
        guest.send(packet.RW, 5000, port, b"alive")
        assert host.recv(10) == b"alive"
    guest.expect(packet.SHUTDOWN)


# Messages


@pytest.mark.parametrize("step", [1, 5, 12, 13])
def test_a_message_may_come_in_pieces(step: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        channel = Channel(ours)
        raw = pack_message(Request.SET_VRING_NUM, RING_STATE.pack(1, 256)) + pack_message(Request.SET_OWNER, b"")
        seen = []
        for at in range(0, len(raw), step):
            theirs.sendall(raw[at : at + step])
            while (message := channel.receive()) is not None:
                seen.append((message.request, message.payload))
        assert seen == [(Request.SET_VRING_NUM, RING_STATE.pack(1, 256)), (Request.SET_OWNER, b"")]


BAD_MESSAGES = {
    "unknown request": pack_message(99, b""),
    "wrong version": struct.pack("=III", Request.SET_OWNER, 2, 0),
    "a reply": struct.pack("=III", Request.SET_OWNER, 5, 0),
    "too large": struct.pack("=III", Request.SET_OWNER, 1, MAX_PAYLOAD + 1),
    "short payload": pack_message(Request.SET_FEATURES, b"1234"),
    "feature not offered": pack_message(Request.SET_FEATURES, U64.pack(1)),
    "protocol feature not offered": pack_message(Request.SET_PROTOCOL_FEATURES, U64.pack(1)),
    "third ring": pack_message(Request.SET_VRING_NUM, RING_STATE.pack(2, 256)),
    "kick without descriptor": pack_message(Request.SET_VRING_KICK, U64.pack(0)),
    "memory without descriptors": pack_message(Request.SET_MEM_TABLE, pack_regions([(0, 4096, 0, 0)])),
    "configuration beyond its end": pack_message(Request.GET_CONFIG, CONFIG.pack(4, 8, 0) + bytes(8)),
    "configuration without a question": pack_message(Request.GET_CONFIG, b""),
    "base of a third ring": pack_message(Request.GET_VRING_BASE, RING_STATE.pack(7, 0)),
}


def test_a_bad_frontend_is_cut_off_and_the_next_is_served(backend: BackendProcess) -> None:
    for name, raw in BAD_MESSAGES.items():
        with backend.connect() as frontend:
            frontend.settimeout(2)
            frontend.sendall(raw)
            assert frontend.recv(1) == b"", name
    with booted(backend) as guest:
        assert_serves(backend, guest)
    backend.settle(20)


@pytest.mark.parametrize("size", [0, 3, 100, 65536])
def test_a_ring_whose_size_is_none_costs_the_guest_its_device_until_it_names_another(
    backend: BackendProcess, size: int
) -> None:
    """QEMU passes on what the guest wrote into QUEUE_NUM: it is not QEMU that errs."""
    with booted(backend) as guest:
        guest.stop()
        guest.tell(Request.SET_VRING_NUM, RING_STATE.pack(0, size))
        with backend.dial(5000) as host:
            assert host.recv(1) == b"", "nobody is there"
        guest.reset_rings()
        guest.start()
        assert_serves(backend, guest)


def test_a_call_descriptor_that_cannot_be_written_to_is_qemus_own_fault(backend: BackendProcess) -> None:
    place = os.open("/", os.O_PATH)
    with backend.connect() as connection:
        guest = FakeDriver(connection)
        guest.negotiate()
        with pytest.raises((EOFError, ConnectionError)):
            guest.tell(Request.SET_VRING_CALL, U64.pack(0), fds=(place,))
        guest.close()
    os.close(place)
    with booted(backend) as guest:
        assert_serves(backend, guest)


def test_a_qemu_that_never_stops_talking_keeps_nobody_from_ending_the_backend(tmp_path: Path) -> None:
    backend = BackendProcess(tmp_path)
    with backend.connect() as connection:
        FakeDriver(connection).negotiate()
        flood = pack_message(Request.SET_OWNER, b"") * 2000

        def talk() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection.sendall(flood)

        talker = threading.Thread(target=talk)
        talker.start()
        time.sleep(0.2)
        backend.stop()
        talker.join(5)
        assert not talker.is_alive()


def test_random_messages_are_survived(backend: BackendProcess) -> None:
    seed = random.Random(1)
    for _ in range(150):
        with backend.connect() as frontend:
            for _ in range(seed.randrange(1, 6)):
                request = seed.randrange(0, 30)
                payload = seed.randbytes(seed.choice((0, 8, 8, 8, 12, 20, 40, 72)))
                if seed.random() < 0.7 and len(payload) >= 8:
                    payload = struct.pack("=II", seed.randrange(2), seed.randrange(1 << 12)) + payload[8:]
                fds = [backend.process.stdout.fileno()] * seed.choice((0, 0, 1, 2)) if backend.process.stdout else []
                try:
                    socket.send_fds(frontend, [pack_message(request, payload)], fds)
                except OSError:
                    break
    with booted(backend) as guest:
        assert_serves(backend, guest)
    backend.settle(20)


def test_a_second_qemu_is_turned_away_and_the_first_goes_on(backend: BackendProcess) -> None:
    with booted(backend) as guest:
        with backend.connect() as second:
            second.settimeout(2)
            assert second.recv(1) == b""
        assert_serves(backend, guest)


def test_rings_without_kick_and_call_descriptors_are_polled(backend: BackendProcess) -> None:
    with booted(backend) as guest:
        for ring in guest.rings:
            guest.tell(Request.SET_VRING_KICK, U64.pack(ring.index | NO_FD))
            guest.tell(Request.SET_VRING_CALL, U64.pack(ring.index | NO_FD))
        assert_serves(backend, guest)


def test_a_call_descriptor_that_is_no_eventfd_hurts_nobody(backend: BackendProcess) -> None:
    with booted(backend) as guest:
        for ring in guest.rings:
            guest.tell(Request.SET_VRING_CALL, U64.pack(ring.index), fds=(guest.memfd,))
        assert_serves(backend, guest)


# Hostile guests


def test_bad_packets_cost_their_connection_and_are_logged_once(backend: BackendProcess) -> None:
    good = Header(GUEST_CID, 3, 1024, 9000, 0, 1, packet.RW, 0, WINDOW, 0)
    with backend.listen(9000) as listener, booted(backend) as guest:
        for header, payload in [
            (good._replace(op=0), b""),
            (good._replace(op=8), b""),
            (good._replace(op=packet.REQUEST), b""),
            (good._replace(op=packet.RESPONSE), b""),
            (good._replace(op=packet.CREDIT_UPDATE, length=3), b"abc"),
            (good._replace(length=4), b"abc"),
            (good._replace(length=0xFFFF_FFFF), b"abc"),
        ] * 2:
            guest.connect(1024, 9000)
            with listener.accept()[0] as host:
                guest.transmit(HEADER.pack(*header) + payload)
                guest.expect(packet.RST)
                assert host.recv(10) == b""
        guest.transmit(HEADER.pack(*good._replace(src_cid=5)))
        assert guest.quiet()
        assert_serves(backend, guest)
    log = backend.stop().splitlines()
    assert len(log) == len(set(log)) == 5
    assert all(line.startswith("vhost-user-vsock: a ") for line in log)


def test_a_guest_that_exceeds_its_credit_loses_the_connection(backend: BackendProcess) -> None:
    with backend.listen(9000) as listener, booted(backend) as guest:
        guest.connect(1024, 9000)
        with listener.accept()[0] as host:
            # Twice what the kernel's buffer and the window hold; the host reads nothing.
            for _ in range(80):
                guest.send(packet.RW, 1024, 9000, bytes(16_000))
            guest.expect(packet.RST)
            got = 0
            while chunk := host.recv(65536):
                got += len(chunk)
            assert WINDOW // 2 < got < 80 * 16_000
        while not guest.quiet(0.005):
            guest.receive()  # resets for what it sent after that
        assert_serves(backend, guest)
    assert "exceeds its credit" in backend.stop()


def test_a_guest_that_never_reads_cannot_make_resets_pile_up(backend: BackendProcess) -> None:
    with booted(backend, buffers=0) as guest:
        sent = 0
        guest.buffers, guest.patience = 64, 0.2
        with contextlib.suppress(TimeoutError):
            while sent < 3 * MAX_RESETS:
                guest.send(packet.RW, 1024 + sent, 9000, b"x")
                sent += 1
        assert MAX_RESETS <= sent <= MAX_RESETS + 16
        for slot in range(guest.buffers):
            guest.offer_buffer(slot)
        for _ in range(sent + 1):
            guest.expect(packet.RST)
        guest.reset()
        assert_serves(backend, guest)


def test_broken_rings_stop_the_device_until_the_guest_is_reset(backend: BackendProcess) -> None:
    with backend.listen(9000) as listener, booted(backend) as guest:
        for head, address, length, flags, count in (
            (RING + 1, 0, 50, 0, 1),
            (0, 1 << 40, 50, 0, 1),
            (0, 0, 20, 0, 1),
            (0, 0, 100, WRITE, 1),
            (0, 0, 50, 0, RING + 1),
        ):
            guest.connect(1024, 9000)
            with listener.accept()[0] as host:
                guest.transmit_ring.describe(0, address, length, flags)
                guest.transmit_ring.filled += count - 1
                guest.transmit_ring.offer(head)
                host.settimeout(2)
                assert host.recv(1) == b""
            with backend.dial(5000) as refused:
                assert refused.recv(1) == b""
            guest.reset()
            assert_serves(backend, guest)
    log = backend.stop().splitlines()
    assert all("device stops until the guest is reset" in line for line in log)
    assert len(log) == 5


@pytest.mark.parametrize("seed", [1, 2])
def test_random_rings_and_packets_are_survived(backend: BackendProcess, seed: int) -> None:
    chance = random.Random(seed)
    with backend.listen(9000, backlog=4096), booted(backend) as guest:
        for _ in range(25):
            for _ in range(chance.randrange(1, 40)):
                header = Header(
                    chance.choice((GUEST_CID, GUEST_CID, GUEST_CID, 3)), chance.choice((2, 3, 3, 9)),
                    chance.randrange(4), chance.choice((9000, 9000, 5000, 1 << 30)),
                    chance.choice((0, 0, 5, 100, 1 << 31)), chance.choice((1, 1, 1, 2)), chance.randrange(9),
                    chance.randrange(4), chance.choice((0, 1000, 0xFFFF_FFFF)), chance.choice((0, 10, 0xFFFF_FFF0)),
                )  # fmt: skip
                guest.transmit_ring.take_used()
                at = 0x200000
                raw = HEADER.pack(*header) + bytes(chance.choice((0, 5, 200)))
                guest.memory[at : at + len(raw)] = raw
                guest.transmit_ring.describe(0, at, len(raw))
                guest.transmit_ring.offer(0)
            guest.memory[: 16 * RING] = chance.randbytes(16 * RING)
            at = chance.randrange(0x1FFF0)
            guest.memory[at : at + 16] = chance.randbytes(16)
            for ring in guest.rings:
                for _ in range(chance.randrange(8)):
                    ring.offer(chance.randrange(RING + 1))
            guest.reset()
        assert_serves(backend, guest)
        assert backend.resident() < 100 << 20
    log = backend.stop()
    assert "Traceback" not in log


def test_without_descriptors_the_guest_is_refused_and_the_host_waits(backend: BackendProcess) -> None:
    pid = backend.process.pid
    with backend.listen(9000), booted(backend) as guest:
        used = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        none_left = min(number for number in range(len(used) + 1) if number not in used)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (none_left, limits[1]))
        guest.send(packet.REQUEST, 1024, 9000)
        guest.expect(packet.RST)
        with backend.dial(5000) as host:
            assert guest.quiet()
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
            port = guest.accept().src_port
            guest.send(packet.RW, 5000, port, b"alive")
            assert host.recv(10) == b"alive"
    log = backend.stop().splitlines()
    assert len(log) == 2
    assert all("out of file descriptors" in line for line in log)


def test_a_guest_that_floods_cannot_keep_the_host_from_being_served(backend: BackendProcess) -> None:
    """Packets to nowhere come as fast as a driver can write an index; a stream of the host's gets through."""
    with booted(backend) as guest:
        header = HEADER.pack(GUEST_CID, 3, 1, 1, 0, packet.STREAM, packet.RST, 0, 0, 0)
        guest.memory[0x200000 : 0x200000 + len(header)] = header
        ring = guest.transmit_ring
        for slot in range(RING):
            ring.describe(slot, 0x200000, len(header))
            struct.pack_into("<H", guest.memory, ring.available + 4 + 2 * slot, slot)
        done = threading.Event()

        def flood() -> None:
            while not done.is_set():
                shown = int(ring.words[ring.used // 2 + 1])
                ring.words[ring.available // 2 + 1] = (shown + RING - 4) & 0xFFFF
                os.eventfd_write(ring.kick, 1)

        flooding = threading.Thread(target=flood)
        flooding.start()
        try:
            for _ in range(20):
                with backend.dial(5000) as host:
                    host.sendall(b"x")
                    assert guest.expect(packet.REQUEST).dst_port == 5000
        finally:
            done.set()
            flooding.join()


# The process


def test_socket_files_are_private_and_gone_afterwards(tmp_path: Path) -> None:
    backend = BackendProcess(tmp_path, listen=(5000, 5001))
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["v_5000", "v_5001", "vhost"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    backend.stop()
    assert list(tmp_path.iterdir()) == []


def test_stale_socket_files_are_replaced(tmp_path: Path) -> None:
    backend = BackendProcess(tmp_path)
    backend.process.kill()
    backend.process.communicate()
    assert (tmp_path / "v_5000").is_socket()
    again = BackendProcess(tmp_path)
    assert again.ready
    again.stop()


def test_a_socket_in_use_and_a_file_in_the_way_are_refused(tmp_path: Path) -> None:
    first = BackendProcess(tmp_path)
    second = BackendProcess(tmp_path)
    _, log = second.process.communicate(timeout=5)
    assert (second.ready, second.process.returncode) == (False, 3)
    assert b"error: another process listens on the socket" in log
    first.stop()
    (tmp_path / "v_5000").write_text("precious")
    third = BackendProcess(tmp_path)
    _, log = third.process.communicate(timeout=5)
    assert third.process.returncode == 3
    assert b"no socket is in the way" in log
    assert (tmp_path / "v_5000").read_text() == "precious"


def test_a_directory_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    backend = BackendProcess(tmp_path)
    _, log = backend.process.communicate(timeout=5)
    assert backend.process.returncode == 3
    assert b"not the caller's own" in log


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--guest-cid", "2"), b"no CID for a guest"),
        (("--listen", "-1"), b"no vsock port"),
        (("--base", "/" + "x" * 120), b"too long"),
        (("--base", "/nonexistent/v"), b"cannot be used"),
    ],
)
def test_bad_options_are_refused_in_words(tmp_path: Path, options: tuple[str, ...], message: bytes) -> None:
    backend = BackendProcess(tmp_path, *options)
    _, log = backend.process.communicate(timeout=5)
    assert backend.process.returncode in (2, 3)
    assert message in log
    assert b"Traceback" not in log


def test_a_connection_that_was_handed_over_is_served_until_it_ends(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        backend = BackendProcess(tmp_path, "--fd", str(theirs.fileno()))
    guest = FakeDriver(ours)
    guest.negotiate()
    guest.start()
    assert_serves(backend, guest)
    guest.close()
    _, log = backend.process.communicate(timeout=5)
    assert (backend.process.returncode, log) == (0, b"")
    assert list(tmp_path.iterdir()) == []


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    start = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-m', 'host_shim.vhost_user', '--base', "
        f"{str(tmp_path / 'v')!r}, '--listen', '5000', '--socket', {str(tmp_path / 's')!r}], stdout=subprocess.PIPE);"
        "p.stdout.readline(); print(p.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert (tmp_path / "v_5000").is_socket()
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list(tmp_path.iterdir()) == []
    status = Path(f"/proc/{child}/status")
    while status.exists() and "\nState:\tZ" not in status.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_ring_that_qemu_places_outside_memory_stops_the_device_alone(backend: BackendProcess) -> None:
    with booted(backend) as guest:
        guest.stop()
        guest.start(fill=False)
        bad = RING_ADDRESS.pack(0, 0, 0, 0, 0, 0)
        guest.tell(Request.SET_VRING_ADDR, bad)
        with backend.dial(5000) as host:
            assert host.recv(1) == b""
        guest.reset()
        assert_serves(backend, guest)
    assert "a ring lies outside" in backend.stop()


def test_it_uses_no_time_when_there_is_nothing_to_do(backend: BackendProcess) -> None:
    def used() -> int:
        fields = Path(f"/proc/{backend.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    with booted(backend) as guest:
        assert_serves(backend, guest)
        before = used()
        time.sleep(0.5)
        assert (used() - before) / os.sysconf("SC_CLK_TCK") < 0.05
