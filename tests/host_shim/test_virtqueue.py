# SPDX-License-Identifier: MIT
"""Split rings over a real memory file: what a driver may do works, what it must not do raises GuestFault alone."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host_shim.vhost_user.errors import FrontendFault, GuestFault
from host_shim.vhost_user.inbox import Inbox
from host_shim.vhost_user.memory import Memory, map_memory
from host_shim.vhost_user.packet import Address, split
from host_shim.vhost_user.protocol import Message, Request
from host_shim.vhost_user.virtqueue import MAX_CHAIN, Chain, Layout, Virtqueue

from .fake_driver import pack_regions

GUEST, USER, SIZE = 0x10000, 0x7000_0000, 0x40000
TABLE, AVAILABLE, USED, DATA = 0, 0x4000, 0x5000, 0x10000
NEXT, WRITE, INDIRECT = 1, 2, 4
QUEUE = 8


def make_memory(*regions: tuple[int, int, int, int], size: int = SIZE) -> Memory:
    fd = os.memfd_create("guest")
    os.ftruncate(fd, size)
    regions = regions or ((GUEST, SIZE, USER, 0),)
    message = Message(Request.SET_MEM_TABLE, 1, pack_regions(regions), [os.dup(fd) for _ in regions])
    try:
        return map_memory(message)
    finally:
        message.close()
        os.close(fd)


class Guest:
    """The driver's side of one ring of eight descriptors."""

    def __init__(self, *, event_idx: bool = True, base: int = 0) -> None:
        self.memory = make_memory()
        self.raw = self.memory.view(GUEST, SIZE)
        struct.pack_into("<HH", self.raw, AVAILABLE, 0, base)
        struct.pack_into("<HH", self.raw, USED, 0, base)
        self.call = os.eventfd(0, os.EFD_NONBLOCK)
        layout = Layout(QUEUE, USER + TABLE, USER + AVAILABLE, USER + USED)
        self.queue = Virtqueue(self.memory, layout, base=base, event_idx=event_idx, call=self.call)
        self.index = base

    def describe(self, slot: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        struct.pack_into("<QIHH", self.raw, TABLE + 16 * slot, address, length, flags, following)

    def offer(self, *heads: int) -> None:
        for head in heads:
            struct.pack_into("<H", self.raw, AVAILABLE + 4 + 2 * (self.index % QUEUE), head)
            self.index = (self.index + 1) & 0xFFFF
        struct.pack_into("<H", self.raw, AVAILABLE + 2, self.index)

    @property
    def used_index(self) -> int:
        return int(struct.unpack_from("<H", self.raw, USED + 2)[0])

    def interrupted(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            return os.eventfd_read(self.call) > 0
        return False


def take_one(guest: Guest) -> Chain | None:
    chains = guest.queue.take(1)
    return chains[0] if chains else None


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    os.close(guest.call)


def test_a_chain_comes_as_what_may_be_read_and_what_may_be_written(guest: Guest) -> None:
    guest.raw[DATA : DATA + 5] = b"hello"
    guest.describe(3, GUEST + DATA, 5, NEXT, 1)
    guest.describe(1, GUEST + DATA + 100, 7, WRITE)
    guest.offer(3)
    chain = take_one(guest)
    assert chain is not None
    head, readable, writable = chain
    assert (head, [bytes(view) for view in readable], [len(view) for view in writable]) == (3, [b"hello"], [7])
    assert take_one(guest) is None


def test_indices_wrap_at_65536() -> None:
    guest = Guest(base=0xFFFE)
    for slot in range(QUEUE):
        guest.describe(slot, GUEST + DATA, 1)
    guest.offer(0, 1, 2, 3)
    for expected in range(4):
        chain = take_one(guest)
        assert chain is not None
        assert chain[0] == expected
        guest.queue.push([chain[0], 10 + expected])
    guest.queue.publish()
    assert guest.used_index == guest.queue.next == 2
    elements = [struct.unpack_from("<II", guest.raw, USED + 4 + 8 * (i % QUEUE)) for i in range(0xFFFE, 0x10002)]
    assert elements == [(0, 10), (1, 11), (2, 12), (3, 13)]


def test_an_indirect_table_is_followed_from_a_copy(guest: Guest) -> None:
    table = DATA + 0x1000
    struct.pack_into("<QIHH", guest.raw, table, GUEST + DATA, 3, NEXT, 2)
    struct.pack_into("<QIHH", guest.raw, table + 32, GUEST + DATA + 3, 4, 0, 0)
    guest.describe(0, GUEST + table, 48, INDIRECT)
    guest.offer(0)
    chain = take_one(guest)
    assert chain is not None
    assert [len(view) for view in chain[1]] == [3, 4]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((GUEST + DATA, 3, NEXT, 1), (GUEST + DATA + 3, 4, 0, 0), ([3, 4], [])),
        ((GUEST + DATA, 3, NEXT, 1), (GUEST + DATA + 3, 4, 0, 9), ([3, 4], [])),  # a last one's next means nothing
        ((GUEST + DATA, 3, NEXT, 1), (GUEST + DATA + 3, 4, WRITE, 0), ([3], [4])),
        ((GUEST + DATA, 3, 0, 1), (GUEST + DATA + 3, 4, 0, 0), ([3], [])),
        ((GUEST + DATA, 3, NEXT, 1), (GUEST + DATA + 3, 4, NEXT, 0), "loop"),
        ((GUEST + DATA, 3, NEXT, 0), (GUEST + DATA + 3, 4, 0, 0), "loop"),
        ((GUEST + DATA, 3, NEXT, 2), (GUEST + DATA + 3, 4, 0, 0), "outside its table"),
        ((GUEST + DATA, 3, NEXT, 1), (GUEST + SIZE - 3, 4, 0, 0), "outside the guest's memory"),
        ((GUEST - 1, 3, NEXT, 1), (GUEST + DATA, 4, 0, 0), "outside the guest's memory"),
        ((GUEST + DATA, 16, NEXT | INDIRECT, 1), (GUEST + DATA, 4, 0, 0), "indirect"),
    ],
)
def test_an_indirect_table_of_two_is_read_as_any_other(
    guest: Guest,
    first: tuple[int, int, int, int],
    second: tuple[int, int, int, int],
    expected: tuple[list[int], list[int]] | str,
) -> None:
    table = DATA + 0x1000
    struct.pack_into("<QIHHQIHH", guest.raw, table, *first, *second)
    guest.describe(0, GUEST + table, 32, INDIRECT)
    guest.offer(0)
    if isinstance(expected, str):
        with pytest.raises(GuestFault, match=expected):
            guest.queue.take(1)
    else:
        ((_, readable, writable),) = guest.queue.take(1)
        assert ([len(view) for view in readable], [len(view) for view in writable]) == expected


def test_with_event_idx_the_guest_is_interrupted_where_it_asked(guest: Guest) -> None:
    guest.describe(0, GUEST + DATA, 1)
    for wanted_at, expected in ((0, True), (5, False), (2, True)):
        struct.pack_into("<H", guest.raw, AVAILABLE + 4 + 2 * QUEUE, wanted_at)
        guest.offer(0)
        assert take_one(guest) is not None
        guest.queue.push([0, 0])
        guest.queue.publish()
        assert guest.interrupted() is expected


def test_without_event_idx_flags_hold_back_interrupts_and_kicks() -> None:
    guest = Guest(event_idx=False)
    guest.describe(0, GUEST + DATA, 1)
    for flags, expected in ((0, True), (1, False)):
        struct.pack_into("<H", guest.raw, AVAILABLE, flags)
        guest.offer(0)
        assert take_one(guest) is not None
        assert struct.unpack_from("<H", guest.raw, USED) == (1,)
        guest.queue.push([0, 0])
        guest.queue.publish()
        assert guest.interrupted() is expected
        assert guest.queue.arm() is False
        assert struct.unpack_from("<H", guest.raw, USED) == (0,)


def test_arming_tells_of_a_chain_that_came_meanwhile(guest: Guest) -> None:
    guest.describe(0, GUEST + DATA, 1)
    assert take_one(guest) is None
    guest.offer(0)
    assert guest.queue.arm() is True
    assert struct.unpack_from("<H", guest.raw, USED + 4 + 8 * QUEUE) == (0,)


@pytest.mark.parametrize(
    ("descriptors", "message"),
    [
        ({0: (GUEST + SIZE - 1, 2, 0, 0)}, "outside the guest's memory"),
        ({0: (GUEST - 1, 2, 0, 0)}, "outside the guest's memory"),
        ({0: (0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF, 0, 0)}, "outside the guest's memory"),
        ({0: (GUEST, 1, NEXT, QUEUE)}, "outside its table"),
        ({0: (GUEST, 1, NEXT, 0)}, "loop"),
        ({0: (GUEST, 1, NEXT, 1), 1: (GUEST, 1, NEXT, 0)}, "loop"),
        ({0: (GUEST, 1, WRITE | NEXT, 1), 1: (GUEST, 1, 0, 0)}, "readable descriptor follows"),
        ({0: (GUEST + DATA, 15, INDIRECT, 0)}, "indirect"),
        ({0: (GUEST + DATA, 0, INDIRECT, 0)}, "indirect"),
        ({0: (GUEST + DATA, 16, INDIRECT | NEXT, 0)}, "indirect"),
        ({0: (GUEST + DATA, 16 * (MAX_CHAIN + 1), INDIRECT, 0)}, "indirect"),
        ({0: (GUEST + TABLE, 16, INDIRECT, 0)}, "indirect"),  # one that names itself
    ],
)
def test_refuses_a_chain_that_breaks_the_rules(
    guest: Guest, descriptors: dict[int, tuple[int, int, int, int]], message: str
) -> None:
    for slot, fields in descriptors.items():
        guest.describe(slot, *fields)
    guest.offer(0)
    with pytest.raises(GuestFault, match=message):
        take_one(guest)


def test_refuses_an_index_beyond_the_ring(guest: Guest) -> None:
    guest.offer(*[0] * (QUEUE + 1))
    with pytest.raises(GuestFault, match="ahead of the ring"):
        take_one(guest)
    other = Guest()
    other.offer(QUEUE)
    with pytest.raises(GuestFault, match="outside its table"):
        other.queue.take(1)


@pytest.mark.parametrize("part", ["descriptors", "available", "used"])
@pytest.mark.parametrize("address", [USER - 16, USER + SIZE - 16, USER + 1, GUEST, (1 << 64) - 1])
def test_refuses_a_ring_outside_memory_or_out_of_line(part: str, address: int) -> None:
    places = {"descriptors": USER, "available": USER + AVAILABLE, "used": USER + USED, part: address}
    with pytest.raises(GuestFault, match="ring lies outside"):
        Virtqueue(make_memory(), Layout(QUEUE, **places), base=0, event_idx=True, call=None)


@settings(max_examples=300, deadline=None)
@given(
    table=st.binary(min_size=16 * QUEUE, max_size=16 * QUEUE),
    near=st.lists(
        st.tuples(
            st.integers(GUEST - 4, GUEST + SIZE + 4), st.integers(0, 400), st.integers(0, 7), st.integers(0, QUEUE)
        ),
        max_size=QUEUE,
    ),
    ring=st.lists(st.integers(0, QUEUE), min_size=QUEUE, max_size=QUEUE),
    ahead=st.integers(0, QUEUE + 2),
    event_idx=st.booleans(),
)
def test_random_rings_give_chains_or_a_guest_fault(
    table: bytes, near: list[tuple[int, int, int, int]], ring: list[int], ahead: int, event_idx: bool
) -> None:
    guest = Guest(event_idx=event_idx)
    try:
        guest.raw[: len(table)] = table
        for slot, fields in enumerate(near):
            guest.describe(slot, *fields)
        struct.pack_into(f"<{QUEUE}H", guest.raw, AVAILABLE + 4, *ring)
        struct.pack_into("<H", guest.raw, AVAILABLE + 2, ahead)
        with contextlib.suppress(GuestFault):
            while (chain := take_one(guest)) is not None:
                head, readable, writable = chain
                assert len(readable) + len(writable) <= MAX_CHAIN
                for view in writable:
                    view[:1] = b"!"[: len(view)]
                guest.queue.push([head, 0])
            guest.queue.publish()
            guest.queue.arm()
    finally:
        os.close(guest.call)


@pytest.mark.parametrize(
    "regions",
    [
        [(GUEST, 0, USER, 0)],
        [(GUEST, SIZE + 1, USER, 0)],
        [(GUEST, SIZE, USER, 1)],
        [((1 << 64) - 1, SIZE, USER, 0)],
        [(GUEST, SIZE, (1 << 64) - 1, 0)],
        [(GUEST, 1 << 63, USER, 1 << 63)],
    ],
)
def test_refuses_a_memory_region_that_its_file_does_not_have(regions: list[tuple[int, int, int, int]]) -> None:
    with pytest.raises(FrontendFault, match="memory region"):
        make_memory(*regions)


@pytest.mark.parametrize(("payload", "fds"), [(b"", 0), (bytes(8), 0), (b"\x02" + bytes(39), 2), (b"\xff" * 8, 1)])
def test_refuses_a_malformed_memory_table(payload: bytes, fds: int) -> None:
    message = Message(Request.SET_MEM_TABLE, 1, payload, [os.memfd_create("m") for _ in range(fds)])
    with pytest.raises(FrontendFault, match="memory table"):
        map_memory(message)
    message.close()


def test_memory_is_unmapped_when_nothing_looks_at_it() -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:guest")

    before = mapped()
    memory = make_memory((GUEST, SIZE // 2, USER, 0), (GUEST + SIZE, SIZE // 2, USER + SIZE, SIZE // 2))
    view = memory.view(GUEST + SIZE, 10)
    assert mapped() > before
    del memory, view
    assert mapped() == before


def test_two_regions_are_told_apart() -> None:
    memory = make_memory((GUEST, SIZE // 2, USER, 0), (GUEST + SIZE, SIZE // 2, USER + SIZE, SIZE // 2))
    memory.view(GUEST + SIZE, 1)[0] = 7
    assert memory.ring(USER + SIZE, 1, align=1)[0] == 7
    with pytest.raises(GuestFault):
        memory.view(GUEST + SIZE // 2 - 1, 2)


@given(sizes=st.lists(st.integers(0, 5), max_size=6), count=st.integers(0, 40))
def test_splitting_a_scatter_list_loses_nothing(sizes: list[int], count: int) -> None:
    whole = bytes(range(sum(sizes)))
    views, at = [], 0
    for size in sizes:
        views.append(memoryview(whole)[at : at + size])
        at += size
    before, after = split(views, count)
    assert b"".join(before) == whole[:count]
    assert b"".join(after) == whole[count:]


def test_a_packet_fits_into_a_buffer_that_the_driver_cut_anywhere(guest: Guest) -> None:
    guest.describe(0, GUEST + DATA, 20, WRITE | NEXT, 1)
    guest.describe(1, GUEST + DATA + 0x100, 30, WRITE)
    guest.offer(0)
    inbox = Inbox(guest.queue, 4)
    assert inbox.send(Address(3, 9000, 1234), 1, window=7, forwarded=8)
    raw = bytes(guest.raw[DATA : DATA + 20]) + bytes(guest.raw[DATA + 0x100 : DATA + 0x118])
    assert struct.unpack("<QQIIIHHIII", raw) == (3, 4, 9000, 1234, 0, 1, 1, 0, 7, 8)


@pytest.mark.parametrize("size", [0, 43, 44])
def test_refuses_a_receive_buffer_without_room_for_a_byte(guest: Guest, size: int) -> None:
    guest.describe(0, GUEST + DATA, size, WRITE)
    guest.offer(0)
    with pytest.raises(GuestFault, match="receive buffer"):
        Inbox(guest.queue, 4).reserve(1)


def test_buffers_that_are_parked_go_back_to_the_ring(guest: Guest) -> None:
    for slot in range(4):
        guest.describe(slot, GUEST + DATA, 100, WRITE)
    guest.offer(0, 1, 2, 3)
    inbox = Inbox(guest.queue, 4)
    inbox.reserve(3)
    inbox.send(Address(3, 1, 2), 1)
    inbox.release()
    assert guest.queue.next == 1
