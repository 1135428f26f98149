# SPDX-License-Identifier: MIT
"""Which loader would take an image: ours, QEMU's and nitro-cli's, each as its public source tells.

Sources: QEMU hw/core/eif.c (10.x); aws-nitro-enclaves-image-format src/utils/eif_reader.rs, src/defs/mod.rs. The code
of Nitro's hypervisor is not public: what is said of nitro-cli is what its own reader does, which looks at every image
before and while it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..eif import MAX_SECTIONS, SectionType
from .findings import Finding
from .layout import HEADER, SECTION, Layout, Part, Source

MAX_SEQUENCE = 1024  # sections that are followed in a file read in sequence
_ONCE = (SectionType.KERNEL, SectionType.CMDLINE)
_NEEDED = (*_ONCE, SectionType.RAMDISK)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a loader takes the file (None: not told), and why not."""

    loader: str
    takes: bool | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class InSequence:
    """What one sees who reads section after section and no table: where each lies, or where that ends."""

    sections: tuple[tuple[int, int, int], ...]  # type, start and size of the data
    fault: str | None


def read_in_sequence(source: Source) -> InSequence:
    """Follow the section headers from byte 548 on, as nitro-cli does; fewer than 12 bytes at the end are not read."""
    found: list[tuple[int, int, int]] = []
    position = HEADER.size
    while len(raw := source.read(position, SECTION.size)) == SECTION.size:
        kind, _, size = SECTION.unpack(raw)
        if kind not in set(SectionType):
            return InSequence(tuple(found), f"at byte {position} it reads a section of type {kind}")
        if position + SECTION.size + size > source.size:
            return InSequence(tuple(found), f"at byte {position} it reads a section that ends after the file")
        if len(found) == MAX_SEQUENCE:
            return InSequence(tuple(found), f"it reads more than {MAX_SEQUENCE} sections")
        found.append((kind, position + SECTION.size, size))
        position += SECTION.size + size
    return InSequence(tuple(found), None)


def judge_ours(findings: Sequence[Finding], *, certificate_readable: bool) -> Verdict:
    """Say what `veracruz enclave run` does: the strict reader refuses whatever is not written as it should be."""
    why = next((finding.slug for finding in findings if finding.refused), None)
    if why is None and not certificate_readable:
        why = "signature-malformed"
    return Verdict("veracruz", why is None, why or "")


def judge_qemu(layout: Layout, *, crc: int | None, certificate_readable: bool) -> Verdict:
    """Say what QEMU's nitro-enclave machine does; `crc` is over the sections as the table has them, None if unknown."""
    why = _find_qemus_fault(layout, certificate_readable=certificate_readable)
    if why is None and crc is None:
        return Verdict("qemu", None, f"its CRC was not computed: {layout.unbounded}")
    if why is None and crc != layout.header.crc:
        why = "CRC mismatch"
    return Verdict("qemu", why is None, why or "")


def _find_qemus_fault(layout: Layout, *, certificate_readable: bool) -> str | None:
    header = layout.header
    if header.version < 4:
        return f"version {header.version}; it wants 4 or above"
    if header.flags:
        return "flags are set; it runs x86_64 alone"
    if header.count > MAX_SECTIONS:
        return "more than 32 sections"
    seen: list[int] = []
    for part in layout.parts:
        why = _find_qemus_fault_in(part, seen)
        if why is not None:
            return why
        seen.append(part.type)
    for kind in _NEEDED:
        if kind not in seen:
            return f"no {kind.name.lower()} section"
    if SectionType.SIGNATURE in seen and not certificate_readable:
        return "the signature section is malformed"
    return None


def _find_qemus_fault_in(part: Part, seen: Sequence[int]) -> str | None:
    if part.flags:
        return f"section {part.index} has flags"
    if part.table_size != part.stated:
        return f"section {part.index} has another size in the table"
    if not part.whole:
        return f"section {part.index} is truncated"
    if part.type in _ONCE and part.type in seen:
        return f"more than one {part.name} section"
    return None


def judge_nitro_cli(
    layout: Layout, sequence: InSequence, *, crc: int | None, metadata_readable: bool | None, signature: str | None
) -> Verdict:
    """Say what nitro-cli does; `crc` is over the sections in sequence, `signature` its fault with the signature."""
    header = layout.header
    kinds = [kind for kind, _, _ in sequence.sections]
    why = sequence.fault
    if why is None and header.version < 2:
        why = f"version {header.version}"
    if why is None and SectionType.METADATA in kinds and metadata_readable is False:
        why = "it cannot read the metadata"
    if why is None and header.version >= 4 and SectionType.METADATA not in kinds:
        why = "no metadata"
    if why is None and not set(_NEEDED) <= set(kinds):
        why = "a section is missing"
    if why is None and crc is None:
        return Verdict("nitro-cli", None, f"its CRC was not computed: {layout.unbounded}")
    if why is None and crc != header.crc:
        why = "CRC mismatch"
    why = why or signature
    if why is None and metadata_readable is None:
        return Verdict("nitro-cli", None, "its metadata are too long to be read here")
    return Verdict("nitro-cli", why is None, why or "")
