# SPDX-License-Identifier: MIT
"""What is in an image's sections, as far as their first bytes tell: kernel, command line, metadata, ramdisks.

Sources: the kernel's Documentation/arch/x86/boot.rst and Documentation/arch/arm64/booting.rst; the required keys of the
metadata are those of aws-nitro-enclaves-image-format src/defs/mod.rs (EifIdentityInfo).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from attestation.errors import escape

from ..eif import MAX_COMMAND_LINE, SectionType
from .decompression import Packing, find_packing
from .findings import Finding, differs
from .layout import Layout, Source, read_part

KERNEL_COMMAND_LINE = 2048  # bytes; COMMAND_LINE_SIZE of x86 and arm64, its NUL included
MAX_METADATA = 256 * 1024  # bytes; nitro-cli's: 4,096 of the user's own, and what `docker inspect` prints
MAX_DEPTH = 64  # containers in one another; what `docker inspect` prints has 6
KERNEL_HEAD = 1024  # bytes of a kernel that are looked at first
MAX_KERNEL_VERSION = 128  # bytes

_IDENTITY = {
    "ImageName": str,
    "ImageVersion": str,
    "BuildMetadata": dict,
    "DockerInfo": object,
    "CustomMetadata": object,
}
_BUILD = ("BuildTime", "BuildTool", "BuildToolVersion", "OperatingSystem", "KernelVersion")


@dataclass(frozen=True, slots=True)
class Contents:
    """What was read; each is None where it is missing or unreadable."""

    kernel: str | None  # such as "bzImage, 6.12.107"
    cmdline: bytes | None
    metadata: dict[str, Any] | None
    packings: dict[int, Packing | None]  # of each ramdisk, by its section's index


def read_contents(source: Source, layout: Layout, findings: list[Finding]) -> Contents:
    """Return what the sections hold; add what is wrong with it to `findings`."""
    kernel, cmdline, metadata = None, None, None
    for part in layout.of(SectionType.KERNEL)[:1]:
        kernel = _read_kernel(source, layout, part.start, part.size, findings)
    for part in layout.of(SectionType.CMDLINE)[:1]:
        cmdline = read_part(source, part, limit=MAX_COMMAND_LINE)
        findings += _check_cmdline(cmdline, part.size)
    for part in layout.of(SectionType.METADATA)[:1]:
        metadata = _read_metadata(read_part(source, part, limit=MAX_METADATA), part.size, findings)
    packings = {}
    for part in layout.of(SectionType.RAMDISK):
        packings[part.index] = find_packing(source.read(part.start, min(8, part.size)))
        if packings[part.index] is None and part.size:
            findings.append(Finding("ramdisk-format", f"{part.place}: neither cpio nor a compression that Linux knows"))
    return Contents(kernel, cmdline, metadata, packings)


def _read_kernel(source: Source, layout: Layout, start: int, size: int, findings: list[Finding]) -> str | None:
    head = source.read(start, min(size, KERNEL_HEAD))
    said = layout.header.architecture
    if head[0x1FE:0x200] == b"\x55\xaa" and head[0x202:0x206] == b"HdrS" and len(head) >= 0x210:
        if said != "x86_64":
            findings.append(differs("kernel-architecture", "kernel", expected=f"one for {said}", actual="x86 bzImage"))
        (pointer,) = struct.unpack_from("<H", head, 0x20E)  # boot.rst: kernel_version, less 0x200
        version = source.read(start + pointer + 0x200, MAX_KERNEL_VERSION) if pointer + 0x200 < size else b""
        words = version.partition(b"\0")[0].split(b" ")[0]
        return "bzImage" + (f", {escape(words.decode('latin-1'))}" if pointer and words else "")
    if head[56:60] == b"ARM\x64":
        if said != "aarch64":
            findings.append(differs("kernel-architecture", "kernel", expected=f"one for {said}", actual="arm64 Image"))
        if struct.unpack_from("<Q", head, 8) == (0,):
            findings.append(Finding("kernel-text-offset", "kernel: text_offset is 0, and has to be 2 MiB for Nitro"))
        return "arm64 Image"
    if size:
        findings.append(Finding("kernel-format", "kernel: neither an x86 bzImage nor an arm64 Image"))
    return None


def _check_cmdline(cmdline: bytes | None, size: int) -> Iterator[Finding]:
    if cmdline is None:
        yield differs("cmdline-endless", "command line", expected=f"at most {MAX_COMMAND_LINE} bytes", actual=size)
        return
    if len(cmdline) >= KERNEL_COMMAND_LINE:
        most = KERNEL_COMMAND_LINE - 1
        yield differs("cmdline-long", "command line", expected=f"at most {most} bytes", actual=len(cmdline))
    if b"\0" in cmdline:
        at = cmdline.index(b"\0")
        yield Finding("cmdline-nul", f"command line: a NUL at byte {at} of {len(cmdline)}; the kernel stops there")
    if any(not 0x20 <= byte < 0x7F for byte in cmdline if byte):
        yield Finding("cmdline-unprintable", "command line: control or non-ASCII characters")


def _read_metadata(raw: bytes | None, size: int, findings: list[Finding]) -> dict[str, Any] | None:
    if raw is None:
        findings.append(differs("metadata-endless", "metadata", expected=f"at most {MAX_METADATA} bytes", actual=size))
        return None
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_refuse_number, parse_float=_finite)
        if not isinstance(value, dict):
            raise ValueError("not an object")
        if _is_deep(value):
            raise ValueError(f"nested more than {MAX_DEPTH} deep")
    except (ValueError, RecursionError) as error:
        findings.append(Finding("metadata-malformed", f"metadata: no JSON object: {escape(error)}"))
        return None
    missing = [key for key, kind in _IDENTITY.items() if key not in value or not isinstance(value[key], kind)]
    build = value.get("BuildMetadata")
    if isinstance(build, dict):
        missing += [f"BuildMetadata.{key}" for key in _BUILD if not isinstance(build.get(key), str)]
    if missing:
        findings.append(Finding("metadata-malformed", f"metadata: missing, or of another type: {', '.join(missing)}"))
    return value


def _refuse_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_number(text[:20])


def _is_deep(value: object) -> bool:
    """Return whether a decoded value is nested too deep to be printed again."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
        ]
    return bool(level)
