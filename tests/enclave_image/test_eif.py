# SPDX-License-Identifier: MIT
"""EIF: what we write is what we read; every malformed file is refused, naming the place."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_image.eif import MAX_COMMAND_LINE, SectionType, read_eif, write_eif
from enclave_image.errors import MalformedEif

SECTIONS = [
    (SectionType.KERNEL, b"kernel" * 10),
    (SectionType.CMDLINE, b"console=ttyS0"),
    (SectionType.METADATA, b"{}"),
    (SectionType.RAMDISK, b"boot" * 7),
    (SectionType.RAMDISK, b"application"),
]
GOOD = write_eif(SECTIONS)
HEADER = 548
OFFSETS, SIZES, CRC = 0x1C, 0x11C, 0x220


def with_crc(raw: bytearray) -> bytes:
    """Make the checksum fit again, so that the fault under test is the only one."""
    crc = zlib.crc32(raw[HEADER:], zlib.crc32(raw[:CRC]))
    raw[CRC : CRC + 4] = struct.pack(">I", crc)
    return bytes(raw)


def patched(offset: int, form: str, value: int) -> bytes:
    raw = bytearray(GOOD)
    struct.pack_into(form, raw, offset, value)
    return with_crc(raw)


def test_reads_back_what_it_wrote() -> None:
    image = read_eif(GOOD)
    assert [(section.type, bytes(section.data)) for section in image.sections] == SECTIONS
    assert image.cmdline == b"console=ttyS0"
    assert [bytes(ramdisk) for ramdisk in image.ramdisks] == [b"boot" * 7, b"application"]
    assert image.metadata == b"{}"
    assert image.signature is None


def test_header_is_that_of_the_format() -> None:
    magic, version, flags, memory, cpus, reserved, count = struct.unpack(">4sHHQQHH", GOOD[:0x1C])
    assert (magic, version, flags, memory, cpus, reserved, count) == (b".eif", 4, 0, 1 << 30, 2, 0, 5)
    assert struct.unpack_from(">Q", GOOD, OFFSETS) == (HEADER,)
    assert struct.unpack_from(">Q", GOOD, SIZES) == (60,)
    kind, section_flags, size = struct.unpack_from(">HHQ", GOOD, HEADER)
    assert (kind, section_flags, size) == (1, 0, 60)


def test_crc_covers_all_but_itself() -> None:
    (stated,) = struct.unpack_from(">I", GOOD, CRC)
    assert stated == zlib.crc32(GOOD[:CRC] + GOOD[CRC + 4 :])


def test_measures_contents_without_headers_or_lengths() -> None:
    def pcr(content: bytes) -> bytes:
        return hashlib.sha384(bytes(48) + hashlib.sha384(content).digest()).digest()

    kernel, cmdline, boot, application = (SECTIONS[index][1] for index in (0, 1, 3, 4))
    measured = read_eif(GOOD).measurements
    assert measured.pcr0 == pcr(kernel + cmdline + boot + application)
    assert measured.pcr1 == pcr(kernel + cmdline + boot)
    assert measured.pcr2 == pcr(application)


def test_metadata_is_not_measured() -> None:
    other = [(kind, b'{"other":1}' if kind is SectionType.METADATA else data) for kind, data in SECTIONS]
    assert read_eif(write_eif(other)).measurements == read_eif(GOOD).measurements


def without(kind: SectionType) -> bytes:
    return write_eif([section for section in SECTIONS if section[0] is not kind])


def gap() -> bytes:
    raw = bytearray(GOOD[:HEADER] + b"\0\0\0\0" + GOOD[HEADER:])
    for index in range(5):
        (offset,) = struct.unpack_from(">Q", raw, OFFSETS + 8 * index)
        struct.pack_into(">Q", raw, OFFSETS + 8 * index, offset + 4)
    return with_crc(raw)


MALFORMED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "too short"),
    "half a header": (lambda: GOOD[:300], "too short"),
    "another magic": (lambda: patched(0, ">I", 0x7F454C46), "no EIF"),
    "version 3": (lambda: patched(4, ">H", 3), "version"),
    "version 5": (lambda: patched(4, ">H", 5), "version"),
    "unknown flag": (lambda: patched(6, ">H", 2), "reserved"),
    "reserved field": (lambda: patched(0x18, ">H", 1), "reserved"),
    "no sections": (lambda: patched(0x1A, ">H", 0), "number of sections"),
    "33 sections": (lambda: patched(0x1A, ">H", 33), "number of sections"),
    "fewer sections than the table": (lambda: patched(0x1A, ">H", 4), "unused section slots"),
    "a gap": (gap, "gap or an overlap"),
    "an overlap": (lambda: patched(OFFSETS + 8, ">Q", HEADER), "gap or an overlap"),
    "sizes disagree": (lambda: patched(HEADER + 4, ">Q", 59), "disagree on its size"),
    "a huge size": (lambda: patched(SIZES, ">Q", (1 << 64) - 1), "ends after the file"),
    "section flags": (lambda: patched(HEADER + 2, ">H", 1), "flags"),
    "section type 0": (lambda: patched(HEADER, ">H", 0), "type"),
    "section type 6": (lambda: patched(HEADER, ">H", 6), "type"),
    "truncated": (lambda: GOOD[:-1], "truncated"),
    "trailing bytes": (lambda: with_crc(bytearray(GOOD + b"x")), "after the last section"),
    "one bit flipped": (lambda: GOOD[:-1] + bytes([GOOD[-1] ^ 1]), "CRC-32"),
    "no kernel": (lambda: without(SectionType.KERNEL), "kernel"),
    "no command line": (lambda: without(SectionType.CMDLINE), "cmdline"),
    "no metadata": (lambda: without(SectionType.METADATA), "metadata"),
    "no ramdisk": (lambda: without(SectionType.RAMDISK), "no ramdisk"),
    "two kernels": (lambda: write_eif([*SECTIONS, SECTIONS[0]]), "kernel"),
    "two signatures": (lambda: write_eif([*SECTIONS, *[(SectionType.SIGNATURE, b"s")] * 2]), "signature"),
    "ramdisk before kernel": (lambda: write_eif([SECTIONS[3], *SECTIONS]), "before the kernel"),
    "NUL in the command line": (
        lambda: write_eif([(k, d + b"\0" if k is SectionType.CMDLINE else d) for k, d in SECTIONS]),
        "command line",
    ),
    "endless command line": (
        lambda: write_eif([(k, b"x" * (MAX_COMMAND_LINE + 1) if k is SectionType.CMDLINE else d) for k, d in SECTIONS]),
        "command line",
    ),
    "huge signature": (lambda: write_eif([*SECTIONS, (SectionType.SIGNATURE, bytes(32769))]), "signature"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_refuses_a_malformed_file(name: str) -> None:
    make, place = MALFORMED[name]
    with pytest.raises(MalformedEif, match=place):
        read_eif(make())


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=12))
def test_any_change_is_refused_or_is_none(position: int, patch: bytes) -> None:
    raw = bytearray(GOOD)
    raw[position : position + len(patch)] = patch
    if bytes(raw) == GOOD:
        return
    with pytest.raises(MalformedEif):
        read_eif(bytes(raw))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=700))
def test_any_bytes_raise_only_our_error(raw: bytes) -> None:
    with pytest.raises(MalformedEif):
        read_eif(b".eif\x00\x04" + raw)
