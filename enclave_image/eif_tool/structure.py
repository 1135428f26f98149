# SPDX-License-Identifier: MIT
"""The checks of an image's header, table and section headers; each yields findings and refuses nothing."""

from __future__ import annotations

from collections.abc import Iterator

from ..eif import MAX_EIF, MAX_SECTIONS, MAX_SIGNATURE, VERSION, SectionType
from .findings import Finding, differs
from .layout import AARCH64, HEADER, Layout, Part

_SINCE = {SectionType.SIGNATURE: 3, SectionType.METADATA: 4}  # versions of the format
_SINGLE = (SectionType.KERNEL, SectionType.CMDLINE, SectionType.METADATA, SectionType.SIGNATURE)


def check_structure(layout: Layout) -> Iterator[Finding]:
    """Yield what is wrong with the frame of a file, from front to back."""
    yield from _check_header(layout)
    for part in layout.parts:
        yield from _check_part(layout, part)
    yield from _check_places(layout)
    yield from _check_kinds(layout)


def _check_header(layout: Layout) -> Iterator[Finding]:
    header = layout.header
    if layout.size > MAX_EIF:
        yield differs("too-large", "file", expected=f"at most {MAX_EIF} bytes", actual=layout.size)
    if header.version != VERSION:
        slug = {0: "version-internal", 1: "version-internal", 2: "version-old", 3: "version-old"}
        yield differs(
            slug.get(header.version, "version-unknown"), "header: version", expected=VERSION, actual=header.version
        )
    for name, value in (
        ("flags", header.flags & ~AARCH64), ("reserved field", header.reserved), ("unused field", header.unused),
    ):  # fmt: skip
        if value:
            yield differs("reserved-nonzero", f"header: {name}", expected=0, actual=f"{value:#x}")
    if not 2 <= header.count <= MAX_SECTIONS:
        yield differs("section-count", "header: number of sections", expected="2 to 32", actual=header.count)
    if any(header.offsets[header.count :]) or any(header.sizes[header.count :]):
        yield Finding("slots-nonzero", f"header: table slots after the last section, {header.count}, are not zero")


def _check_part(layout: Layout, part: Part) -> Iterator[Finding]:
    if not part.whole:
        end = part.start + part.stated
        yield differs("section-truncated", f"{part.place}: its end", expected=f"at most {layout.size}", actual=end)
        if part.start > layout.size:
            return  # not even its header is there
    if part.type not in set(SectionType):
        yield differs("section-type", f"section {part.index}: type", expected="1 to 5", actual=part.type)
    elif layout.header.version < _SINCE.get(SectionType(part.type), 0):
        yield differs(
            "section-version", part.place, expected=f"version {_SINCE[SectionType(part.type)]} or above",
            actual=layout.header.version,
        )  # fmt: skip
    if part.flags:
        yield differs("section-flags", f"{part.place}: flags", expected=0, actual=f"{part.flags:#x}")
    if part.table_size != part.stated:
        yield differs(
            "size-stale", f"{part.place}: size in the table", expected=f"{part.stated}, as in its own header",
            actual=part.table_size,
        )  # fmt: skip
    if part.whole and not part.stated:
        yield Finding("section-empty", f"{part.place}: no data")
    if part.type == SectionType.SIGNATURE and part.stated > MAX_SIGNATURE:
        yield differs("signature-endless", part.place, expected=f"at most {MAX_SIGNATURE} bytes", actual=part.stated)


def _check_places(layout: Layout) -> Iterator[Finding]:
    position = HEADER.size
    for part in layout.parts:
        if part.start > layout.size:
            continue
        if part.offset > position:
            yield differs("gap", f"{part.place}: offset", expected=position, actual=part.offset)
        elif part.offset < position:
            yield differs("overlap", f"{part.place}: offset", expected=position, actual=part.offset)
        position = max(position, part.end)
    if position < layout.size:
        yield Finding("trailing-bytes", f"{layout.size - position} bytes after the last section, from {position} on")


def _check_kinds(layout: Layout) -> Iterator[Finding]:
    kinds = [part.type for part in layout.parts]
    for kind in (SectionType.KERNEL, SectionType.CMDLINE, SectionType.RAMDISK):
        if kind not in kinds:
            yield Finding("section-missing", f"no {kind.name.lower()} section")
    for kind in _SINGLE:
        if kinds.count(kind) > 1:
            yield differs(
                "section-duplicate", f"{kind.name.lower()} sections", expected="one", actual=kinds.count(kind)
            )
    if SectionType.METADATA not in kinds and layout.header.version >= _SINCE[SectionType.METADATA]:
        yield Finding("metadata-missing", "no metadata section")
    if SectionType.RAMDISK in kinds and SectionType.KERNEL in kinds:
        first = kinds.index(SectionType.RAMDISK)
        if first < kinds.index(SectionType.KERNEL):
            yield Finding("ramdisk-before-kernel", f"{layout.parts[first].place} stands before the kernel")
    if kinds.count(SectionType.RAMDISK) == 1:
        yield Finding("ramdisk-single", "only one ramdisk: PCR1 equals PCR0, and PCR2 is that of nothing")
    if SectionType.SIGNATURE not in kinds:
        yield Finding("unsigned", "no signature: PCR8 will be zero")
    yield Finding(
        "boundaries-unmeasured",
        "PCR0 does not fix where kernel, command line and ramdisks end: compare PCR0, PCR1 and PCR2 together",
    )
