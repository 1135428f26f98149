# SPDX-License-Identifier: MIT
"""Split virtqueues (virtio 1.2, 2.7), from the device's side, over memory that the driver may change at any moment.

Whatever is read from the rings is read once, checked, and then used. Little-endian throughout: these are x86 guests,
for which a legacy device's native order is the same.
"""

from __future__ import annotations

import os
import struct
import threading
from dataclasses import dataclass

from .errors import GuestFault
from .memory import Memory

MAX_SIZE = 32768  # descriptors of a split ring; virtio 1.2, 2.7
MAX_CHAIN = 1024  # descriptors of one chain; IOV_MAX, and more than any ring of QEMU's

_NEXT, _WRITE, _INDIRECT = 1, 2, 4  # virtio 1.2, 2.7.5: VIRTQ_DESC_F_*
_NO_INTERRUPT, _NO_NOTIFY = 1, 1  # 2.7.6 and 2.7.8: avail->flags, used->flags
_DESCRIPTOR = struct.Struct("<QIHH")  # address, length, flags, next
_BARRIER = threading.Lock()

Views = list[memoryview]


def full_barrier() -> None:
    """Order our store before our next load, as x86 alone does not.

    A lock's compare-and-swap is a full fence on x86; a port to ARM needs a real `dmb ish` here.
    """
    with _BARRIER:
        pass


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the three parts of a ring are, in QEMU's addresses, and how many descriptors it has."""

    size: int
    descriptors: int
    available: int
    used: int


class Virtqueue:
    """One started ring: take chains with `pop`, hand them back with `push`, make that visible with `publish`."""

    def __init__(self, memory: Memory, layout: Layout, *, base: int, event_idx: bool, call: int | None) -> None:
        """Raises GuestFault where a part of the ring is not in the guest's memory."""
        size = layout.size
        self._memory = memory
        self._size = size
        self._event_idx = event_idx
        self.call = call  # eventfd that interrupts the guest; QEMU replaces it at any time
        self._table = memory.ring(layout.descriptors, 16 * size, align=16)
        # cast("H"): an index is one 16-bit access. Both rings end in a word of the event index.
        self._available = memory.ring(layout.available, 6 + 2 * size, align=2).cast("H")
        used = memory.ring(layout.used, 6 + 8 * size, align=4)
        self._used = used.cast("H")
        self._elements = used[4 : 4 + 8 * size].cast("I")
        self._seen = self.next = base & 0xFFFF
        self._filled = self._shown = self._used[1]
        self._armed = True

    def pop(self) -> tuple[int, Views, Views] | None:
        """Take the next chain: its head, what the device may read and what it may write; None when there is none."""
        if self._seen == self.next:
            seen = self._available[1]
            if seen == self.next:
                return None
            if (seen - self.next) & 0xFFFF > self._size:
                raise GuestFault("a ring's available index runs ahead of the ring")
            self._seen = seen
            if self._armed:
                self._disarm()
        head = self._available[2 + self.next % self._size]
        if head >= self._size:
            raise GuestFault("a descriptor's index lies outside its table")
        address, length, flags, _ = _DESCRIPTOR.unpack_from(self._table, head * 16)
        if flags == _WRITE:  # by far the most: one descriptor, for us to fill
            chain: tuple[int, Views, Views] = head, [], [self._memory.view(address, length)]
        else:
            chain = head, *self._walk(head)
        self.next = (self.next + 1) & 0xFFFF
        return chain

    def _walk(self, index: int) -> tuple[Views, Views]:
        table: memoryview | bytes = self._table
        count = self._size
        view = self._memory.view
        readable: Views = []
        writable: Views = []
        for _ in range(MAX_CHAIN):
            if index >= count:
                raise GuestFault("a descriptor's index lies outside its table")
            address, length, flags, following = _DESCRIPTOR.unpack_from(table, index * 16)
            if flags & _INDIRECT:
                # 2.7.5.3.1: one level, never with NEXT. The copy cannot change under us.
                if isinstance(table, bytes) or flags & _NEXT or not length or length % 16 or length > 16 * MAX_CHAIN:
                    raise GuestFault("malformed indirect descriptor")
                table, count, index = bytes(view(address, length)), length // 16, 0
                continue
            if flags & _WRITE:
                writable.append(view(address, length))
            elif writable:
                raise GuestFault("a readable descriptor follows a writable one")  # 2.7.4.2
            else:
                readable.append(view(address, length))
            if not flags & _NEXT:
                return readable, writable
            index = following
        raise GuestFault("a chain of descriptors is too long or has a loop")

    def rewind(self, count: int) -> None:
        """Give back the last `count` chains unused, as if they had never been popped."""
        self.next = (self.next - count) & 0xFFFF

    def push(self, head: int, written: int) -> None:
        """Hand a chain back with `written` bytes in it; the guest sees it after `publish`."""
        place = 2 * (self._filled % self._size)
        self._elements[place] = head
        self._elements[place + 1] = written
        self._filled = (self._filled + 1) & 0xFFFF

    def publish(self) -> None:
        """Show the guest all that was pushed, and interrupt it if it wants to know."""
        old, new = self._shown, self._filled
        if old == new:
            return
        self._used[1] = new  # after the elements: x86 keeps stores in order
        self._shown = new
        full_barrier()
        if self._event_idx:  # 2.7.10
            wanted = (new - self._available[2 + self._size] - 1) & 0xFFFF < (new - old) & 0xFFFF
        else:
            wanted = not self._available[0] & _NO_INTERRUPT
        if wanted and self.call is not None:
            try:
                os.eventfd_write(self.call, 1)
            except OSError:
                self.call = None  # not an eventfd that can be written: QEMU's own loss

    def arm(self) -> bool:
        """Ask for a kick when the guest adds a chain; return whether there is one already."""
        self._armed = True
        if self._event_idx:
            self._used[2 + 4 * self._size] = self.next
        else:
            self._used[0] = 0
        full_barrier()
        return self._available[1] != self.next

    def _disarm(self) -> None:
        # No kicks while the queue is looked at anyway; with EVENT_IDX an old index does that by itself.
        self._armed = False
        if not self._event_idx:
            self._used[0] = _NO_NOTIFY
