# SPDX-License-Identifier: MIT
"""Read a ramdisk as the kernel does: archives one after the other, each a newc cpio, compressed or not.

Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst and init/initramfs.c. Untrusted bytes:
names, numbers of entries and bytes unpacked are limited, nothing is kept but what is asked for.
"""

from __future__ import annotations

import re
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from attestation.files import PIECE

from ..eif import MAX_EIF
from ..errors import MalformedRamdisk
from .decompression import Feed, Packing, decompress, find_packing

MAX_NAME = 4096  # bytes; PATH_MAX, above which the kernel skips an entry
MAX_ENTRIES = 400_000  # of all ramdisks; a large container image has 200,000 files
MAX_NAMES = 64 * 1024 * 1024  # bytes of all names
MAX_UNPACKED = MAX_EIF  # bytes of all ramdisks: the kernel unpacks them into memory
TRAILER = b"TRAILER!!!"
HEAD = 110  # bytes: magic and 13 fields of 8 hex digits
_MAGICS = (b"070701", b"070702")
_FIELDS = re.compile(rb"[0-9a-fA-F]{104}")


@dataclass(slots=True)
class Budget:
    """What may still be unpacked of one image; limits are for all its ramdisks together."""

    unpacked: int = MAX_UNPACKED
    entries: int = MAX_ENTRIES
    names: int = MAX_NAMES

    def count(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Pass pieces on until their bytes are spent; raise MalformedRamdisk then."""
        for piece in pieces:
            self.unpacked -= len(piece)
            if self.unpacked < 0:
                raise MalformedRamdisk("the ramdisks are too large unpacked", expected=f"at most {MAX_UNPACKED} bytes")
            yield piece

    def spend(self, name: bytes) -> None:
        """Count an entry; raise MalformedRamdisk where there are too many."""
        self.entries -= 1
        self.names -= len(name)
        if self.entries < 0 or self.names < 0:
            raise MalformedRamdisk(
                "the ramdisks hold too much", expected=f"at most {MAX_ENTRIES} entries with {MAX_NAMES} bytes of names"
            )


@dataclass(frozen=True, slots=True)
class Entry:
    """One archive member; `name` is as it stands there, its bytes that are not UTF-8 as surrogates."""

    name: str
    mode: int  # with the type's bits
    uid: int
    gid: int
    mtime: int
    size: int  # bytes of data
    device: tuple[int, int]  # of a device node
    link: tuple[int, int, int, int] | None  # archive, device, inode: equal for names of one file; None: its only name
    archive: Packing = field(compare=False)

    @property
    def path(self) -> str:
        """Where the kernel puts it, without leading slash: `/`, `.` and empty steps are dropped, `..` stays."""
        return "/".join(step for step in self.name.split("/") if step not in ("", "."))

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)


Member = tuple[Entry, Iterator[bytes]]


def read_ramdisk(pieces: Iterator[bytes], budget: Budget) -> Iterator[Member]:
    """Yield each member of a ramdisk with its data in pieces, which are read before the next is asked for, or never.

    Raises MalformedRamdisk, naming the place.
    """
    feed, number = Feed(pieces), 0
    while True:
        feed.skip_zeros()
        head = feed.peek(6)
        if not head:
            return
        packing = find_packing(head)
        if packing is None:
            raise MalformedRamdisk(f"at byte {feed.position}: neither a cpio archive nor a compressed one", actual=head)
        inside = feed
        if packing is not Packing.NONE:
            budget.spend(b"")  # it costs time, whatever is in it
            inside = Feed(budget.count(decompress(feed, packing)))
        while inside.peek(1):
            number += 1
            yield from _read_archive(inside, packing, number, budget)
            inside.skip_zeros()
            if inside is feed:
                break


def _read_archive(feed: Feed, packing: Packing, number: int, budget: Budget) -> Iterator[Member]:
    while True:
        place = f"archive {number}, byte {feed.position}"
        fields = _read_fields(feed.take(HEAD), place)
        inode, mode, uid, gid, links, mtime, size, dev_major, dev_minor, major, minor, name_size, _ = fields
        if not 1 <= name_size <= MAX_NAME:
            raise MalformedRamdisk(f"{place}: size of a name", expected=f"1 to {MAX_NAME}", actual=name_size)
        raw = feed.take(name_size + -(HEAD + name_size) % 4)
        if len(raw) < name_size or raw[name_size - 1] != 0:
            raise MalformedRamdisk(f"{place}: a name without its end")
        name = raw[: name_size - 1].partition(b"\0")[0]
        budget.spend(name)  # a trailer too, so that archives are limited as entries are
        if name == TRAILER:
            return
        link = (number, dev_major, dev_minor, inode) if links > 1 and stat.S_ISREG(mode) else None
        data = _Data(feed, size, place)
        text = name.decode("utf-8", "surrogateescape")
        yield Entry(text, mode, uid, gid, mtime, size, (major, minor), link, packing), data
        for _ in data:
            pass
        feed.take(-size % 4)


def _read_fields(head: bytes, place: str) -> tuple[int, ...]:
    if len(head) < HEAD:
        raise MalformedRamdisk(f"{place}: the archive is truncated", hint="it may go on in the next ramdisk")
    if head[:6] not in _MAGICS:
        raise MalformedRamdisk(f"{place}: not the start of an entry", expected="070701", actual=head[:6])
    if not _FIELDS.fullmatch(head, 6):
        raise MalformedRamdisk(f"{place}: a field is no hex number", actual=head)
    return struct.unpack(">13I", bytes.fromhex(head[6:].decode("ascii")))


class _Data:
    """The data of one member, in pieces."""

    def __init__(self, feed: Feed, size: int, place: str) -> None:
        self._feed = feed
        self._left = size
        self._place = place

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if not self._left:
            raise StopIteration
        piece = self._feed.take(min(self._left, PIECE))
        if not piece:
            raise MalformedRamdisk(f"{self._place}: an entry's data is truncated")
        self._left -= len(piece)
        return piece
