# SPDX-License-Identifier: MIT
"""The enclave image file, version 4: what a hypervisor loads, and what is measured of it.

Source: aws-nitro-enclaves-image-format README.md, src/defs/mod.rs, src/utils/mod.rs. All integers are big-endian.
The reader follows the offset table, as the hypervisor does, and refuses every file on which a sequential reader (AWS's
EifReader) would see something else: gaps, overlaps, trailing bytes, sizes that disagree.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from attestation.files import naming, read_limited
from attestation.measurements import Measurements, Measurer

from .errors import MalformedEif

MAGIC = b".eif"
VERSION = 4
MAX_SECTIONS = 32
MAX_EIF = 4 * 1024**3  # bytes; nitro-cli demands four times an EIF's size as memory
MAX_COMMAND_LINE = 4096  # bytes; above any kernel's COMMAND_LINE_SIZE
MAX_SIGNATURE = 32768  # bytes; aws-nitro-enclaves-image-format
DEFAULT_MEMORY = 1024**3  # bytes; what nitro-cli writes, ignored by every loader
DEFAULT_CPUS = 2  # likewise

Data = bytes | memoryview

_HEADER = struct.Struct(">4sHHQQHH32Q32QII")
_SECTION = struct.Struct(">HHQ")
assert _HEADER.size == 548
assert _SECTION.size == 12


class SectionType(IntEnum):
    """The kinds of section; 0 and everything from 6 on are invalid."""

    KERNEL = 1
    CMDLINE = 2
    RAMDISK = 3
    SIGNATURE = 4
    METADATA = 5


@dataclass(frozen=True, slots=True)
class Section:
    """One section's kind, place in the file (of its data) and bytes."""

    type: SectionType
    offset: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class Eif:
    """An enclave image: the parts that are measured and booted, and the two that are not."""

    version: int
    sections: tuple[Section, ...]  # in file order
    size: int  # bytes

    def _data(self, kind: SectionType) -> tuple[memoryview, ...]:
        return tuple(section.data for section in self.sections if section.type is kind)

    @property
    def kernel(self) -> memoryview:
        """The kernel: a bzImage."""
        return self._data(SectionType.KERNEL)[0]

    @property
    def cmdline(self) -> bytes:
        """The kernel's command line, without a trailing NUL."""
        return bytes(self._data(SectionType.CMDLINE)[0])

    @property
    def ramdisks(self) -> tuple[memoryview, ...]:
        """The ramdisks in file order; concatenated they are the initramfs."""
        return self._data(SectionType.RAMDISK)

    @property
    def metadata(self) -> bytes | None:
        """The metadata JSON: a hint that nothing measures."""
        return next((bytes(data) for data in self._data(SectionType.METADATA)), None)

    @property
    def signature(self) -> bytes | None:
        """The signature section's CBOR."""
        return next((bytes(data) for data in self._data(SectionType.SIGNATURE)), None)

    @property
    def measurements(self) -> Measurements:
        """PCR0, PCR1 and PCR2 as the NSM will report them: the contents in file order."""
        measurer, ramdisks = Measurer(), 0
        for section in self.sections:
            match section.type:
                case SectionType.KERNEL:
                    measurer.kernel(section.data)
                case SectionType.CMDLINE:
                    measurer.cmdline(section.data)
                case SectionType.RAMDISK:
                    measurer.ramdisk(ramdisks, section.data)
                    ramdisks += 1
        return measurer.measurements()


def _header_crc(header: bytes) -> int:
    return zlib.crc32(header[: _HEADER.size - 4])


def lay_out_eif(sections: Sequence[tuple[SectionType, Data]], *, aarch64: bool = False) -> list[Data]:
    """Return the parts of an EIF of these sections, in file order and back to back: no data is copied."""
    if not 2 <= len(sections) <= MAX_SECTIONS:
        raise ValueError("an EIF has 2 to 32 sections")
    offsets, sizes, position = [], [], _HEADER.size
    for _, data in sections:
        offsets.append(position)
        sizes.append(len(data))
        position += _SECTION.size + len(data)
    spare = [0] * (MAX_SECTIONS - len(sections))

    def header(crc: int) -> bytes:
        return _HEADER.pack(
            MAGIC, VERSION, int(aarch64), DEFAULT_MEMORY, DEFAULT_CPUS, 0, len(sections),
            *offsets, *spare, *sizes, *spare, 0, crc,
        )  # fmt: skip

    parts: list[Data] = [part for kind, data in sections for part in (_SECTION.pack(kind, 0, len(data)), data)]
    crc = _header_crc(header(0))
    for part in parts:
        crc = zlib.crc32(part, crc)
    return [header(crc), *parts]


def write_eif(sections: Sequence[tuple[SectionType, Data]], *, aarch64: bool = False) -> bytes:
    """Return an EIF of these sections, packed back to back in this order."""
    return b"".join(lay_out_eif(sections, aarch64=aarch64))


def read_eif(raw: bytes | memoryview) -> Eif:
    """Parse an EIF without copying its sections; raise MalformedEif naming the place."""
    view = memoryview(raw)
    if len(view) > MAX_EIF:
        raise MalformedEif("the file is too large for an EIF", expected=f"at most {MAX_EIF} bytes", actual=len(view))
    if len(view) < _HEADER.size:
        raise MalformedEif("the file is too short for an EIF", expected=f"{_HEADER.size} bytes", actual=len(view))
    fields = _HEADER.unpack(view[: _HEADER.size])
    magic, version, flags, _, _, reserved, count = fields[:7]
    offsets, sizes, unused, crc = fields[7:39], fields[39:71], fields[71], fields[72]
    if magic != MAGIC:
        raise MalformedEif("the file is no EIF", expected="magic .eif", actual=magic)
    if version != VERSION:
        raise MalformedEif("header: version", expected=VERSION, actual=version)
    if flags & ~1 or reserved or unused:
        raise MalformedEif("header: reserved bits are set", expected=0, actual=(flags, reserved, unused))
    if not 2 <= count <= MAX_SECTIONS:
        raise MalformedEif("header: number of sections", expected="2 to 32", actual=count)
    if any(offsets[count:]) or any(sizes[count:]):
        raise MalformedEif("header: unused section slots are not zero")
    sections = tuple(_read_sections(view, list(zip(offsets[:count], sizes[:count], strict=True))))
    _check_crc(view, crc)
    check_order(sections)
    return Eif(version, sections, len(view))


def load_eif(path: Path) -> Eif:
    """Read an EIF file; raise UsageError where there is no such file, MalformedEif naming it otherwise."""
    hint = "veracruz image build --out FILE.eif makes one"
    raw = read_limited(path, limit=MAX_EIF, what="image", hint=hint)
    with naming(path, hint=hint):
        return read_eif(raw)


def _read_sections(view: memoryview, table: Sequence[tuple[int, int]]) -> Iterable[Section]:
    position = _HEADER.size
    for index, (offset, size) in enumerate(table):
        place = f"section {index}"
        if offset != position:
            raise MalformedEif(f"{place}: a gap or an overlap before it", expected=position, actual=offset)
        if offset + _SECTION.size + size > len(view):
            raise MalformedEif(
                f"{place} ends after the file: truncated?", expected=offset + _SECTION.size + size, actual=len(view)
            )
        kind, flags, stated = _SECTION.unpack(view[offset : offset + _SECTION.size])
        if stated != size:
            raise MalformedEif(f"{place}: its header and the table disagree on its size", expected=size, actual=stated)
        if flags:
            raise MalformedEif(f"{place}: flags", expected=0, actual=flags)
        try:
            section_type = SectionType(kind)
        except ValueError as error:
            raise MalformedEif(f"{place}: type", expected="1 to 5", actual=kind) from error
        position = offset + _SECTION.size + size
        yield Section(section_type, offset + _SECTION.size, view[offset + _SECTION.size : position])
    if position != len(view):
        raise MalformedEif("bytes after the last section", expected=position, actual=len(view))


def _check_crc(view: memoryview, stated: int) -> None:
    actual = zlib.crc32(view[_HEADER.size :], zlib.crc32(view[: _HEADER.size - 4]))
    if actual != stated:
        raise MalformedEif("the file is corrupt: CRC-32", expected=f"{stated:08x}", actual=f"{actual:08x}")


def check_order(sections: Sequence[Section]) -> None:
    """Raise MalformedEif for sections that are too few, too many, too long or out of order."""
    kinds = [section.type for section in sections]
    for kind in (SectionType.KERNEL, SectionType.CMDLINE, SectionType.METADATA):
        if kinds.count(kind) != 1:
            raise MalformedEif(f"sections of type {kind.name.lower()}", expected=1, actual=kinds.count(kind))
    if kinds.count(SectionType.SIGNATURE) > 1:
        raise MalformedEif(
            "sections of type signature", expected="at most 1", actual=kinds.count(SectionType.SIGNATURE)
        )
    if SectionType.RAMDISK not in kinds:
        raise MalformedEif("the image has no ramdisk")
    if kinds.index(SectionType.RAMDISK) < kinds.index(SectionType.KERNEL):
        raise MalformedEif("a ramdisk stands before the kernel")
    for section in sections:
        if section.type is SectionType.CMDLINE and (
            len(section.data) > MAX_COMMAND_LINE or b"\0" in bytes(section.data[:MAX_COMMAND_LINE])
        ):
            raise MalformedEif("command line", expected=f"at most {MAX_COMMAND_LINE} bytes, none of them NUL")
        if section.type is SectionType.SIGNATURE and len(section.data) > MAX_SIGNATURE:
            raise MalformedEif("signature", expected=f"at most {MAX_SIGNATURE} bytes", actual=len(section.data))
