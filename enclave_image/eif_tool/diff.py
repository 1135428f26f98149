# SPDX-License-Identifier: MIT
"""What differs between two images: registers, header, sections, command line, metadata, signer, and each file."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attestation.files import naming

from ..eif import SectionType
from ..errors import MalformedEif
from .cpio_reader import Budget
from .decompression import Packing
from .inspection import Inspection
from .layout import Part, Source, pieces
from .ramdisk_files import FileRecord, Index, index_ramdisk, open_ramdisk

MAX_TEXT = 16 * 1024  # bytes of a file whose lines are compared
MAX_TEXTS = 64  # files whose lines are compared; of the others only the hashes
MAX_LINES_READ = 1000  # lines of a file that is compared: the work grows with their square
MAX_LINES = 40  # lines of one comparison that are kept

Pair = tuple[Any, Any]  # a value there and here; None: not there


@dataclass(frozen=True, slots=True)
class FileChange:
    """One path that differs."""

    path: str
    old: FileRecord | None
    new: FileRecord | None
    lines: tuple[str, ...] = ()  # of a small text file: a unified diff without its head


@dataclass(frozen=True, slots=True)
class RamdiskChange:
    """One ramdisk that differs, by its number among them; `files` is empty where it is packed otherwise only."""

    number: int
    sizes: tuple[int | None, int | None]  # bytes of the sections
    packings: tuple[Packing | None, Packing | None]
    files: tuple[FileChange, ...]


@dataclass(frozen=True, slots=True)
class ImageChange:
    """All differences; `same` if the files are equal byte for byte."""

    registers: tuple[str, ...]  # the names of those that differ
    fields: dict[str, Pair]  # header, kernel, signer
    words: tuple[tuple[str, ...], tuple[str, ...]]  # of the command line: gone, new
    metadata: dict[str, Pair]
    sections: tuple[tuple[str, ...], tuple[str, ...]] | None  # their types in order, where these differ
    ramdisks: tuple[RamdiskChange, ...]
    same: bool


@dataclass(frozen=True, slots=True)
class Opened:
    """One of the two images."""

    source: Source
    found: Inspection
    path: Path  # for errors

    @property
    def ramdisks(self) -> tuple[Part, ...]:
        """Its ramdisk sections."""
        return self.found.layout.of(SectionType.RAMDISK)

    def digest(self, part: Part) -> str:
        """The SHA-384 of a section's data."""
        return self.found.digests[part.index]


def compare(old: Opened, new: Opened) -> ImageChange:
    """Compare two images; raise MalformedEif where nothing was hashed, MalformedRamdisk for one that is damaged."""
    for side in (old, new):
        with naming(side.path):
            if why := side.found.layout.unbounded:
                raise MalformedEif(f"{why}: nothing definite to compare", hint="veracruz image describe")
    return ImageChange(
        registers=tuple(_registers(old.found, new.found)),
        fields=dict(_fields(old, new)),
        words=_words(old.found.contents.cmdline or b"", new.found.contents.cmdline or b""),
        metadata=_metadata(old.found.contents.metadata, new.found.contents.metadata),
        sections=_section_names(old, new),
        ramdisks=tuple(_ramdisks(old, new)),
        same=_equal(old.source, new.source),
    )


def _equal(old: Source, new: Source) -> bool:
    """Compare every byte: a CRC, and digests of sections, leave room for others between them."""
    if old.size != new.size:
        return False
    both = zip(pieces(old, 0, old.size), pieces(new, 0, new.size), strict=True)
    return all(first == second for first, second in both)


def _registers(old: Inspection, new: Inspection) -> Iterator[str]:
    for index in range(3):
        values = [one.measurements.registers[index] if one.measurements else None for one in (old, new)]
        if values[0] != values[1]:
            yield f"PCR{index}"
    if old.pcr8 != new.pcr8:
        yield "PCR8"


def _fields(old: Opened, new: Opened) -> Iterator[tuple[str, Pair]]:
    first, second = old.found.layout.header, new.found.layout.header
    for name in ("version", "flags", "default_memory", "default_cpus", "reserved", "unused"):
        pair = getattr(first, name), getattr(second, name)
        if pair[0] != pair[1]:
            yield name, pair
    if old.found.layout.size != new.found.layout.size:
        yield "size", (old.found.layout.size, new.found.layout.size)
    for kind in _kinds_by_digest(old.found, new.found):
        digests = [tuple(side.digest(part) for part in side.found.layout.of(kind)) for side in (old, new)]
        if digests[0] != digests[1]:
            yield kind.name.lower(), (_told(old, kind), _told(new, kind))


def _kinds_by_digest(old: Inspection, new: Inspection) -> Iterator[SectionType]:
    """Yield the kinds of section that are not compared in more detail elsewhere."""
    yield SectionType.KERNEL
    if old.contents.cmdline is None or new.contents.cmdline is None:
        yield SectionType.CMDLINE
    if not _metadata(old.contents.metadata, new.contents.metadata):  # spaces, or the order of keys
        yield SectionType.METADATA
    yield SectionType.SIGNATURE


def _told(side: Opened, kind: SectionType) -> str | None:
    parts = side.found.layout.of(kind)
    if not parts:
        return None
    words = f"SHA-384 {side.digest(parts[0])[:16]}.., {parts[0].size:,} bytes"
    if kind is SectionType.KERNEL and side.found.contents.kernel is not None:
        words = f"{side.found.contents.kernel}, {words}"
    if kind is SectionType.SIGNATURE and side.found.signer is not None and side.found.signer.certificate is not None:
        words = f"{side.found.signer.certificate.subject.rfc4514_string()[:100]}, {words}"
    return words


def _words(old: bytes, new: bytes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the words that are gone and new; where only their order differs, all of both."""
    lists = [text.decode("latin-1").split(" ") for text in (old, new)]
    if lists[0] == lists[1]:
        return (), ()
    gone = tuple(word for word in lists[0] if word not in lists[1])
    fresh = tuple(word for word in lists[1] if word not in lists[0])
    return (gone, fresh) if gone or fresh else (tuple(lists[0]), tuple(lists[1]))


def _metadata(old: dict[str, Any] | None, new: dict[str, Any] | None) -> dict[str, Pair]:
    first, second = dict(_flat("", old or {})), dict(_flat("", new or {}))
    keys = sorted(first.keys() | second.keys())
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}


def _flat(place: str, value: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the members of an object and of those directly in it, under names such as BuildMetadata.BuildTime."""
    for key, item in value.items():
        if isinstance(item, dict) and not place and item:
            yield from _flat(f"{key}.", item)
        else:
            yield place + key, item


def _section_names(old: Opened, new: Opened) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    first, second = (tuple(part.name for part in side.found.layout.parts) for side in (old, new))
    return None if first == second else (first, second)


def _ramdisks(old: Opened, new: Opened) -> Iterator[RamdiskChange]:
    budgets = Budget(), Budget()
    for number in range(max(len(old.ramdisks), len(new.ramdisks))):
        parts = [side.ramdisks[number] if number < len(side.ramdisks) else None for side in (old, new)]
        if parts[0] and parts[1] and old.digest(parts[0]) == new.digest(parts[1]):
            continue
        indexes = [
            _index(side, part, budget) if part else {}
            for side, part, budget in zip((old, new), parts, budgets, strict=True)
        ]
        yield RamdiskChange(
            number,
            (parts[0].size if parts[0] else None, parts[1].size if parts[1] else None),
            (_packing(old, parts[0]), _packing(new, parts[1])),
            _with_lines(old, new, parts, list(_files(indexes[0], indexes[1]))),
        )


def _index(side: Opened, part: Part, budget: Budget) -> Index:
    with naming(side.path):
        return index_ramdisk(side.source, part, budget)


def _packing(side: Opened, part: Part | None) -> Packing | None:
    return side.found.contents.packings.get(part.index) if part else None


def _files(old: Index, new: Index) -> Iterator[FileChange]:
    for path in sorted(old.keys() | new.keys()):
        if old.get(path) != new.get(path):
            yield FileChange(path, old.get(path), new.get(path))


def _with_lines(
    old: Opened, new: Opened, parts: list[Part | None], changes: list[FileChange]
) -> tuple[FileChange, ...]:
    """Add the lines that differ to changes of small text files."""
    wanted = [
        change.path
        for change in changes
        if change.old and change.new and change.old.sha256 != change.new.sha256
        and 0 < max(change.old.size, change.new.size) <= MAX_TEXT
    ][:MAX_TEXTS]  # fmt: skip
    if not wanted:
        return tuple(changes)
    texts = [
        _read_texts(side.source, part, frozenset(wanted)) if part else {}
        for side, part in zip((old, new), parts, strict=True)
    ]
    return tuple(
        FileChange(change.path, change.old, change.new, _lines(texts[0].get(change.path), texts[1].get(change.path)))
        for change in changes
    )


def _read_texts(source: Source, part: Part, wanted: frozenset[str]) -> dict[str, str]:
    found: dict[str, bytes] = {}
    with open_ramdisk(source, part, Budget()) as members:
        for entry, data in members:
            if entry.path in wanted and entry.is_file and 0 < entry.size <= MAX_TEXT:
                found[entry.path] = b"".join(data)
    return {path: text for path, raw in found.items() if (text := _as_text(raw)) is not None}


def _as_text(raw: bytes) -> str | None:
    try:
        return None if b"\0" in raw else raw.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _lines(old: str | None, new: str | None) -> tuple[str, ...]:
    if old is None or new is None:
        return ()
    both = old.splitlines(), new.splitlines()
    if max(map(len, both)) > MAX_LINES_READ:
        return ()
    lines = list(difflib.unified_diff(*both, lineterm="", n=0))[2:]
    left_out = [f"({len(lines) - MAX_LINES} more lines)"] if len(lines) > MAX_LINES else []
    return (*lines[:MAX_LINES], *left_out)
