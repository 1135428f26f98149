# SPDX-License-Identifier: MIT
"""Read an enclave image file as it is, right or wrong: header, offset table and section headers, nothing refused.

This is the tolerant reader, for describing files of any origin; what boots is read by `eif.read_eif`, the strict one.
It reads piece by piece at given offsets (no mapping: a file that shrinks under one would end the process by SIGBUS).
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from attestation.errors import UsageError
from attestation.files import MAX_STREAM, PIECE

from ..eif import MAGIC, MAX_EIF, MAX_SECTIONS, SectionType
from ..errors import MalformedEif

HEADER = struct.Struct(">4sHHQQHH32Q32QII")
SECTION = struct.Struct(">HHQ")
AARCH64 = 1  # bit 0 of the header's flags; the others are reserved
HINT = "veracruz image build --out FILE.eif makes one"


class Source(Protocol):
    """Bytes that can be read at any place."""

    @property
    def size(self) -> int:
        """Bytes in all."""

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset` on; fewer at the end only."""


@dataclass(frozen=True, slots=True)
class BytesSource:
    """Bytes in memory."""

    raw: bytes

    @property
    def size(self) -> int:
        """Bytes in all."""
        return len(self.raw)

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset` on."""
        return self.raw[offset : offset + size]


@dataclass(frozen=True, slots=True)
class FileSource:
    """A regular file."""

    descriptor: int
    size: int

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset` on."""
        return os.pread(self.descriptor, size, offset)


@contextlib.contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Open a file to look at; a pipe is read whole, up to 64 MiB. Raises UsageError where nothing can be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        hint = HINT if isinstance(error, FileNotFoundError) else None
        raise UsageError(f"cannot read the image {path}: {reason}", hint=hint) from error
    try:
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode):
            yield FileSource(descriptor, found.st_size)
        else:
            yield BytesSource(_read_stream(descriptor, path))
    finally:
        os.close(descriptor)


def _read_stream(descriptor: int, path: Path) -> bytes:
    """Return what a pipe gives until its end; raise UsageError for a directory, or for more than we hold."""
    parts, size = [], 0
    try:
        while piece := os.read(descriptor, PIECE):
            parts.append(piece)
            size += len(piece)
            if size > MAX_STREAM:
                raise UsageError(f"the image {path} is no file and too large", expected=f"at most {MAX_STREAM} bytes")
    except OSError as error:
        raise UsageError(f"cannot read the image {path}: {error.strerror}") from error
    return b"".join(parts)


def pieces(source: Source, offset: int, size: int) -> Iterator[bytes]:
    """Yield `size` bytes from `offset` on, a mebibyte at a time; raise MalformedEif if they are not there."""
    end = offset + size
    while offset < end:
        piece = source.read(offset, min(PIECE, end - offset))
        if not piece:
            raise MalformedEif("the file ends before a section that was in it: does somebody write it now?")
        offset += len(piece)
        yield piece


@dataclass(frozen=True, slots=True)
class Header:
    """The fields of the 548 bytes at the start, as they stand there."""

    version: int
    flags: int
    default_memory: int  # bytes; no loader reads it
    default_cpus: int  # likewise
    reserved: int
    count: int  # sections
    offsets: tuple[int, ...]  # 32, of section headers
    sizes: tuple[int, ...]  # 32, of section data
    unused: int
    crc: int
    raw: bytes

    @property
    def architecture(self) -> str:
        """What the flag says: x86_64 or aarch64."""
        return "aarch64" if self.flags & AARCH64 else "x86_64"


@dataclass(frozen=True, slots=True)
class Part:
    """One entry of the offset table and the section header that it leads to."""

    index: int
    offset: int  # of the section's 12-byte header
    table_size: int  # bytes of data, says the table
    type: int
    flags: int
    stated: int  # bytes of data, says the section's own header
    size: int  # bytes of data that are in the file
    whole: bool  # whether that is all of it

    @property
    def start(self) -> int:
        """The offset of the data."""
        return self.offset + SECTION.size

    @property
    def end(self) -> int:
        """The offset after the data."""
        return self.start + self.size

    @property
    def name(self) -> str:
        """The section's type in words."""
        return SectionType(self.type).name.lower() if self.type in set(SectionType) else f"type {self.type}"

    @property
    def place(self) -> str:
        """The words that name it in a message."""
        return f"section {self.index} ({self.name})"


@dataclass(frozen=True, slots=True)
class Layout:
    """What a file holds, in the order of its table."""

    header: Header
    parts: tuple[Part, ...]
    size: int  # bytes of the file

    def of(self, kind: SectionType) -> tuple[Part, ...]:
        """Return the sections of one type."""
        return tuple(part for part in self.parts if part.type == kind)

    @property
    def unbounded(self) -> str:
        """Why nothing of it is hashed or copied: the work would have no bound worth the name; empty where it has.

        A sparse file costs its maker nothing, whatever its size; and where a byte belongs to two sections, or to one
        and the header, a small file could ask for 32 times its size.
        """
        if self.size > MAX_EIF:
            return f"the file is larger than {MAX_EIF} bytes"
        position = HEADER.size
        for part in sorted(self.parts, key=lambda part: part.offset):
            if part.offset < position:
                return "sections overlap"
            position = part.end
        return ""


def read_layout(source: Source) -> Layout:
    """Return what the file's header and section headers say; raise MalformedEif where it is no EIF at all."""
    raw = source.read(0, HEADER.size)
    if len(raw) < HEADER.size:
        raise MalformedEif("the file is too short for an EIF", expected=f"{HEADER.size} bytes", actual=len(raw))
    fields = HEADER.unpack(raw)
    if fields[0] != MAGIC:
        raise MalformedEif("the file is no EIF", expected="magic .eif", actual=fields[0])
    header = Header(
        version=fields[1], flags=fields[2], default_memory=fields[3], default_cpus=fields[4], reserved=fields[5],
        count=fields[6], offsets=fields[7:39], sizes=fields[39:71], unused=fields[71], crc=fields[72], raw=raw,
    )  # fmt: skip
    parts = tuple(_read_part(source, header, index) for index in range(min(header.count, MAX_SECTIONS)))
    return Layout(header, parts, source.size)


def _read_part(source: Source, header: Header, index: int) -> Part:
    offset, table_size = header.offsets[index], header.sizes[index]
    raw = source.read(offset, SECTION.size) if offset < source.size else b""
    if len(raw) < SECTION.size:
        return Part(index, offset, table_size, type=0, flags=0, stated=0, size=0, whole=False)
    kind, flags, stated = SECTION.unpack(raw)
    there = min(stated, source.size - offset - SECTION.size)
    return Part(index, offset, table_size, kind, flags, stated, there, whole=there == stated)


def read_part(source: Source, part: Part, *, limit: int) -> bytes | None:
    """Return a section's data, None if it is longer than `limit` bytes."""
    return b"".join(pieces(source, part.start, part.size)) if part.size <= limit else None
