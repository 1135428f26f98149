# SPDX-License-Identifier: MIT
"""The target of split virtqueues: a ring in memory that its driver changes at any moment."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from random import Random

from host_shim.vhost_user import packet
from host_shim.vhost_user.errors import GuestFault
from host_shim.vhost_user.inbox import Inbox
from host_shim.vhost_user.memory import Memory, Region
from host_shim.vhost_user.packet import Address
from host_shim.vhost_user.virtqueue import MAX_CHAIN, Layout, Virtqueue
from tests.host_shim.fake_driver import DESCRIPTOR, INDIRECT, NEXT, WRITE

from .target import Target, WrongVerdict

GUEST, USER, SIZE = 0x10000, 0x7000_0000, 0x8000  # addresses of the memory, and its bytes
CID = 4
QUEUE = 8  # descriptors of a ring
TABLE, AVAILABLE, USED, DATA = 0, 0x80, 0x100, 0x200  # where a ring has its parts, from its start
SECOND = 0x400  # where the second ring starts


class Guest:
    """Memory with the driver's half of a ring in it."""

    def __init__(self) -> None:
        self.raw = memoryview(bytearray(SIZE))
        self.memory = Memory([Region(GUEST, USER, SIZE, self.raw)])

    def ring(self, start: int, *, base: int = 0, event_idx: bool = True) -> Virtqueue:
        layout = Layout(QUEUE, USER + start + TABLE, USER + start + AVAILABLE, USER + start + USED)
        return Virtqueue(self.memory, layout, base=base, event_idx=event_idx, call=None)


# Rings. Flags, base (u16), number of steps; the ring's and data's bytes; then (place u16, value u8) changed in turn

_RINGS = struct.Struct("<BHB")
_POKE = struct.Struct("<HB")


def run_virtqueue(data: bytes) -> None:
    """Serve a ring in a memory that changes under the device."""
    if len(data) < _RINGS.size:
        return
    flags, base, steps = _RINGS.unpack_from(data)
    guest = Guest()
    image, pokes = data[_RINGS.size : _RINGS.size + SECOND], data[_RINGS.size + SECOND :]
    guest.raw[: len(image)] = image
    changes = _POKE.iter_unpack(pokes[: len(pokes) - len(pokes) % _POKE.size])
    queue = guest.ring(0, base=base, event_idx=bool(flags & 1))
    inbox = Inbox(queue, CID) if flags & 2 else None
    known: dict[tuple[int, int], list[memoryview]] = {}
    for step in range(steps % 64):
        for place, value in (change for change, _ in zip(changes, range(2), strict=False)):
            guest.raw[place % SIZE] = value
        if inbox is not None:
            inbox.send(Address(3, 1, 2), packet.RST)
            inbox.reserve(step % 4)
            inbox.publish()
            continue
        count = 1 + step % QUEUE
        if flags & 4:
            taken = queue.take_buffers(count, lambda readable, writable: readable + writable, known)
        else:
            taken = [(head, readable + writable) for head, readable, writable in queue.take(count)]
        if len(taken) > count:
            raise WrongVerdict("more chains were given out than asked for")
        for head, views in taken:
            if len(views) > MAX_CHAIN or any(view.obj is not guest.raw.obj for view in views) or head >= QUEUE:
                raise WrongVerdict("a chain was given out that is too long or outside the guest's memory")
        if taken:
            queue.push([number for head, views in taken for number in (head, sum(map(len, views)))])
            queue.publish()
        else:
            queue.arm()
    if inbox is not None:
        inbox.release()


def _image(descriptors: Sequence[tuple[int, int, int, int]], heads: Sequence[int], table: bytes = b"") -> bytes:
    image = bytearray(SECOND)
    for slot, descriptor in enumerate(descriptors):
        DESCRIPTOR.pack_into(image, TABLE + 16 * slot, *descriptor)
    struct.pack_into(f"<HH{len(heads)}H", image, AVAILABLE, 0, len(heads), *heads)
    image[DATA : DATA + len(table)] = table
    return bytes(image)


def virtqueue_seeds() -> Mapping[str, bytes]:
    at = GUEST + 0x1000
    one = _image([(at, 64, 0, 0), (at, 4096, WRITE, 0)], [0, 1])
    chained = _image([(at, 44, NEXT, 1), (at + 64, 8, NEXT, 2), (at + 128, 256, WRITE, 0)], [0, 0, 0])
    inner = DESCRIPTOR.pack(at, 44, NEXT, 1) + DESCRIPTOR.pack(at + 64, 512, WRITE, 0)
    indirect = _image([(GUEST + DATA, len(inner), INDIRECT, 0)], [0], inner)
    buffers = _image([(at + 512 * n, 512, WRITE, 0) for n in range(QUEUE)], list(range(QUEUE)))
    cut = _image([(at, 20, WRITE | NEXT, 1), (at + 64, 100, WRITE, 0)], [0])
    loop = _image([(at, 1, NEXT, 1), (at, 1, NEXT, 0)], [0])
    return {
        "one": _RINGS.pack(1, 0, 5) + one,
        "chained": _RINGS.pack(0, 0, 5) + chained,
        "indirect": _RINGS.pack(1, 0, 3) + indirect,
        "loop": _RINGS.pack(1, 0, 3) + loop,
        "inbox": _RINGS.pack(3, 0, 12) + buffers,
        "inbox-cut": _RINGS.pack(2, 0, 3) + cut,
        "remembered": _RINGS.pack(5, 0, 9) + buffers,
        "changing": _RINGS.pack(1, 0, 9) + one + _POKE.pack(AVAILABLE + 2, 9) + _POKE.pack(12, WRITE | NEXT),
    }


def change_virtqueue(data: bytes, random: Random) -> bytes:
    """Give one field of a descriptor or of the available ring an odd value."""
    raw = bytearray(data)
    values = (0, 1, 2, 3, 7, 8, 15, 16, 17, 0x7FFF, 0x8000, 0xFFFF, GUEST, GUEST + DATA, GUEST + SIZE, 1 << 32, -1)
    if random.randrange(4):
        offset, width = random.choice(((0, 8), (8, 4), (12, 2), (14, 2)))
        place = _RINGS.size + random.choice((TABLE, TABLE, DATA)) + 16 * random.randrange(QUEUE) + offset
    else:
        width, place = 2, _RINGS.size + AVAILABLE + 2 * random.randrange(QUEUE + 3)
    value = (random.choice(values) + random.choice((0, 0, 1, -1))) & ((1 << (8 * width)) - 1)
    raw[place : place + width] = value.to_bytes(width, "little")
    return bytes(raw)


TARGETS = (
    Target(
        "virtqueue", "a ring that its driver changes meanwhile", run_virtqueue, (GuestFault,), virtqueue_seeds,
        change_virtqueue,
    ),
)  # fmt: skip
