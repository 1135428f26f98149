# SPDX-License-Identifier: MIT
"""The differences between two images in words for a person, and as the object that --json prints."""

from __future__ import annotations

import json
import stat
from typing import Any

from attestation.errors import escape

from .diff import FileChange, ImageChange, RamdiskChange
from .file_writer import escape_path
from .ramdisk_files import FileRecord

MARGIN = 12  # columns of the labels
SHOWN_HASH = 12  # hex digits; --json has them all
MAX_PATH_COLUMN = 60  # columns; longer paths push what follows
SHOWN_FILES = 200  # of one ramdisk; --json has them all
_FIELDS = ("mode", "uid", "gid", "mtime", "size", "sha256", "target", "device")


def text_of(change: ImageChange) -> str:
    """Return the differences, the registers first; one line where there are none."""
    if change.same:
        return "the same, byte for byte"
    names = ["PCR0", "PCR1", "PCR2"]
    equal = [name for name in names if name not in change.registers]
    rows = [_row("differ", ", ".join(change.registers) or "no register: what is measured is the same")]
    if change.registers and equal:
        rows.append(_row("equal", ", ".join(equal)))
    if change.sections:
        rows += [_row("sections", f"- {' '.join(change.sections[0])}"), _row("", f"+ {' '.join(change.sections[1])}")]
    rows += [_row(name, _pair(pair)) for name, pair in change.fields.items()]
    rows += [_row("cmdline" if not at else "", line) for at, line in enumerate(_word_lines(change))]
    rows += [
        _row("metadata" if not at else "", f"{escape(key)}: {_pair(pair)}")
        for at, (key, pair) in enumerate(change.metadata.items())
    ]
    if not (change.registers or change.fields or change.metadata or change.sections or change.ramdisks):
        rows.append(_row("", "only bytes outside of the sections' data: veracruz image describe shows gaps"))
    for ramdisk in change.ramdisks:
        rows += ["", *_ramdisk_lines(ramdisk)]
    return "\n".join(rows)


def _row(label: str, text: str) -> str:
    return f"{label:<{MARGIN}}{text}".rstrip()


def _value(value: object) -> str:
    return "-" if value is None else escape(value if isinstance(value, str) else json.dumps(value))


def _pair(pair: tuple[Any, Any]) -> str:
    return f"{_value(pair[0])} -> {_value(pair[1])}"


def _word_lines(change: ImageChange) -> list[str]:
    gone, new = change.words
    return [f"{sign} {escape(word)}" for sign, words in (("-", gone), ("+", new)) for word in words]


def _ramdisk_lines(ramdisk: RamdiskChange) -> list[str]:
    sizes = " -> ".join("-" if size is None else f"{size:,}" for size in ramdisk.sizes)
    packings = [str(packing or "-") for packing in ramdisk.packings]
    packing = packings[0] if packings[0] == packings[1] else f"{packings[0]} -> {packings[1]}"
    head = _row(f"ramdisk {ramdisk.number}", f"{packing}, {sizes} bytes")
    if not ramdisk.files:
        return [head, "  the same files, packed otherwise (order, compression, inode numbers)"]
    counts = [
        f"{count} {word}"
        for word, count in (
            ("added", sum(one.old is None for one in ramdisk.files)),
            ("removed", sum(one.new is None for one in ramdisk.files)),
            ("changed", sum(one.old is not None and one.new is not None for one in ramdisk.files)),
        )
        if count
    ]
    lines = [f"{head}: {', '.join(counts)}"]
    shown = ramdisk.files[:SHOWN_FILES]
    width = min(MAX_PATH_COLUMN, max(len(escape_path(one.path)) for one in shown))
    for change in shown:
        lines += _file_lines(change, width)
    if len(ramdisk.files) > SHOWN_FILES:
        lines.append(f"  ... and {len(ramdisk.files) - SHOWN_FILES} more: --json has them all")
    return lines


def _file_lines(change: FileChange, width: int) -> list[str]:
    path = f"{escape_path(change.path):<{width}}"
    old, new = change.old, change.new
    if old is None or new is None:
        record = new or old
        assert record is not None
        return [f"  {'A' if old is None else 'D'}  {path}  {_told(record)}"]
    words = [_changed(name, old, new) for name in _FIELDS if getattr(old, name) != getattr(new, name)]
    return [f"  M  {path}  {', '.join(words)}", *(f"       {escape(line)}" for line in change.lines)]


def _told(record: FileRecord) -> str:
    words = f"{stat.filemode(record.mode)} {record.uid}:{record.gid}"
    if record.is_file:
        return f"{words} {record.size:,} bytes sha256 {record.sha256[:SHOWN_HASH]}.."
    return f"{words} -> {escape(record.target)}" if record.target else words


def _changed(name: str, old: FileRecord, new: FileRecord) -> str:
    pair = getattr(old, name), getattr(new, name)
    if name == "mode":
        pair = stat.filemode(old.mode), stat.filemode(new.mode)
    elif name == "sha256":
        pair = f"{old.sha256[:SHOWN_HASH]}..", f"{new.sha256[:SHOWN_HASH]}.."
    elif name == "size":
        pair = f"{old.size:,}", f"{new.size:,}"
    return f"{name} {_pair(pair)}"


def data_of(change: ImageChange) -> dict[str, Any]:
    """Return the differences as one JSON object; each pair is [old, new], null where it is missing."""
    return {
        "same": change.same,
        "registers": list(change.registers),
        "sections": change.sections and [list(names) for names in change.sections],
        "fields": {name: list(pair) for name, pair in change.fields.items()},
        "command_line": {"removed": list(change.words[0]), "added": list(change.words[1])},
        "metadata": {name: list(pair) for name, pair in change.metadata.items()},
        "ramdisks": [
            {
                "ramdisk": ramdisk.number,
                "sizes": list(ramdisk.sizes),
                "packings": [packing and str(packing) for packing in ramdisk.packings],
                "files": [
                    {
                        "path": escape_path(one.path),
                        "change": "added" if one.old is None else "removed" if one.new is None else "changed",
                        "old": _record_data(one.old),
                        "new": _record_data(one.new),
                        "lines": list(one.lines),
                    }
                    for one in ramdisk.files
                ],
            }
            for ramdisk in change.ramdisks
        ],
    }


def _record_data(record: FileRecord | None) -> dict[str, Any] | None:
    if record is None:
        return None
    return {
        "type": record.kind, "mode": record.permissions, "uid": record.uid, "gid": record.gid,
        "mtime": record.mtime, "size": record.size, "sha256": record.sha256 or None,
        "target": escape_path(record.target) if record.target else None, "device": list(record.device),
    }  # fmt: skip
