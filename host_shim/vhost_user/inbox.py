# SPDX-License-Identifier: MIT
"""The guest's receive queue: packets to the guest, and a host socket's bytes straight into the guest's buffers."""

from __future__ import annotations

import socket
import struct
from collections import deque
from itertools import islice

from .errors import GuestFault
from .packet import HEADER, HEADER_SIZE, MAX_PAYLOAD, RW, STREAM, Address, split
from .virtqueue import MAX_CHAIN, Views, Virtqueue

_COPY = struct.Struct(f"{HEADER_SIZE}s")  # stores a header that is packed already
MAX_KNOWN = 4096  # places; a ring of Linux's has 128 or 1024
MAX_BURST = 32  # buffers of one receive: 116 KiB of Linux's 3.7 KiB buffers


# 44 bytes for the header, where the payload goes, how many bytes that is, and, for a driver that cut its buffer within
# the header, the places that the header is copied to.
_Place = tuple[memoryview, Views, int, Views]


class Inbox:
    """Buffers that the guest offers; those that are taken and not yet filled stay parked for the next packet."""

    def __init__(self, queue: Virtqueue, guest_cid: int) -> None:
        self._queue = queue
        self._guest_cid = guest_cid
        self._parked: deque[tuple[int, _Place]] = deque()  # with the heads of their chains
        self._known: dict[tuple[int, int], _Place] = {}
        self.given = 0  # bytes of payload so far

    def reserve(self, count: int) -> bool:
        """Park up to `count` buffers; return whether there is at least one. Raises GuestFault."""
        parked = self._parked
        if len(parked) < count:
            if len(self._known) > MAX_KNOWN:
                self._known.clear()
            parked += self._queue.take_buffers(count - len(parked), _make_place, self._known)
        return bool(parked)

    def send(self, address: Address, op: int, *, flags: int = 0, window: int = 0, forwarded: int = 0) -> bool:
        """Give the guest one packet without payload; return whether there was a buffer for it."""
        if not self.reserve(1):
            return False
        head, (header, _, _, pieces) = self._parked.popleft()
        _COPY.pack_into(header, 0, self._pack(address, 0, op, flags, window, forwarded))
        if pieces:
            _scatter(header, pieces)
        self._queue.push([head, HEADER_SIZE])
        return True

    def fill(
        self, source: socket.socket, address: Address, *, limit: int, burst: int, window: int, forwarded: int
    ) -> tuple[int, int, bool]:
        """Receive up to `limit` bytes into at most `burst` reserved buffers, a packet each.

        Returns the number of bytes (0 at the end of the stream), that of buffers, and whether the source may hold more
        right now.
        Raises what `recvmsg_into` raises.
        """
        views: Views = []
        room = 0
        for _, (_, payload, size, _) in islice(self._parked, burst):
            views += payload
            room += size
            if room >= limit:
                break
        if len(views) > MAX_CHAIN:  # a driver that cuts its buffers into many pieces is served one at a time
            _, (_, views, room, _) = self._parked[0]
        if room > limit:
            views, room = split(views, limit)[0], limit
        count, _, flags, _ = source.recvmsg_into(views)
        self.given += count
        buffers = self._finish(address, count, window, forwarded)
        # A short read has emptied the socket, unless it stopped at descriptors that somebody passed (they are lost).
        return count, buffers, count == room or bool(flags & socket.MSG_CTRUNC)

    def _finish(self, address: Address, left: int, window: int, forwarded: int) -> int:
        """Write the headers of packets whose payloads, `left` bytes in all, stand in the first buffers; count them."""
        used: list[int] = []
        length, packed = 0, b""
        while left:
            head, (header, _, size, pieces) = self._parked.popleft()
            if size > left:
                size = left
            if size != length:  # most buffers are equal, and so are their headers
                length = size
                packed = self._pack(address, length, RW, 0, window, forwarded)
            _COPY.pack_into(header, 0, packed)
            if pieces:
                _scatter(header, pieces)
            used += (head, HEADER_SIZE + length)
            left -= length
        self._queue.push(used)
        return len(used) // 2

    def _pack(self, address: Address, length: int, op: int, flags: int, window: int, forwarded: int) -> bytes:
        cid, port, guest_port = address
        return HEADER.pack(
            cid, self._guest_cid, port, guest_port, length, STREAM, op, flags, window, forwarded & 0xFFFFFFFF
        )

    def publish(self) -> None:
        """Show the guest what it was given."""
        self._queue.publish()

    def arm(self) -> bool:
        """Ask for a kick at the next buffer; return whether there is one already."""
        return self._queue.arm()

    def release(self) -> None:
        """Give parked buffers back to the ring, so that its position is that of the first unused one."""
        self._queue.rewind(len(self._parked))
        self._parked.clear()


def _scatter(header: memoryview, pieces: Views) -> None:
    for piece in pieces:
        piece[:] = header[: len(piece)]
        header = header[len(piece) :]


def _make_place(readable: Views, writable: Views) -> _Place:
    if not readable and len(writable) == 1 and HEADER_SIZE < len(writable[0]) <= HEADER_SIZE + MAX_PAYLOAD:
        return writable[0], [writable[0][HEADER_SIZE:]], len(writable[0]) - HEADER_SIZE, []
    # A driver may cut its buffers anywhere (virtio 1.2, 2.7.4.1).
    pieces, payload = split(writable, HEADER_SIZE)
    room = sum(map(len, payload))
    if readable or not room:
        raise GuestFault("a receive buffer has the wrong form")
    if room > MAX_PAYLOAD:
        payload, room = split(payload, MAX_PAYLOAD)[0], MAX_PAYLOAD
    if len(pieces) == 1:
        return pieces[0], payload, room, []
    return memoryview(bytearray(HEADER_SIZE)), payload, room, pieces
