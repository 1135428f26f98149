# SPDX-License-Identifier: MIT
"""Somebody's image against the one that our own checkout and lock give: where they differ, and what that comes from.

Kernel, command line and ramdisks are measured, so they decide; metadata and signature are compared and told, no more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from attestation.errors import escape
from attestation.files import PIECE, naming

from .architecture import read_banner
from .eif import Eif
from .eif_tool.cpio_reader import Budget, read_ramdisk
from .eif_tool.ramdisk_files import FileRecord, Index, index_members
from .inventory import Inventory, Kind


class Fault(StrEnum):
    """How a file differs."""

    CONTENT = "other content"
    MODE = "other mode, owner or time"
    KIND = "another kind of entry"
    MISSING = "missing in theirs"
    ADDED = "only in theirs"


@dataclass(frozen=True, slots=True)
class SectionRow:
    """One section on both sides; None where a side has none."""

    name: str
    measured: bool
    theirs: tuple[int, str] | None  # bytes, SHA-256
    ours: tuple[int, str] | None

    @property
    def same(self) -> bool:
        """Whether both hold the same bytes."""
        return self.theirs == self.ours


@dataclass(frozen=True, slots=True)
class FileRow:
    """One path that differs, and the input of ours that decides it."""

    ramdisk: int
    path: str
    fault: Fault
    origin: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """All of it. `reproduced`: everything measured is the same."""

    sections: tuple[SectionRow, ...]
    registers: tuple[tuple[str, bytes, bytes], ...]  # name, theirs, ours
    files: tuple[FileRow, ...]
    causes: tuple[str, ...]

    @property
    def reproduced(self) -> bool:
        """Whether a measurement of theirs stands for our checkout's source."""
        return all(row.same for row in self.sections if row.measured) and all(a == b for _, a, b in self.registers)


def compare_images(theirs: Eif, ours: Eif, inventory: Inventory) -> Comparison:
    """Compare an image with the one of our own checkout; raise MalformedRamdisk where theirs cannot be unpacked."""
    sections = tuple(_sections(theirs, ours))
    pairs = zip(theirs.measurements.registers, ours.measurements.registers, strict=True)
    registers = tuple((f"PCR{index}", *pair) for index, pair in enumerate(pairs))
    differ = {row.name for row in sections if not row.same}
    files: list[FileRow] = []
    packed: list[int] = []
    budget = Budget()
    for number, (their, our) in enumerate(zip(theirs.ramdisks, ours.ramdisks, strict=False)):
        if f"ramdisk {number}" in differ:
            with naming(Path(f"ramdisk {number}")):
                found = read_files(their, budget)
            rows = _compare_ramdisk(number, found, read_files(our, Budget()), inventory)
            files += rows
            packed += [] if rows else [number]
    return Comparison(
        sections, registers, tuple(files), tuple(_causes(theirs, ours, differ, files, packed, inventory))
    )  # fmt: skip


def _sections(theirs: Eif, ours: Eif) -> Iterator[SectionRow]:
    def told(data: memoryview | bytes | None) -> tuple[int, str] | None:
        return None if data is None else (len(data), hashlib.sha256(data).hexdigest())

    yield SectionRow("kernel", True, told(theirs.kernel), told(ours.kernel))
    yield SectionRow("cmdline", True, told(theirs.cmdline), told(ours.cmdline))
    for number in range(max(len(theirs.ramdisks), len(ours.ramdisks))):
        pair = [told(side.ramdisks[number]) if number < len(side.ramdisks) else None for side in (theirs, ours)]
        yield SectionRow(f"ramdisk {number}", True, pair[0], pair[1])
    yield SectionRow("metadata", False, told(theirs.metadata), told(ours.metadata))
    yield SectionRow("signature", False, told(theirs.signature), told(ours.signature))


def _pieces(data: memoryview) -> Iterator[bytes]:
    for start in range(0, len(data), PIECE):
        yield bytes(data[start : start + PIECE])


def read_files(data: memoryview, budget: Budget) -> Index:
    """Return what a ramdisk unpacks to; raise MalformedRamdisk."""
    return index_members(read_ramdisk(_pieces(data), budget))


def _compare_ramdisk(number: int, theirs: Index, ours: Index, inventory: Inventory) -> list[FileRow]:
    records = {file.path: file for file in inventory.files if file.ramdisk == number}
    components = {component.name: component for component in inventory.components}

    def origin(path: str) -> str:
        record = records.get(path)
        if record is None:
            return "nothing in this checkout or its lock"
        component = components[record.component]
        if component.kind is Kind.OWN:
            return record.source or "the recipe's own layout"
        return f"{component.name} {component.version} ({component.filename})"

    rows = []
    for path in sorted(theirs.keys() | ours.keys()):
        fault = _fault(theirs.get(path), ours.get(path))
        if fault is not None:
            rows.append(FileRow(number, path, fault, origin(path)))
    return rows


def _fault(their: FileRecord | None, our: FileRecord | None) -> Fault | None:
    if their is None or our is None:
        return Fault.MISSING if their is None else Fault.ADDED
    if (their.kind, their.device) != (our.kind, our.device):
        return Fault.KIND
    if (their.size, their.sha256, their.target) != (our.size, our.sha256, our.target):
        return Fault.CONTENT
    whole = [(side.mode, side.uid, side.gid, side.mtime) for side in (their, our)]
    return Fault.MODE if whole[0] != whole[1] else None


def kernel_version(kernel: memoryview) -> str:
    """Return the version that a kernel names, escaped; "unknown" where it names none."""
    return escape(read_banner(kernel)[:64])


def _causes(
    theirs: Eif, ours: Eif, differ: set[str], files: Sequence[FileRow], packed: Sequence[int], inventory: Inventory
) -> Iterator[str]:
    """Yield, for everything that differs, which of our inputs decides it."""
    source = next((c for c in inventory.components if c.kind is Kind.KERNEL), None)
    if "kernel" in differ:
        named = f"{source.name} {source.version}" if source else "the kernel's source"
        yield (
            f"kernel: theirs says {kernel_version(theirs.kernel)}, ours {kernel_version(ours.kernel)}; ours comes from "
            f"{named}, the kernel's configuration and patches, and the toolchain that the lock names"
        )
    if "cmdline" in differ:
        said, wanted = (side.cmdline.decode("latin-1").split() for side in (theirs, ours))
        gone = " ".join(word for word in said if word not in wanted)
        new = " ".join(word for word in wanted if word not in said)
        there, here = escape(gone) or "nothing", escape(new) or "nothing"
        yield f"command line (image.toml): only theirs: {there}; only ours: {here}"
    for number in packed:
        yield f"ramdisk {number}: the same files, packed otherwise: order, compressor, or zstd_level in image.toml"
    origins: dict[str, int] = {}
    for row in files:
        origins[row.origin] = origins.get(row.origin, 0) + 1
    for name, count in sorted(origins.items(), key=lambda item: (-item[1], item[0])):
        yield f"{count} {'file' if count == 1 else 'files'}: {name}"
    if len(theirs.ramdisks) != len(ours.ramdisks):
        yield f"theirs has {len(theirs.ramdisks)} ramdisks, ours {len(ours.ramdisks)}"
