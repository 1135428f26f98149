# SPDX-License-Identifier: MIT
"""EIF: what we write is what we read; every malformed file is refused, naming the place."""

from __future__ import annotations

import hashlib
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.measurements import measure_image
from enclave_image.eif import SectionType, read_eif, write_eif
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


def test_measures_in_file_order_as_the_loaders_do() -> None:
    parts = [
        (SectionType.CMDLINE, b"console"),
        (SectionType.KERNEL, b"kernel"),
        (SectionType.METADATA, b"{}"),
        (SectionType.RAMDISK, b"boot"),
        (SectionType.RAMDISK, b"application"),
    ]
    turned = measure_image(kernel=b"console", cmdline=b"kernel", ramdisks=[b"boot", b"application"])
    assert read_eif(write_eif(parts)).measurements == turned
