# SPDX-License-Identifier: MIT
"""Known facts about what is inside an image: rights of files, packages, licences, modules, sizes."""

from __future__ import annotations

import stat
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from attestation.errors import escape

from .comparison import read_files
from .eif import Eif
from .eif_tool.cpio_reader import Budget
from .eif_tool.ramdisk_files import FileRecord as Found
from .eif_tool.ramdisk_files import Index
from .inventory import Component, FileRecord, Inventory, Kind
from .rootfs import PACKAGES

EXECUTABLE = "init"  # the only file that the kernel may start
INSIDE = (Kind.DEBIAN, Kind.WHEEL, Kind.BUNDLED, Kind.KERNEL, Kind.PATCH, Kind.LINKED, Kind.OWN)
STDLIB = "usr/lib/python3.13/"


@dataclass(frozen=True, slots=True)
class Oddity:
    """A file that should not be as it is."""

    what: str
    ramdisk: int
    path: str
    mode: str  # octal


@dataclass(frozen=True, slots=True)
class Audit:
    """The facts. `oddities` is what a reviewer has to look at; the rest is for reading."""

    oddities: tuple[Oddity, ...]
    sizes: Mapping[str, int]  # component -> bytes of its files, unpacked
    licences: Mapping[str, tuple[str, ...]]  # licence -> components; "no assertion" for those that name none
    security: tuple[Component, ...]  # from the security archive
    modules: Mapping[str, tuple[str, ...]]  # component -> top-level Python modules


def audit_image(image: Eif, inventory: Inventory) -> Audit:
    """Return the facts about an image; `inventory` is of the build that its files are looked up in."""
    budget = Budget()
    trees = [read_files(data, budget) for data in image.ramdisks]
    inside = [component for component in inventory.components if component.kind in INSIDE]
    licences: dict[str, list[str]] = defaultdict(list)
    for component in inside:
        for name in component.licences or ("no assertion",):
            licences[name].append(component.name)
    sizes: Counter[str] = Counter()
    for file in inventory.files:
        sizes[file.component] += file.size
    return Audit(
        oddities=tuple(_oddities(trees, inventory)), sizes=dict(sizes.most_common()),
        licences={name: tuple(sorted(set(licences[name]))) for name in sorted(licences)},
        security=tuple(component for component in inside if component.security),
        modules=_modules(inventory.files),
    )  # fmt: skip


def _oddities(trees: list[Index], inventory: Inventory) -> Iterator[Oddity]:
    known = {(file.ramdisk, file.path): file for file in inventory.files}
    for number, tree in enumerate(trees):
        for path, found in tree.items():
            for what in _faults(path, found, known.get((number, path)), number):
                yield Oddity(what, number, escape(path), found.permissions)


def _faults(path: str, found: Found, record: FileRecord | None, number: int) -> Iterator[str]:
    file = found.is_file
    if found.mode & (stat.S_ISUID | stat.S_ISGID):
        yield "set-id"
    if found.mode & stat.S_IWOTH and found.kind != "link" and not found.mode & stat.S_ISVTX:
        yield "world-writable"
    if file and found.mode & 0o111 and (number, path) != (0, EXECUTABLE):
        yield "executable"
    if found.kind not in ("file", "directory", "link"):
        yield "device, pipe or socket"
    if (found.uid, found.gid) != (0, 0):
        yield "owner is not root"
    if ".." in path.split("/"):
        yield "path with .."
    if record is None:
        yield "not in this checkout's build"
    elif record.kind != found.kind or (file and record.sha256 != found.sha256):
        yield "not as this checkout builds it"


def _modules(files: tuple[FileRecord, ...]) -> dict[str, tuple[str, ...]]:
    found: dict[str, set[str]] = defaultdict(set)
    for file in files:
        for base in (f"{PACKAGES}/", f"{STDLIB}lib-dynload/", STDLIB, "app/"):
            if file.kind == "file" and file.path.startswith(base) and file.path.endswith((".pyc", ".so")):
                found[file.component].add(file.path.removeprefix(base).split("/")[0].split(".")[0])
                break
    return {name: tuple(sorted(found[name])) for name in sorted(found)}
