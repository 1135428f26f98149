# SPDX-License-Identifier: MIT
"""The guest's receive queue: packets to the guest, and a host socket's bytes straight into the guest's buffers."""

from __future__ import annotations

import socket
from collections import deque
from itertools import islice

from .errors import GuestFault
from .packet import HEADER, HEADER_SIZE, MAX_PAYLOAD, RW, STREAM, Address, split
from .virtqueue import MAX_CHAIN, Views, Virtqueue

MAX_BURST = 32  # buffers of one receive: 116 KiB of Linux's 3.7 KiB buffers


# The head of its chain, 44 bytes for the header, where the payload goes, how many bytes that is, and, for a driver
# that cut its buffer within the header, the places that the header is copied to.
_Buffer = tuple[int, memoryview, Views, int, Views]


class Inbox:
    """Buffers that the guest offers; those that are taken and not yet filled stay parked for the next packet."""

    def __init__(self, queue: Virtqueue, guest_cid: int) -> None:
        self._queue = queue
        self._guest_cid = guest_cid
        self._parked: deque[_Buffer] = deque()

    def reserve(self, count: int) -> bool:
        """Park up to `count` buffers; return whether there is at least one. Raises GuestFault."""
        parked = self._parked
        while len(parked) < count:
            chain = self._queue.pop()
            if chain is None:
                break
            parked.append(_make_buffer(*chain))
        return bool(parked)

    def send(self, address: Address, op: int, *, flags: int = 0, window: int = 0, forwarded: int = 0) -> bool:
        """Give the guest one packet without payload; return whether there was a buffer for it."""
        if not self.reserve(1):
            return False
        fields = (STREAM, op, flags, window, forwarded & 0xFFFFFFFF)
        self._write(self._parked.popleft(), address, 0, fields)
        return True

    def fill(
        self, source: socket.socket, address: Address, *, limit: int, burst: int, window: int, forwarded: int
    ) -> tuple[int, bool]:
        """Receive up to `limit` bytes into at most `burst` reserved buffers, a packet each.

        Returns the number of bytes (0 at the end of the stream) and whether the source may hold more right now.
        Raises what `recvmsg_into` raises.
        """
        views: Views = []
        room = 0
        for _, _, payload, size, _ in islice(self._parked, burst):
            if len(views) + len(payload) > MAX_CHAIN and views:
                break
            views += payload
            room += size
            if room >= limit:
                break
        if room > limit:
            views, room = split(views, limit)[0], limit
        count, _, flags, _ = source.recvmsg_into(views)
        left = count
        fields = (STREAM, RW, 0, window, forwarded & 0xFFFFFFFF)
        while left:
            buffer = self._parked.popleft()
            length = min(left, buffer[3])
            self._write(buffer, address, length, fields)
            left -= length
        # A short read has emptied the socket, unless it stopped at descriptors that somebody passed (they are lost).
        return count, count == room or bool(flags & socket.MSG_CTRUNC)

    def _write(self, buffer: _Buffer, address: Address, length: int, rest: tuple[int, int, int, int, int]) -> None:
        head, header, _, _, pieces = buffer
        parent_cid, parent_port, guest_port = address
        HEADER.pack_into(header, 0, parent_cid, self._guest_cid, parent_port, guest_port, length, *rest)
        for piece in pieces:
            piece[:] = header[: len(piece)]
            header = header[len(piece) :]
        self._queue.push(head, HEADER_SIZE + length)

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


def _make_buffer(head: int, readable: Views, writable: Views) -> _Buffer:
    if not readable and len(writable) == 1 and HEADER_SIZE < len(writable[0]) <= HEADER_SIZE + MAX_PAYLOAD:
        return head, writable[0], [writable[0][HEADER_SIZE:]], len(writable[0]) - HEADER_SIZE, []
    # A driver may cut its buffers anywhere (virtio 1.2, 2.7.4.1).
    pieces, payload = split(writable, HEADER_SIZE)
    room = sum(map(len, payload))
    if readable or not room:
        raise GuestFault("a receive buffer has the wrong form")
    if room > MAX_PAYLOAD:
        payload, room = split(payload, MAX_PAYLOAD)[0], MAX_PAYLOAD
    if len(pieces) == 1:
        return head, pieces[0], payload, room, []
    return head, memoryview(bytearray(HEADER_SIZE)), payload, room, pieces
