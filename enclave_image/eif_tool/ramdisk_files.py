# SPDX-License-Identifier: MIT
"""The files of a ramdisk, as they are once the kernel has unpacked it: the last entry of a path counts."""

from __future__ import annotations

import contextlib
import hashlib
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ..errors import MalformedRamdisk
from .cpio_reader import MAX_NAME, Budget, Entry, Member, read_ramdisk
from .layout import Part, Source, pieces


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One path of a ramdisk."""

    mode: int
    uid: int
    gid: int
    mtime: int
    size: int
    sha256: str  # hex, of a regular file's data; empty for other kinds
    target: str  # of a symbolic link
    device: tuple[int, int]

    @property
    def kind(self) -> str:
        """What it is, in a word."""
        return _KINDS.get(stat.S_IFMT(self.mode), "unknown")

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def permissions(self) -> str:
        """The mode without its type, in octal."""
        return f"{stat.S_IMODE(self.mode):04o}"


_KINDS = {
    stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link", stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket",
}  # fmt: skip

Index = Mapping[str, FileRecord]


@contextlib.contextmanager
def open_ramdisk(source: Source, part: Part, budget: Budget) -> Iterator[Iterator[Member]]:
    """Give the members of one ramdisk section; let a MalformedRamdisk from reading them or their data name it."""
    try:
        yield read_ramdisk(pieces(source, part.start, part.size), budget)
    except MalformedRamdisk as error:
        error.what = f"{part.place}: {error.what}"
        raise


def index_ramdisk(source: Source, part: Part, budget: Budget) -> Index:
    """Return the record of each path of a ramdisk; raise MalformedRamdisk."""
    with open_ramdisk(source, part, budget) as members:
        return index_members(members)


def index_members(members: Iterator[Member]) -> Index:
    """Return the record of each path; a hard link has the data of whichever of its names carries it."""
    records: dict[str, FileRecord] = {}
    links: dict[str, tuple[int, int, int, int]] = {}  # path -> the file that it is one of several names of
    shared: dict[tuple[int, int, int, int], FileRecord] = {}
    for entry, data in members:
        record = _read_record(entry, data)
        records[entry.path] = record
        links.pop(entry.path, None)
        if entry.link is not None:
            links[entry.path] = entry.link
            if record.size:  # they stand at the last of the names, as a rule
                shared[entry.link] = record
    for path, link in links.items():
        if link in shared:
            records[path] = replace(records[path], size=shared[link].size, sha256=shared[link].sha256)
    return records


def _read_record(entry: Entry, data: Iterator[bytes]) -> FileRecord:
    sha256, target = "", ""
    if entry.is_file:
        digest = hashlib.sha256()
        for piece in data:
            digest.update(piece)
        sha256 = digest.hexdigest()
    elif stat.S_ISLNK(entry.mode):
        if entry.size > MAX_NAME:
            raise MalformedRamdisk("a link's target is too long", expected=f"at most {MAX_NAME}", actual=entry.size)
        target = b"".join(data).decode("utf-8", "surrogateescape")
    device = entry.device if stat.S_ISCHR(entry.mode) or stat.S_ISBLK(entry.mode) else (0, 0)
    return FileRecord(
        entry.mode, entry.uid, entry.gid, entry.mtime, entry.size, sha256, target, device
    )  # fmt: skip
