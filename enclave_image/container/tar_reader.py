# SPDX-License-Identifier: MIT
"""Read a tar archive of any origin: its members as they stand there, within limits, nothing written.

Sources: POSIX.1-2024 pax, "ustar Interchange Format" and "pax Header Block"; tar(5) of libarchive for GNU's long names
and base-256 numbers. What two readers could take for different things is refused: a wrong checksum, sparse files,
global headers that rename, bytes behind the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from ..eif_tool.layout import Source
from ..errors import MalformedContainer

BLOCK = 512  # bytes
MAX_NAME = 4096  # bytes; PATH_MAX
MAX_EXTENSION = 1 << 20  # bytes of one pax header
MAX_ENTRIES = 400_000  # of all layers; what the reader of ramdisks takes
MAX_NAMES = 64 * 1024 * 1024  # bytes of all names
MAX_ID = 0xFFFFFFFE  # of a user or group; -1 means "leave it" to chown(2)

_NUMBER = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
_PAX_LENGTH = re.compile(rb"([1-9][0-9]{0,6}) ")
_SPARSE = "GNU.sparse."
_XATTR = "SCHILY.xattr."


class Kind(StrEnum):
    """What a member is."""

    FILE = "file"
    HARD_LINK = "hard link"
    SYMBOLIC_LINK = "symbolic link"
    CHARACTER_DEVICE = "character device"
    BLOCK_DEVICE = "block device"
    DIRECTORY = "directory"
    FIFO = "fifo"


_KINDS = {
    b"0": Kind.FILE, b"\0": Kind.FILE, b"7": Kind.FILE, b"1": Kind.HARD_LINK, b"2": Kind.SYMBOLIC_LINK,
    b"3": Kind.CHARACTER_DEVICE, b"4": Kind.BLOCK_DEVICE, b"5": Kind.DIRECTORY, b"6": Kind.FIFO,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Member:
    """One member; bytes of names that are not UTF-8 stand as surrogates."""

    name: str
    kind: Kind
    mode: int  # permissions, set-id bits and sticky bit
    uid: int
    gid: int
    size: int  # bytes of data; 0 for all but files
    offset: int  # of the data in the archive
    target: str  # of a link
    attributes: tuple[str, ...]  # names of extended attributes


@dataclass(slots=True)
class Budget:
    """What may still be read of one container image; limits are for all its archives together."""

    entries: int = MAX_ENTRIES
    names: int = MAX_NAMES

    def spend(self, size: int) -> None:
        """Count a member whose names have `size` bytes; raise MalformedContainer where there are too many."""
        self.entries -= 1
        self.names -= size
        if self.entries < 0 or self.names < 0:
            raise MalformedContainer(
                "the archives hold too much", expected=f"at most {MAX_ENTRIES} members with {MAX_NAMES} bytes of names"
            )


@dataclass(slots=True)
class _Extension:
    """What headers in front of a member say of it."""

    values: dict[str, bytes] = field(default_factory=dict)  # path, linkpath, size, uid, gid
    attributes: list[str] = field(default_factory=list)


def read_tar(source: Source, budget: Budget) -> Iterator[Member]:
    """Yield the members of an uncompressed archive in order; raise MalformedContainer naming the place."""
    position, extension = 0, _Extension()
    while True:
        head = source.read(position, BLOCK)
        place = f"offset {position}"
        if not head.strip(b"\0"):
            break
        if len(head) < BLOCK:
            raise MalformedContainer(f"{place}: the archive is truncated within a header")
        _check_sum(head, place)
        flag, size = head[156:157], _number(head[124:136], place, "size")
        data = position + BLOCK
        if flag in (b"x", b"g", b"L", b"K"):
            budget.spend(0)
            raw = _take(source, data, size, place)
            _extend(extension, flag, raw, place)
            position = data + _padded(size)
            continue
        member = _member(head, flag, data, extension, place)
        budget.spend(len(member.name) + len(member.target))
        if data + member.size > source.size:
            raise MalformedContainer(f"{place}: the archive ends within a file", expected=member.size)
        yield member
        position, extension = data + _padded(member.size), _Extension()
    if extension.values or extension.attributes:
        raise MalformedContainer("the archive ends behind an extended header")
    _check_end(source, position)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _check_sum(head: bytes, place: str) -> None:
    stated = _number(head[148:156], place, "checksum")
    actual = sum(head) - sum(head[148:156]) + 8 * 0x20
    if stated != actual:
        raise MalformedContainer(f"{place}: the header's checksum is wrong: no tar?", expected=stated, actual=actual)


def _check_end(source: Source, position: int) -> None:
    while piece := source.read(position, 1 << 20):
        if piece.strip(b"\0"):
            raise MalformedContainer(f"offset {position}: bytes behind the end of the archive")
        position += len(piece)


def _number(raw: bytes, place: str, what: str) -> int:
    if raw[0] & 0x80:  # GNU's base-256; a set sign bit is a negative number
        if raw[0] & 0x40:
            raise MalformedContainer(f"{place}: {what} is negative")
        return int.from_bytes(bytes([raw[0] & 0x3F]) + raw[1:], "big")
    match = _NUMBER.fullmatch(raw)
    if match is None:
        raise MalformedContainer(f"{place}: {what}", expected="an octal number", actual=raw)
    return int(match[1] or b"0", 8)


def _take(source: Source, offset: int, size: int, place: str) -> bytes:
    if size > MAX_EXTENSION:
        raise MalformedContainer(f"{place}: extended header", expected=f"at most {MAX_EXTENSION} bytes", actual=size)
    raw = source.read(offset, size)
    if len(raw) != size:
        raise MalformedContainer(f"{place}: the archive is truncated within an extended header")
    return raw


def _extend(extension: _Extension, flag: bytes, raw: bytes, place: str) -> None:
    if flag in (b"L", b"K"):
        key = "path" if flag == b"L" else "linkpath"
        _set(extension, key, raw.rstrip(b"\0"), place)
        return
    for key, value in _read_pax(raw, place):
        if key.startswith(_SPARSE):
            raise MalformedContainer(f"{place}: sparse files are not read")
        if flag == b"g":
            if key in ("path", "linkpath", "size", "uid", "gid") or key.startswith(_XATTR):
                raise MalformedContainer(f"{place}: a global header sets {key}")
        elif key.startswith(_XATTR):
            extension.attributes.append(key[len(_XATTR) :])
        elif key in ("path", "linkpath", "size", "uid", "gid"):
            _set(extension, key, value, place)


def _set(extension: _Extension, key: str, value: bytes, place: str) -> None:
    if extension.values.setdefault(key, value) != value:
        raise MalformedContainer(f"{place}: two different values of {key} for one member")


def _read_pax(raw: bytes, place: str) -> Iterator[tuple[str, bytes]]:
    """Yield the records of a pax header: "LENGTH KEY=VALUE\\n", the length counting the whole record."""
    at = 0
    while at < len(raw):
        match = _PAX_LENGTH.match(raw, at)
        end = at + int(match[1]) if match else 0
        if match is None or end > len(raw) or end <= match.end() or raw[end - 1 : end] != b"\n":
            raise MalformedContainer(f"{place}: a record of the extended header has a wrong length")
        key, equals, value = raw[match.end() : end - 1].partition(b"=")
        if not equals or not key:
            raise MalformedContainer(f"{place}: a record of the extended header without a key")
        yield key.decode("utf-8", "surrogateescape"), value
        at = end


def _member(head: bytes, flag: bytes, data: int, extension: _Extension, place: str) -> Member:
    kind = _KINDS.get(flag)
    if kind is None:
        raise MalformedContainer(f"{place}: kind of member", expected="file, directory, link or fifo", actual=flag)
    own = {"size": (124, 136), "uid": (108, 116), "gid": (116, 124)}
    numbers = {}
    for key, (start, end) in own.items():
        value = extension.values.get(key)
        if value is not None and not re.fullmatch(rb"[0-9]{1,20}", value):
            raise MalformedContainer(f"{place}: {key}", expected="a decimal number", actual=value)
        numbers[key] = _number(head[start:end], place, key) if value is None else int(value)
    name = extension.values.get("path", _own_name(head))
    target = extension.values.get("linkpath", _cut(head[157:257]))
    for what, text in (("name", name), ("link's target", target)):
        if b"\0" in text or len(text) > MAX_NAME:
            raise MalformedContainer(f"{place}: {what}", expected=f"at most {MAX_NAME} bytes, none of them NUL")
    if flag == b"\0" and name.endswith(b"/"):  # before ustar a directory was told by its name
        kind = Kind.DIRECTORY
    if max(numbers["uid"], numbers["gid"]) > MAX_ID:
        raise MalformedContainer(f"{place}: owner", expected="below 2^32 - 1", actual=(numbers["uid"], numbers["gid"]))
    return Member(
        name=name.decode("utf-8", "surrogateescape"), kind=kind, mode=_number(head[100:108], place, "mode") & 0o7777,
        uid=numbers["uid"], gid=numbers["gid"], size=numbers["size"] if kind is Kind.FILE else 0, offset=data,
        target=target.decode("utf-8", "surrogateescape") if kind in (Kind.HARD_LINK, Kind.SYMBOLIC_LINK) else "",
        attributes=tuple(extension.attributes),
    )  # fmt: skip


def _cut(raw: bytes) -> bytes:
    return raw.partition(b"\0")[0]


def _own_name(head: bytes) -> bytes:
    name, prefix = _cut(head[:100]), _cut(head[345:500])
    posix = head[257:263] == b"ustar\0"  # GNU's own form has other fields there
    return prefix + b"/" + name if posix and prefix else name
