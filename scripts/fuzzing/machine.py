# SPDX-License-Identifier: MIT
"""Targets of the vsock backend: hostile packets, a hostile QEMU.

A guest may write anything at any moment, so the inputs are programs: what happens in turn.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from random import Random

from host_shim.vhost_user import packet
from host_shim.vhost_user.connections import Connections
from host_shim.vhost_user.device import Device
from host_shim.vhost_user.errors import FaultLog, FrontendFault
from host_shim.vhost_user.loop import Loop
from host_shim.vhost_user.packet import HEADER, HEADER_SIZE, Header
from host_shim.vhost_user.protocol import CONFIG, NO_FD, RING_ADDRESS, RING_STATE, U64, Feature, Request
from host_shim.vhost_user.session import Session
from tests.host_shim.fake_driver import DESCRIPTOR, WRITE, pack_message, pack_regions

from .mutations import change_bytes
from .rings import AVAILABLE, CID, GUEST, QUEUE, SECOND, SIZE, TABLE, USED, USER, Guest
from .target import Target, WrongVerdict

PORTS = (1234, 5, 9000)  # of the host: one listens, one does not, one is reserved


class _Silent(FaultLog):
    """Notes nothing: a million inputs fault a million times."""

    def note(self, line: str) -> None: ...


def _open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@contextlib.contextmanager
def _no_leak() -> Iterator[None]:
    """Demand that as many descriptors are open afterwards as before."""
    _listener()  # made at its first use
    before = _open_descriptors()
    yield
    if _open_descriptors() != before:
        raise WrongVerdict("file descriptors leaked")


# Packets. Records of 16 bytes: what happens, and its parameters

_RECORD = struct.Struct("<8BHBBI")
_SLOT = 0x200  # bytes of a buffer
_BUFFERS = 0x1000  # where they start: first the guest's, then those to the guest


@cache
def _listener() -> tuple[socket.socket, str]:
    """A port of the host's that takes whatever connects, for the life of this process."""
    folder = tempfile.mkdtemp(prefix="veracruz-fuzz-")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    base = str(Path(folder) / "v")
    listener.bind(f"{base}_{PORTS[0]}")
    listener.listen(64)
    return listener, base


class _Play:
    """One device with a guest and a host, to which the records of an input happen."""

    def __init__(self, data: bytes) -> None:
        self._records = [data[at : at + _RECORD.size] for at in range(0, len(data), _RECORD.size)]
        self._guest = Guest()
        self._loop = Loop()
        self._listener, base = _listener()
        self._connections = Connections(self._loop, base, _Silent(), reserved=[PORTS[2]])
        self._device = Device(self._connections, _Silent(), guest_cid=CID)
        self._hosts: list[socket.socket] = []
        self._sent = self._offered = self._seen = 0
        raw = self._guest.raw
        for slot in range(QUEUE):
            address = GUEST + _BUFFERS + (QUEUE + slot) * _SLOT
            DESCRIPTOR.pack_into(raw, SECOND + TABLE + 16 * slot, address, _SLOT, WRITE, 0)
        self._refill(QUEUE)
        self._device.attach(self._guest.ring(SECOND), self._guest.ring(0))

    def run(self) -> None:
        try:
            self._loop.run(self._step, lambda: 0.0)
        finally:
            self._device.detach()
            self._device.lose_guest()
            for host in self._hosts:
                host.close()
            self._loop.stop()
            self._loop.run(lambda: False, lambda: 0.0)

    def _step(self) -> bool:
        if self._records:
            record = self._records.pop(0)
            if len(record) == _RECORD.size:
                self._happen(record)
        else:
            self._loop.stop()
        for _ in range(4):
            if not self._device.service():
                break
        with contextlib.suppress(BlockingIOError):
            while True:
                self._hosts.append(self._listener.accept()[0])
        self._take()
        return False

    def _happen(self, record: bytes) -> None:
        kind, op, sort, guest_port, port, cids, size, split, length, flags, _, rest = _RECORD.unpack(record)
        host = self._hosts[op % len(self._hosts)] if self._hosts else None
        match kind % 8:
            case 0 | 1 | 2 | 3:
                header = Header(
                    CID if not cids & 1 else rest, (3, 2, 1, 5)[cids >> 1 & 3], 1024 + guest_port % 4,
                    self._port(port), length, 1 if sort < 250 else sort, op % 9, flags,
                    rest if cids & 8 else 65536, rest if cids & 16 else 0,
                )  # fmt: skip
                self._transmit(HEADER.pack(*(field & mask for field, mask in zip(header, _MASKS, strict=True))), size)
            case 4:
                self._transmit(record + record + record, size, cut=split)
            case 5 if len(self._hosts) < 16:
                ours, theirs = socket.socketpair()
                theirs.setblocking(False)
                self._hosts.append(ours)
                if not self._connections.accept(theirs, 1024 + guest_port % 4):
                    theirs.close()
            case 6 if host is not None:
                host.setblocking(False)
                with contextlib.suppress(OSError):
                    if sort % 4 == 0:
                        host.send(bytes(length % 4096))
                    elif sort % 4 == 1:
                        host.recv(4096)
                    elif sort % 4 == 2:
                        host.shutdown(socket.SHUT_WR)
                    else:
                        self._hosts.remove(host)
                        host.close()
            case 7:
                self._refill(size)

    @staticmethod
    def _port(choice: int) -> int:
        return PORTS[choice % 4] if choice % 4 < len(PORTS) else (1 << 30) + choice // 4  # a connection of the host's

    def _transmit(self, header: bytes, size: int, *, cut: int = 0) -> None:
        raw, slot = self._guest.raw, self._sent % QUEUE
        at = _BUFFERS + slot * _SLOT
        whole = (header + bytes(range(256)))[: len(header) + size][:_SLOT]
        raw[at : at + len(whole)] = whole
        DESCRIPTOR.pack_into(raw, TABLE + 16 * slot, GUEST + at, len(whole), WRITE if cut == 255 else 0, 0)
        struct.pack_into("<H", raw, AVAILABLE + 4 + 2 * slot, slot)
        self._sent += 1
        struct.pack_into("<H", raw, AVAILABLE + 2, self._sent & 0xFFFF)

    def _refill(self, count: int) -> None:
        """Offer again what was used, as a driver does."""
        for _ in range(min(count, self._seen + QUEUE - self._offered)):
            slot = self._offered % QUEUE
            struct.pack_into("<H", self._guest.raw, SECOND + AVAILABLE + 4 + 2 * slot, slot)
            self._offered += 1
        struct.pack_into("<H", self._guest.raw, SECOND + AVAILABLE + 2, self._offered & 0xFFFF)

    def _take(self) -> None:
        raw = self._guest.raw
        (used,) = struct.unpack_from("<H", raw, SECOND + USED + 2)
        if used - self._seen & 0xFFFF > QUEUE:
            raise WrongVerdict("more buffers came back than were offered")
        while used != self._seen & 0xFFFF:
            head, size = struct.unpack_from("<II", raw, SECOND + USED + 4 + 8 * (self._seen % QUEUE))
            self._seen += 1
            header = Header._make(HEADER.unpack_from(raw, _BUFFERS + (QUEUE + head) * _SLOT))
            if header.length != size - HEADER_SIZE or header.dst_cid != CID or not 1 <= header.op <= 7:
                raise WrongVerdict(f"a packet to the guest is malformed: {header}")


_MASKS = [(1 << 64) - 1] * 2 + [0xFFFFFFFF] * 3 + [0xFFFF] * 2 + [0xFFFFFFFF] * 3


def run_packets(data: bytes) -> None:
    """Let packets, connections and data of the host happen to a device."""
    with _no_leak():
        _Play(data[: 200 * _RECORD.size]).run()


def _record(kind: int, op: int = 0, **fields: int) -> bytes:
    names = ("sort", "guest_port", "port", "cids", "size", "split", "length", "flags", "spare", "rest")
    return _RECORD.pack(kind, op, *(fields.get(name, 0) for name in names))


def packet_seeds() -> Mapping[str, bytes]:
    dial = _record(0, packet.REQUEST)
    data = _record(0, packet.RW, size=100, length=100)
    shut = _record(0, packet.SHUTDOWN, flags=packet.SHUTDOWN_BOTH)
    accepted = _record(5) + _record(0, packet.RESPONSE, port=3)
    refill = _record(7, size=8)
    return {
        "dial": dial + data + _record(6, sort=0, length=300) + refill + data + shut,
        "refused": _record(0, packet.REQUEST, port=1) + _record(0, packet.REQUEST, port=2) + refill,
        "accept": accepted + _record(6, sort=0, length=4000) + refill * 3 + _record(6, sort=2) + refill,
        "closed-by-host": dial + _record(6, sort=3) + refill + data,
        "credit": dial + _record(0, packet.CREDIT_UPDATE, cids=24, rest=100) + _record(0, packet.CREDIT_REQUEST),
        "short": _record(4, split=0, size=0) + dial,
        "foreign": _record(0, packet.REQUEST, cids=1, rest=9) + _record(0, packet.REQUEST, cids=6) + data,
        "reset": dial + data + _record(0, packet.RST) + dial + _record(6, sort=1) + shut,
    }


def change_packets(data: bytes, random: Random) -> bytes:
    """Repeat, leave out or swap records, or change one."""
    records = [data[at : at + _RECORD.size] for at in range(0, len(data), _RECORD.size)] or [bytes(_RECORD.size)]
    index = random.randrange(len(records))
    match random.randrange(5):
        case 0:
            records[index:index] = records[: index + 1]
        case 1:
            del records[index]
        case 2:
            records[index], records[0] = records[0], records[index]
        case 3:
            records.insert(index, bytes([random.randrange(8), random.randrange(9)]) + random.randbytes(14))
        case _:
            records[index] = change_bytes(records[index], random)[: _RECORD.size].ljust(_RECORD.size, b"\0")
    return b"".join(records)


# QEMU's messages. Records: number (low four bits) and kind of descriptors that go with it, length (u16), bytes

_PART = struct.Struct("<BH")


def _memory_file() -> int:
    fd = os.memfd_create("guest")
    os.ftruncate(fd, SIZE)
    return fd


_DESCRIPTORS: tuple[Callable[[], int], ...] = (
    _memory_file,
    lambda: os.eventfd(0, os.EFD_NONBLOCK),
    lambda: os.open("/dev/null", os.O_RDWR),
    lambda: os.open("/proc/self/status", os.O_RDONLY),
)


def run_vhost(data: bytes) -> None:
    """Obey what a QEMU says, until it errs or has gone."""
    with _no_leak():
        _converse(data)


def _converse(data: bytes) -> None:
    qemu, ours = socket.socketpair()
    loop = Loop()
    device = Device(Connections(loop, _listener()[1], _Silent(), reserved=[]), _Silent(), guest_cid=CID)
    ours.setblocking(False)
    qemu.setblocking(False)
    session = Session(ours, device, loop, _Silent(), guest_cid=CID)
    try:
        for _ in range(64):
            if len(data) < _PART.size:
                break
            descriptors, size = _PART.unpack_from(data)
            part, data = data[_PART.size : _PART.size + size], data[_PART.size + size :]
            fds = [_DESCRIPTORS[descriptors >> 4 & 3]() for _ in range(min(descriptors & 15, 10))]
            try:
                if part:
                    socket.send_fds(qemu, [part], fds)
            finally:
                for fd in fds:
                    os.close(fd)
            session.receive()
            device.service()
            with contextlib.suppress(BlockingIOError):
                qemu.recv(65536)
    except EOFError:
        return
    finally:
        session.close()
        loop.stop()
        loop.run(lambda: False, lambda: 0.0)
        qemu.close()
        ours.close()


def _part(message: bytes, count: int = 0, kind: int = 0) -> bytes:
    return _PART.pack(count | kind << 4, len(message)) + message


def vhost_seeds() -> Mapping[str, bytes]:
    table = pack_message(Request.SET_MEM_TABLE, pack_regions([(GUEST, SIZE, USER, 0)]))
    start = [
        _part(pack_message(Request.GET_FEATURES, b"")),
        _part(pack_message(Request.GET_PROTOCOL_FEATURES, b"")),
        _part(pack_message(Request.SET_PROTOCOL_FEATURES, U64.pack(1 << 3 | 1 << 9))),
        _part(pack_message(Request.SET_OWNER, b"")),
        _part(pack_message(Request.GET_CONFIG, CONFIG.pack(0, 8, 0) + bytes(8))),
        _part(pack_message(Request.SET_FEATURES, U64.pack(Feature.ALL), flags=8)),
        _part(table, 1),
    ]
    rings = []
    for index, at in enumerate((0, SECOND)):
        parts = (USER + at + TABLE, USER + at + USED, USER + at + AVAILABLE, 0)
        rings += [
            _part(pack_message(Request.SET_VRING_NUM, RING_STATE.pack(index, QUEUE))),
            _part(pack_message(Request.SET_VRING_BASE, RING_STATE.pack(index, 0))),
            _part(pack_message(Request.SET_VRING_ADDR, RING_ADDRESS.pack(index, 0, *parts))),
            _part(pack_message(Request.SET_VRING_KICK, U64.pack(index)), 1, 1),
            _part(pack_message(Request.SET_VRING_CALL, U64.pack(index)), 1, 1),
            _part(pack_message(Request.SET_VRING_ENABLE, RING_STATE.pack(index, 1), flags=8)),
        ]
    stop = [_part(pack_message(Request.GET_VRING_BASE, RING_STATE.pack(index, 0))) for index in (0, 1)]
    whole = b"".join(start + rings + stop)
    two = pack_message(Request.SET_MEM_TABLE, pack_regions([(GUEST, 4096, USER, 0), (GUEST + 4096, 4096, 0, 4096)]))
    polled = pack_message(Request.SET_VRING_KICK, U64.pack(NO_FD))
    return {
        "start-and-stop": whole,
        "again": b"".join([*start, *rings, *stop, *start[-2:], *rings]),
        "two-regions": _part(two, 2) + _part(polled),
        "no-memory": b"".join(rings),
        "in-pieces": _part(table[:5]) + _part(table[5:20], 1) + _part(table[20:]),
        "wrong-descriptor": _part(table, 1, 2) + _part(pack_message(Request.SET_VRING_KICK, U64.pack(0)), 1, 3),
    }


def change_vhost(data: bytes, random: Random) -> bytes:
    """Repeat, leave out, swap or change messages, keeping the lengths of what carries them right."""
    parts: list[tuple[int, bytes]] = []
    while len(data) >= _PART.size:
        kind, size = _PART.unpack_from(data)
        parts.append((kind, data[_PART.size : _PART.size + size]))
        data = data[_PART.size + size :]
    if not parts:
        return change_bytes(data, random)
    index = random.randrange(len(parts))
    kind, message = parts[index]
    match random.randrange(6):
        case 0:
            parts[index:index] = parts[index : index + random.randint(1, 3)]
        case 1:
            del parts[index]
        case 2:
            other = random.randrange(len(parts))
            parts[index], parts[other] = parts[other], parts[index]
        case 3:
            parts[index] = (random.randrange(64), message)
        case 4 if len(message) >= 16:  # one number of the payload
            place = 12 + 4 * random.randrange((len(message) - 12) // 4)
            value = random.choice((0, 1, 2, 8, 0x100, 0x8000, 0x7FFFFFFF, 0xFFFFFFFF)).to_bytes(4, "little")
            parts[index] = (kind, message[:place] + value + message[place + 4 :])
        case _:
            parts[index] = (kind, change_bytes(message, random))
    return b"".join(_PART.pack(kind, len(message) & 0xFFFF) + message for kind, message in parts)


TARGETS = (
    Target("vsock-packets", "the vsock device", run_packets, (), packet_seeds, change_packets),
    Target("vhost-protocol", "QEMU's messages", run_vhost, (FrontendFault,), vhost_seeds, change_vhost),
)  # fmt: skip
