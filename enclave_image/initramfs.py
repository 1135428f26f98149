# SPDX-License-Identifier: MIT
"""Write a directory tree as a newc cpio archive that depends on nothing but names, modes and contents.

Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst. Fixed fields: inode = running number,
owner 0, time 0, check 0; modes are 0755 for directories and executables, 0644 for files, 0777 for links; entries sorted
by bytes, parents first.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

BLOCK = 512  # bytes; the archive is padded to it
TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class File:
    """A regular file."""

    data: bytes
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True, slots=True)
class Node:
    """A character device."""

    major: int
    minor: int
    mode: int


Entry = File | Link | Node | None  # None: a directory
Tree = dict[str, Entry]  # path without leading slash -> entry


def read_tree(root: Path) -> Tree:
    """Return a directory of the host as a tree: its files, links and directories."""
    tree: Tree = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            tree[name] = Link(path.readlink().as_posix())
        elif stat.S_ISDIR(mode):
            tree[name] = None
        elif stat.S_ISREG(mode):
            tree[name] = File(path.read_bytes(), bool(mode & 0o111))
        else:
            raise ValueError(f"{name} is neither file, directory nor link")
    return tree


def only_executable(name: str, tree: Mapping[str, Entry]) -> Tree:
    """Return the tree with one file executable and no other: the kernel starts nothing else, whatever it is told."""
    return {
        path: replace(entry, executable=path == name) if isinstance(entry, File) else entry
        for path, entry in tree.items()
    }


def _with_parents(tree: Mapping[str, Entry]) -> Tree:
    whole: Tree = {}
    for name, entry in tree.items():
        parts = name.split("/")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            if tree.get(parent) is not None:
                raise ValueError(f"{parent} is a directory and something else")
            whole.setdefault(parent, None)
        whole[name] = entry
    return whole


def _record(inode: int, name: str, entry: Entry) -> Iterator[bytes]:
    data, links, major, minor = b"", 1, 0, 0
    match entry:
        case None:
            mode, links = 0o040755, 2
        case File(data, executable):
            mode = 0o100755 if executable else 0o100644
        case Link(target):
            mode, data = 0o120777, target.encode()
        case Node(major, minor, permissions):
            mode = stat.S_IFCHR | permissions
    yield make_head(inode, name.encode(), mode=mode, links=links, size=len(data), device=(major, minor))
    yield data
    yield bytes(-len(data) % 4)


def make_head(
    inode: int, name: bytes, *, mode: int, owner: tuple[int, int] = (0, 0), links: int = 1, size: int = 0,
    device: tuple[int, int] = (0, 0),
) -> bytes:  # fmt: skip
    """Return the padded head of an archive member, to be followed by its data, padded to 4 bytes.

    `mode` with the kind of file, `owner` uid and gid, `device` major and minor.
    """
    fields = (inode, mode, *owner, links, 0, size, 0, 0, *device, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name + b"\0"
    return head + bytes(-len(head) % 4)


def make_trailer() -> bytes:
    """Return the member that ends an archive, without padding."""
    fields = (0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, len(TRAILER) + 1, 0)
    return b"070701" + b"".join(b"%08X" % field for field in fields) + TRAILER.encode() + b"\0"


def write_cpio(tree: Mapping[str, Entry]) -> bytes:
    """Return the archive of a tree; missing parent directories are added."""
    parts: list[bytes] = []
    whole = _with_parents(tree)
    for number, name in enumerate(sorted(whole, key=lambda path: path.encode().split(b"/")), start=1):
        parts.extend(_record(number, name, whole[name]))
    parts.append(make_trailer())
    archive = b"".join(parts)
    return archive + bytes(-len(archive) % BLOCK)
