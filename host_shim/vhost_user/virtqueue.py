# SPDX-License-Identifier: MIT
"""Split virtqueues (virtio 1.2, 2.7), from the device's side, over memory that the driver may change at any moment.

Whatever is read from the rings is read once, checked, and then used. Little-endian throughout: these are x86 guests,
for which a legacy device's native order is the same.
"""

from __future__ import annotations

import os
import struct
import threading
from array import array
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import TypeVar

from .errors import GuestFault
from .memory import Memory

MAX_SIZE = 32768  # descriptors of a split ring; virtio 1.2, 2.7
MAX_CHAIN = 1024  # descriptors of one chain; IOV_MAX, and more than any ring of QEMU's
MAX_PIECES = 4096  # descriptors that `take` reads before it lets others have their turn

_NEXT, _WRITE, _INDIRECT = 1, 2, 4  # virtio 1.2, 2.7.5: VIRTQ_DESC_F_*
_NO_INTERRUPT, _NO_NOTIFY = 1, 1  # 2.7.6 and 2.7.8: avail->flags, used->flags
_DESCRIPTOR = struct.Struct("<QIHH")  # address, length, flags, next
_PAIR = struct.Struct("<QIHHQIHH")  # a table of two
_BARRIER = threading.Lock()

Views = list[memoryview]
Chain = tuple[int, Views, Views]  # its head, what the device may read, what it may write
Place = TypeVar("Place")


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
    """One started ring: take chains with `take`, hand them back with `push`, make that visible with `publish`."""

    def __init__(self, memory: Memory, layout: Layout, *, base: int, event_idx: bool, call: int | None) -> None:
        """Raises GuestFault where a part of the ring is not in the guest's memory."""
        size = layout.size
        self._memory = memory
        self.size = size
        self._event_idx = event_idx
        self.call = call  # eventfd that interrupts the guest; QEMU replaces it at any time
        self._table = memory.ring(layout.descriptors, 16 * size, align=16)
        # cast("H"): an index is one 16-bit access. Both rings end in a word of the event index.
        self._available = memory.ring(layout.available, 6 + 2 * size, align=2).cast("H")
        used = memory.ring(layout.used, 6 + 8 * size, align=4)
        self._used = used.cast("H")
        self._elements = used[4 : 4 + 8 * size].cast("I")
        self._seen = self.next = base & 0xFFFF
        self._out = 0  # chains that are taken and not handed back
        self._filled = self._shown = self._used[1]
        self._armed = True

    def take(self, count: int) -> list[Chain]:
        """Take the next chains, `count` at most, up to one that is malformed; raises GuestFault if that is the first.

        After MAX_PIECES descriptors it takes no more: `more` then says that there are.
        """
        heads = self._heads(count)
        table, unpack_from, view = self._table, _DESCRIPTOR.unpack_from, self._memory.view
        chains: list[Chain] = []
        pieces = 0
        for head in heads:
            address, length, flags, _ = unpack_from(table, head * 16)
            try:
                if flags == _INDIRECT and length == _PAIR.size:  # what Linux sends: a header and one piece of payload
                    at, size, following, index, at2, size2, last, _ = _PAIR.unpack(view(address, length))
                    if following == _NEXT and index == 1 and last == 0:
                        chains.append((head, [view(at, size), view(at2, size2)], []))
                        continue
                readable, writable = self._walk(head)
            except GuestFault:
                if not chains:
                    raise
                break  # what came before it has its turn first
            chains.append((head, readable, writable))
            pieces += len(readable) + len(writable)
            if pieces >= MAX_PIECES:
                break
        self._advance(len(chains))
        return chains

    def _advance(self, count: int) -> None:
        self.next = (self.next + count) & 0xFFFF
        self._out += count

    @property
    def more(self) -> bool:
        """Whether chains that the guest was seen to offer are not taken yet."""
        return self._seen != self.next

    def offered(self) -> int:
        """Return how many chains the guest offers now; never more than the ring has places."""
        return min((self._available[1] - self.next) & 0xFFFF, self.size)

    def take_buffers(
        self, count: int, make: Callable[[Views, Views], Place], known: MutableMapping[tuple[int, int], Place]
    ) -> list[tuple[int, Place]]:
        """Take chains as `take` does, each as its head and what `make` makes of it.

        Drivers offer the same few places again and again: `known` remembers by address and length what was made of
        those of one writable descriptor, so that their bounds are checked once.
        """
        heads = self._heads(count)
        table, unpack_from = self._table, _DESCRIPTOR.unpack_from
        buffers = []
        for head in heads:
            address, length, flags, _ = unpack_from(table, head * 16)
            if flags == _WRITE:
                place = known.get((address, length))
                if place is None:
                    place = known[address, length] = make([], [self._memory.view(address, length)])
            else:
                place = make(*self._walk(head))
            buffers.append((head, place))
        self._advance(len(heads))
        return buffers

    def _heads(self, count: int) -> list[int]:
        """Return the next heads that the guest offers; its index is read again once all that it showed are taken."""
        if self._seen == self.next:
            seen = self._available[1]
            if seen == self.next:
                return []
            if ((seen - self.next) & 0xFFFF) + self._out > self.size:  # some of them twice at once
                raise GuestFault("a ring's available index runs ahead of the ring")
            self._seen = seen
            if self._armed:
                self._disarm()
        count = min(count, (self._seen - self.next) & 0xFFFF)
        first = 2 + self.next % self.size
        end = 2 + self.size
        heads = self._available[first : min(first + count, end)].tolist()
        if len(heads) < count:
            heads += self._available[2 : 2 + count - len(heads)].tolist()
        if max(heads) >= self.size:
            raise GuestFault("a descriptor's index lies outside its table")
        return heads

    def _walk(self, index: int) -> tuple[Views, Views]:
        table: memoryview | bytes = self._table
        count = self.size
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
        """Give back the last `count` chains unused, as if they had never been taken."""
        self._advance(-count)

    def push(self, used: list[int]) -> None:
        """Hand chains back, each as its head and the number of bytes in it; the guest sees them after `publish`."""
        first = 2 * (self._filled % self.size)
        end = 2 * self.size
        elements = array("I", used)
        fitting = min(len(used), end - first)
        self._elements[first : first + fitting] = elements[:fitting]
        if fitting < len(used):
            self._elements[: len(used) - fitting] = elements[fitting:]
        self._filled = (self._filled + len(used) // 2) & 0xFFFF
        self._out -= len(used) // 2

    def publish(self) -> None:
        """Show the guest all that was pushed, and interrupt it if it wants to know."""
        old, new = self._shown, self._filled
        if old == new:
            return
        self._used[1] = new  # after the elements: x86 keeps stores in order
        self._shown = new
        full_barrier()
        if self._event_idx:  # 2.7.10
            wanted = (new - self._available[2 + self.size] - 1) & 0xFFFF < (new - old) & 0xFFFF
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
            self._used[2 + 4 * self.size] = self.next
        else:
            self._used[0] = 0
        full_barrier()
        return self._available[1] != self.next

    def _disarm(self) -> None:
        # No kicks while the queue is looked at anyway; with EVENT_IDX an old index does that by itself.
        self._armed = False
        if not self._event_idx:
            self._used[0] = _NO_NOTIFY
