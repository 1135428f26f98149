# SPDX-License-Identifier: MIT
"""The guest's memory, mapped from QEMU's file descriptors and bounds-checked at every step."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import FrontendFault, GuestFault
from .protocol import MAX_FDS, REGION, TABLE, Message

_ADDRESS_END = 1 << 64
_MAX_MAPPING = 1 << 42  # bytes of one region's file; 4 TiB is more than any isolate has


@dataclass(frozen=True, slots=True)
class Region:
    """One stretch of guest memory: where the guest, QEMU and we see it."""

    guest: int
    user: int
    size: int
    view: memoryview


class Memory:
    """All regions of one memory table; views of it keep the mapping alive as long as they live themselves.

    Slices of a memoryview clip silently, so every access goes through the bounds checks here. A QEMU that shrinks its
    file afterwards ends this process by SIGBUS: its own isolate's loss, and the guest cannot cause it.
    """

    def __init__(self, regions: Sequence[Region]) -> None:
        # The largest first: nearly everything lies there.
        by_size = sorted(regions, key=lambda region: -region.size)
        self._guest = tuple((r.guest, r.guest + r.size, r.view) for r in by_size)
        self._user = tuple((r.user, r.user + r.size, r.view) for r in regions)

    def view(self, address: int, length: int) -> memoryview:
        """Return the bytes at a guest-physical address; raises GuestFault where they are not in one region."""
        end = address + length
        for first, last, view in self._guest:
            if first <= address and end <= last:
                return view[address - first : end - first]
        raise GuestFault("a descriptor points outside the guest's memory")

    def ring(self, address: int, length: int, *, align: int) -> memoryview:
        """Return a ring's bytes at an address of QEMU's (SET_VRING_ADDR); the guest chose it, so it is checked."""
        end = address + length
        for first, last, view in self._user:
            if first <= address and end <= last and (address - first) % align == 0:
                return view[address - first : end - first]
        raise GuestFault("a ring lies outside the guest's memory")


def map_memory(message: Message) -> Memory:
    """Map the regions of SET_MEM_TABLE; raises FrontendFault on a table that contradicts itself or its files."""
    payload = message.payload
    count = TABLE.unpack_from(payload)[0] if len(payload) >= TABLE.size else 0
    # QEMU sends the table cut at its last region; others send all eight places.
    whole = len(payload) >= TABLE.size + count * REGION.size
    if not 1 <= count <= MAX_FDS or not whole or len(message.fds) != count:
        raise FrontendFault("malformed memory table")
    regions = []
    for index in range(count):
        guest, size, user, offset = REGION.unpack_from(payload, TABLE.size + index * REGION.size)
        ends = (guest + size, user + size)
        if not size or max(ends) > _ADDRESS_END or offset + size > _MAX_MAPPING:
            raise FrontendFault("malformed memory region")
        try:
            # From 0: the offset need not be a multiple of the (huge) page. mmap keeps a duplicate of the descriptor
            # and refuses a file that is shorter.
            mapping = mmap.mmap(message.fds[index], offset + size)
        except (OSError, ValueError, OverflowError) as error:
            raise FrontendFault("a memory region cannot be mapped") from error
        regions.append(Region(guest, user, size, memoryview(mapping)[offset : offset + size]))
    return Memory(regions)
