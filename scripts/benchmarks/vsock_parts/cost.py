# SPDX-License-Identifier: MIT
"""What a packet costs the backend alone: its process's own CPU time, under a driver in Python and no QEMU."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from host_shim.vhost_user import packet
from host_shim.vhost_user.packet import HEADER, HEADER_SIZE
from tests.host_shim.fake_driver import GUEST_CID, NEXT, RING, BackendProcess, FakeDriver, Ring, booted

HOST_PORT, GUEST_PORT = 9000, 1024
PACKET = 64 * 1024  # bytes
SLOTS = 8
BYTES_AT = 0x200000  # in the guest's memory, beyond what the driver uses itself
SLOT_SIZE = 0x11000
DESCRIPTORS = 3  # of a slot: the header, and the payload in two, as Linux 6.12 cuts it
PIECE = 32 * 1024
WINDOW = 256 * 1024  # bytes; the credit of either side
BUFFERS = 200  # of a page each, that the guest offers


def measure_cost(*, to_guest: bool, packets: int, rounds: int) -> float:
    """Return the microseconds of CPU that the backend takes for 64 KiB: the least of short rounds, as others add."""
    with tempfile.TemporaryDirectory(prefix="veracruz-bench-") as directory:
        backend = BackendProcess(Path(directory))
        try:
            with backend.listen(HOST_PORT) as listener, booted(backend, buffers=BUFFERS) as guest:
                guest.patience = 60.0
                guest.connect(GUEST_PORT, HOST_PORT, buf_alloc=WINDOW)
                host, _ = listener.accept()
                with host:
                    driver = _Driver(guest, host)
                    move = driver.receive if to_guest else driver.send
                    costs = []
                    for _ in range(rounds):
                        before = _cpu(backend.process.pid)
                        move(packets)
                        costs.append((_cpu(backend.process.pid) - before) / 1000 / packets)
                    return min(costs)
        finally:
            backend.stop()


def _cpu(pid: int) -> int:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])  # nanoseconds on a processor


class _Driver:
    """A guest that moves bytes as Linux does: many packets in flight, few kicks, credit in good time."""

    def __init__(self, guest: FakeDriver, host: socket.socket) -> None:
        self._guest, self._host = guest, host
        self._free = list(range(SLOTS))
        self._sent = self._forwarded = 0  # bytes to the host
        self._got = self._told = 0  # bytes from it
        header = HEADER.pack(GUEST_CID, 3, GUEST_PORT, HOST_PORT, PACKET, packet.STREAM, packet.RW, 0, WINDOW, 0)
        for slot in range(SLOTS):
            at, first = BYTES_AT + slot * SLOT_SIZE, RING // 2 + slot * DESCRIPTORS
            guest.memory[at : at + HEADER_SIZE] = header
            guest.transmit_ring.describe(first, at, HEADER_SIZE, NEXT, first + 1)
            guest.transmit_ring.describe(first + 1, at + HEADER_SIZE, PIECE, NEXT, first + 2)
            guest.transmit_ring.describe(first + 2, at + HEADER_SIZE + PIECE, PIECE)

    def send(self, packets: int) -> None:
        """Send packets as fast as credit comes; return when the host has all."""
        drain = threading.Thread(target=self._drain, args=(packets * PACKET,))
        drain.start()
        ring, end = self._guest.transmit_ring, self._sent + packets * PACKET
        while self._sent < end:
            begin = ring.filled
            while self._free and self._sent < end and self._sent + PACKET - self._forwarded <= WINDOW:
                ring.offer(RING // 2 + self._free.pop() * DESCRIPTORS, kick=False)
                self._sent += PACKET
            _kick(ring, begin)
            self._guest.wait(self._collect)
        while len(self._free) < SLOTS:
            self._guest.wait(self._collect)
        drain.join()

    def _collect(self) -> bool | None:
        before = self._forwarded, len(self._free)
        while (used := self._guest.transmit_ring.take_used()) is not None:
            self._free.append((used[0] - RING // 2) // DESCRIPTORS)
        while _waits(self._guest.receive_ring):
            self._forwarded = self._guest.receive()[0].fwd_cnt
        return True if (self._forwarded, len(self._free)) != before else None

    def _drain(self, total: int) -> None:
        buffer = bytearray(1 << 20)
        while total:
            total -= self._host.recv_into(buffer)

    def receive(self, packets: int) -> None:
        """Receive what the host sends as fast as it can."""
        data = memoryview(bytes(PACKET))
        feed = threading.Thread(target=lambda: [self._host.sendall(data) for _ in range(packets)])
        feed.start()
        ring, end = self._guest.receive_ring, self._got + packets * PACKET
        while self._got < end:
            head, length = self._guest.wait(ring.take_used)
            begin = ring.filled
            while True:
                self._got += length - HEADER_SIZE
                ring.offer(head, kick=False)
                if not _waits(ring):
                    break
                head, length = ring.take_used() or (head, HEADER_SIZE)
            _kick(ring, begin)
            if self._got - self._told >= WINDOW // 4:
                self._told = self._got
                self._guest.send(
                    packet.CREDIT_UPDATE, GUEST_PORT, HOST_PORT, buf_alloc=WINDOW, fwd_cnt=self._got & 0xFFFFFFFF
                )
        feed.join()


def _waits(ring: Ring) -> bool:
    return int(ring.words[ring.used // 2 + 1]) != ring.seen


def _kick(ring: Ring, begin: int) -> None:
    """Kick if what was offered from index `begin` on covers the index that the device asked for (2.7.10)."""
    asked = int(ring.words[ring.used // 2 + 2 + 4 * RING])
    if (ring.filled - asked - 1) & 0xFFFF < (ring.filled - begin) & 0xFFFF:
        os.eventfd_write(ring.kick, 1)
