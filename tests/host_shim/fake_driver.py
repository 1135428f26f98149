# SPDX-License-Identifier: MIT
"""The other side of the backend, in Python: QEMU's vhost-user messages and the guest's vsock driver, over a real
Unix socket and a real memfd. It can also do everything that a driver must not."""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from host_shim.vhost_user import packet
from host_shim.vhost_user.packet import HEADER, HEADER_SIZE, Header
from host_shim.vhost_user.protocol import (
    CONFIG,
    FLAG_NEED_REPLY,
    NO_FD,
    REGION,
    RING_ADDRESS,
    RING_STATE,
    TABLE,
    U64,
    VERSION,
    Feature,
    ProtocolFeature,
    Request,
)
from host_shim.vhost_user.protocol import (
    HEADER as MESSAGE,
)

GUEST_CID = 4
GUEST_BASE = 0x4000_0000  # guest-physical; not 0, so that a mixed-up address is seen
USER_BASE = 0x7F00_0000_0000  # "QEMU's" virtual address
MEMORY = 8 << 20  # bytes
RING = 256  # descriptors
WINDOW = 256 * 1024  # bytes of credit that this guest gives
DESCRIPTOR = struct.Struct("<QIHH")
NEXT, WRITE, INDIRECT = 1, 2, 4
WAIT_S = 5.0

_RINGS = 0x10000  # bytes a ring takes
_BUFFERS = 0x40000  # from here on
_RECEIVE_SIZE = 0x1000
_TRANSMIT_SIZE = 0x4000


def pack_message(request: int, payload: bytes, *, flags: int = 0) -> bytes:
    """Return a vhost-user message of QEMU's."""
    return MESSAGE.pack(request, VERSION | flags, len(payload)) + payload


def pack_regions(regions: Sequence[tuple[int, int, int, int]]) -> bytes:
    """Return the payload of SET_MEM_TABLE: (guest address, size, QEMU's address, offset) a region."""
    return TABLE.pack(len(regions), 0) + b"".join(REGION.pack(*region) for region in regions)


class Ring:
    """The driver's half of one split ring."""

    def __init__(self, driver: FakeDriver, index: int) -> None:
        self.index = index
        self.at = index * _RINGS
        self.memory = driver.memory
        self.words = memoryview(driver.memory).cast("H")
        self.kick = os.eventfd(0, os.EFD_NONBLOCK)
        self.call = os.eventfd(0, os.EFD_NONBLOCK)
        self.available = self.at + 16 * RING
        self.used = (self.available + 6 + 2 * RING + 3) & ~3
        self.filled = 0
        self.seen = 0

    def describe(self, slot: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        """Write one descriptor; `address` counts from the start of the memory."""
        DESCRIPTOR.pack_into(self.memory, self.at + 16 * slot, GUEST_BASE + address, length, flags, following)

    def offer(self, head: int, *, kick: bool = True) -> None:
        """Make a chain available."""
        struct.pack_into("<H", self.memory, self.available + 4 + 2 * (self.filled % RING), head)
        self.filled = (self.filled + 1) & 0xFFFF
        self.words[self.available // 2 + 1] = self.filled  # one 16-bit store: struct would write byte by byte
        if kick:
            os.eventfd_write(self.kick, 1)

    @property
    def kick_wanted_at(self) -> int:
        """The index at which the device asked for a kick."""
        return self.words[self.used // 2 + 2 + 4 * RING]

    def take_used(self) -> tuple[int, int] | None:
        """Return the next used chain's head and length, or None."""
        if self.words[self.used // 2 + 1] == self.seen:
            return None
        head, length = struct.unpack_from("<II", self.memory, self.used + 4 + 8 * (self.seen % RING))
        self.seen = (self.seen + 1) & 0xFFFF
        # 2.7.7: interrupt me at the next one; also clears what a hostile test has written here.
        self.words[self.available // 2 + 2 + RING] = self.seen
        return head, length


class FakeDriver:
    """One guest: `start` is DRIVER_OK, `reset` what a reboot does, and packets go and come in between."""

    def __init__(self, connection: socket.socket, *, features: int = Feature.ALL, buffers: int = 64) -> None:
        self.socket = connection
        self.socket.settimeout(WAIT_S)
        self.features = features
        self.memfd = os.memfd_create("guest")
        os.ftruncate(self.memfd, MEMORY)
        self.memory = mmap.mmap(self.memfd, MEMORY)
        self.receive_ring, self.transmit_ring = self.rings = (Ring(self, 0), Ring(self, 1))
        self.buffers = buffers
        self.patience = WAIT_S
        self._transmit_slot = 0
        self._bases = [0, 0]

    def close(self) -> None:
        """Vanish, as a killed QEMU does."""
        self.socket.close()
        for ring in self.rings:
            os.close(ring.kick)
            os.close(ring.call)
            ring.words.release()
        self.memory.close()
        os.close(self.memfd)

    # QEMU

    def tell(self, request: int, payload: bytes, *, fds: tuple[int, ...] = (), acknowledged: bool = True) -> None:
        """Send a message; with `acknowledged` wait for its REPLY_ACK, which must be 0."""
        flags = FLAG_NEED_REPLY if acknowledged else 0
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([pack_message(request, payload, flags=flags)], rights)
        if acknowledged:
            assert U64.unpack(self.answer(request)) == (0,)

    def ask(self, request: int, payload: bytes = b"") -> bytes:
        """Send a message that has an answer of its own; return that."""
        self.socket.sendall(pack_message(request, payload))
        return self.answer(request)

    def answer(self, request: int) -> bytes:
        """Return the payload of the next answer."""
        header = self.socket.recv(12, socket.MSG_WAITALL)
        if len(header) < 12:
            raise EOFError
        answered, flags, size = struct.unpack("=III", header)
        assert (answered, flags) == (request, 5)
        return self.socket.recv(size, socket.MSG_WAITALL) if size else b""

    def negotiate(self) -> None:
        """Do what QEMU does when it connects."""
        offered = U64.unpack(self.ask(Request.GET_FEATURES))[0]
        assert offered == Feature.ALL
        U64.unpack(self.ask(Request.GET_PROTOCOL_FEATURES))
        self.tell(Request.SET_PROTOCOL_FEATURES, U64.pack(ProtocolFeature.ALL), acknowledged=False)
        self.tell(Request.SET_OWNER, b"")
        config = self.ask(Request.GET_CONFIG, CONFIG.pack(0, 8, 0) + bytes(8))
        assert config == CONFIG.pack(0, 8, 0) + GUEST_CID.to_bytes(8, "little")

    def set_memory(self) -> None:
        """Send the memory table: two regions of one file, as a machine with a hole has."""
        half = MEMORY // 2
        regions = [
            (GUEST_BASE, half, USER_BASE, 0),
            (GUEST_BASE + half, half, USER_BASE + half, half),
        ]
        self.tell(Request.SET_MEM_TABLE, pack_regions(regions), fds=(self.memfd, self.memfd))

    def start(self, *, fill: bool = True) -> None:
        """DRIVER_OK: configure and enable both rings; with `fill` offer the receive buffers."""
        self.tell(Request.SET_FEATURES, U64.pack(self.features))
        self.set_memory()
        for ring in self.rings:
            at = USER_BASE + ring.at
            self.tell(Request.SET_VRING_NUM, RING_STATE.pack(ring.index, RING))
            self.tell(Request.SET_VRING_BASE, RING_STATE.pack(ring.index, self._bases[ring.index]))
            addresses = (at, USER_BASE + ring.used, USER_BASE + ring.available, 0)
            self.tell(Request.SET_VRING_ADDR, RING_ADDRESS.pack(ring.index, 0, *addresses))
            self.tell(Request.SET_VRING_KICK, U64.pack(ring.index), fds=(ring.kick,))
            self.tell(Request.SET_VRING_CALL, U64.pack(ring.index), fds=(ring.call,))
        for ring in self.rings:
            self.tell(Request.SET_VRING_ENABLE, RING_STATE.pack(ring.index, 1))
        if fill:
            for slot in range(self.buffers):
                self.offer_buffer(slot)

    def stop(self) -> list[int]:
        """Stop both rings; return their positions."""
        for ring in self.rings:
            self.tell(Request.SET_VRING_ENABLE, RING_STATE.pack(ring.index, 0))
        states = [
            RING_STATE.unpack(self.ask(Request.GET_VRING_BASE, RING_STATE.pack(ring.index, 0))) for ring in self.rings
        ]
        for ring in self.rings:
            self.tell(Request.SET_VRING_CALL, U64.pack(ring.index | NO_FD))
        return [position for _, position in states]

    def reset(self, *, fill: bool = True) -> None:
        """Reboot: stop, forget everything in memory, start again."""
        self.stop()
        self.reset_rings()
        self.start(fill=fill)

    def reset_rings(self) -> None:
        """Forget everything in memory."""
        self.memory[:] = bytes(MEMORY)
        for ring in self.rings:
            ring.filled = ring.seen = 0
        self._transmit_slot = 0

    # The guest's driver

    def offer_buffer(self, slot: int) -> None:
        """Offer one receive buffer of a page."""
        self.receive_ring.describe(slot, _BUFFERS + slot * _RECEIVE_SIZE, _RECEIVE_SIZE, WRITE)
        self.receive_ring.offer(slot)

    def transmit(self, raw: bytes, *, cut: int | None = None, kick: bool = True) -> None:
        """Send raw bytes as one packet, in two descriptors cut at `cut`; without `kick` nobody is told."""
        slot = self._transmit_slot % (RING // 2)
        self._transmit_slot += 1
        at = _BUFFERS + (RING + slot % 128) * _RECEIVE_SIZE + (slot % 128) * (_TRANSMIT_SIZE - _RECEIVE_SIZE)
        assert len(raw) <= _TRANSMIT_SIZE
        self.memory[at : at + len(raw)] = raw
        if cut is None:
            self.transmit_ring.describe(2 * slot, at, len(raw))
        else:
            self.transmit_ring.describe(2 * slot, at, cut, NEXT, 2 * slot + 1)
            self.transmit_ring.describe(2 * slot + 1, at + cut, len(raw) - cut)
        self.transmit_ring.offer(2 * slot, kick=kick)
        self.wait(lambda: self.transmit_ring.take_used())

    def send(
        self, op: int, guest_port: int, parent_port: int, payload: bytes = b"", *, kick: bool = True, **changes: int
    ) -> None:
        """Send one packet; `changes` replace fields of its header."""
        header = Header(
            GUEST_CID, 3, guest_port, parent_port, len(payload), packet.STREAM, op, 0, WINDOW, 0
        )._replace(**changes)  # fmt: skip
        self.transmit(HEADER.pack(*header) + payload, kick=kick)

    def receive(self) -> tuple[Header, bytes]:
        """Return the next packet for the guest, and offer its buffer again."""
        slot, length = self.wait(lambda: self.receive_ring.take_used())
        at = _BUFFERS + slot * _RECEIVE_SIZE
        raw = bytes(self.memory[at : at + length])
        self.offer_buffer(slot)
        header = Header._make(HEADER.unpack_from(raw))
        assert header.length == length - HEADER_SIZE
        return header, raw[HEADER_SIZE:]

    def expect(self, op: int) -> Header:
        """Return the next packet's header, which must be of this operation, after any of credit alone."""
        while True:
            header, _ = self.receive()
            if header.op != packet.CREDIT_UPDATE or op == packet.CREDIT_UPDATE:
                assert header.op == op, header
                return header

    def quiet(self, seconds: float = 0.05) -> bool:
        """Return whether nothing comes for a while."""
        time.sleep(seconds)
        return bool(struct.unpack_from("<H", self.memory, self.receive_ring.used + 2)[0] == self.receive_ring.seen)

    def connect(self, guest_port: int, parent_port: int, **changes: int) -> Header:
        """Open a stream to the host; return the header of its RESPONSE."""
        self.send(packet.REQUEST, guest_port, parent_port, b"", **changes)
        return self.expect(packet.RESPONSE)

    def accept(self) -> Header:
        """Take the host's next stream; return the header of its REQUEST."""
        header = self.expect(packet.REQUEST)
        self.send(packet.RESPONSE, header.dst_port, header.src_port)
        return header

    def wait(self, get: Any) -> Any:
        """Return the first result of `get()` that is not None; by interrupts where the guest has asked for them."""
        deadline = time.monotonic() + self.patience
        while (got := get()) is None:
            if time.monotonic() > deadline:
                raise TimeoutError
            select.select([ring.call for ring in self.rings], [], [], 0.002)
            for ring in self.rings:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(ring.call)
        return got


class BackendProcess:
    """A real backend, as the supervisor starts it."""

    def __init__(self, directory: Path, *options: str, listen: tuple[int, ...] = (5000,)) -> None:
        self.directory = directory
        self.base = directory / "v"
        self.vhost = directory / "vhost"
        ports = [word for port in listen for word in ("--listen", str(port))]
        where = [] if "--fd" in options else ["--socket", str(self.vhost)]
        command = [sys.executable, "-m", "host_shim.vhost_user", *where, "--base", str(self.base), *ports, *options]
        fds = [int(options[options.index("--fd") + 1])] if "--fd" in options else []
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=fds)
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline() == b"ready\n"

    def connect(self) -> socket.socket:
        """Connect as QEMU does."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(str(self.vhost))
        return connection

    def dial(self, port: int) -> socket.socket:
        """Connect to a port of the guest's."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(WAIT_S)
        connection.connect(f"{self.base}_{port}")
        return connection

    def listen(self, port: int, backlog: int = 64) -> socket.socket:
        """Listen where the guest dials."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.settimeout(WAIT_S)
        listener.bind(f"{self.base}_{port}")
        listener.listen(backlog)
        return listener

    def resident(self) -> int:
        """Return the memory that the process alone has, in bytes."""
        for line in Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Private_Dirty:"):
                return int(line.split()[1]) * 1024
        raise AssertionError

    def descriptors(self) -> int:
        """Return how many descriptors the process has open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def settle(self, descriptors: int) -> None:
        """Wait until it has at most so many descriptors open: it closes sockets at the end of a round."""
        deadline = time.monotonic() + WAIT_S
        while self.descriptors() > descriptors:
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def stop(self) -> str:
        """End it as the supervisor does; return what it logged. It must still be alive, and end well."""
        assert self.process.poll() is None
        self.process.terminate()
        _, log = self.process.communicate(timeout=WAIT_S)
        assert self.process.returncode == 0, log
        return str(log.decode())


@contextlib.contextmanager
def booted(backend: BackendProcess, **options: int) -> Iterator[FakeDriver]:
    """Give a guest that has reached DRIVER_OK."""
    driver = FakeDriver(backend.connect(), **options)
    try:
        driver.negotiate()
        driver.start()
        yield driver
    finally:
        driver.close()
