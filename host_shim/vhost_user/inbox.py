# SPDX-License-Identifier: MIT
"""The guest's receive queue: packets to the guest, and a host socket's bytes straight into the guest's buffers."""

from __future__ import annotations

import socket
from collections import deque
from itertools import islice
from typing import NamedTuple

from .errors import GuestFault
from .packet import HEADER, HEADER_SIZE, MAX_PAYLOAD, RW, STREAM, Address, split
from .virtqueue import MAX_CHAIN, Virtqueue

MAX_BURST = 32  # buffers of one receive: 116 KiB of Linux's 3.7 KiB buffers


class _Buffer(NamedTuple):
    head: int
    header: list[memoryview]
    payload: list[memoryview]
    room: int


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
            head, readable, writable = chain
            header, payload = split(writable, HEADER_SIZE)
            room = sum(map(len, payload))
            if readable or not room:
                raise GuestFault("a receive buffer has the wrong form")
            if room > MAX_PAYLOAD:
                payload, room = split(payload, MAX_PAYLOAD)[0], MAX_PAYLOAD
            parked.append(_Buffer(head, header, payload, room))
        return bool(parked)

    def send(self, address: Address, op: int, *, flags: int = 0, window: int = 0, forwarded: int = 0) -> bool:
        """Give the guest one packet without payload; return whether there was a buffer for it."""
        if not self.reserve(1):
            return False
        buffer = self._parked.popleft()
        self._write_header(buffer, address, 0, op, flags, window, forwarded)
        self._queue.push(buffer.head, HEADER_SIZE)
        return True

    def fill(
        self, source: socket.socket, address: Address, *, limit: int, burst: int, window: int, forwarded: int
    ) -> tuple[int, bool]:
        """Receive up to `limit` bytes into at most `burst` reserved buffers, a packet each.

        Returns the number of bytes (0 at the end of the stream) and whether the source may hold more right now.
        Raises what `recvmsg_into` raises.
        """
        views: list[memoryview] = []
        room = 0
        for buffer in islice(self._parked, burst):
            if len(views) + len(buffer.payload) > MAX_CHAIN and views:
                break
            views += buffer.payload
            room += buffer.room
            if room >= limit:
                break
        if room > limit:
            views, room = split(views, limit)[0], limit
        count, _, flags, _ = source.recvmsg_into(views)
        left = count
        while left:
            buffer = self._parked.popleft()
            length = min(left, buffer.room)
            self._write_header(buffer, address, length, RW, 0, window, forwarded)
            self._queue.push(buffer.head, HEADER_SIZE + length)
            left -= length
        # A short read has emptied the socket, unless it stopped at descriptors that somebody passed (they are lost).
        return count, count == room or bool(flags & socket.MSG_CTRUNC)

    def _write_header(
        self, buffer: _Buffer, address: Address, length: int, op: int, flags: int, window: int, forwarded: int
    ) -> None:
        fields = (
            address.parent_cid, self._guest_cid, address.parent_port, address.guest_port,
            length, STREAM, op, flags, window, forwarded & 0xFFFFFFFF,
        )  # fmt: skip
        if len(buffer.header) == 1:
            HEADER.pack_into(buffer.header[0], 0, *fields)
            return
        raw = HEADER.pack(*fields)
        for view in buffer.header:  # a driver may cut its buffers anywhere (virtio 1.2, 2.7.4.1)
            view[:] = raw[: len(view)]
            raw = raw[len(view) :]

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
