# SPDX-License-Identifier: MIT
"""Write a container's file tree as the second ramdisk: names, modes, owners and contents, and nothing else.

Owners and permission bits are kept as numbers, times are 0, order is by bytes, parents first. A file of several names
is one inode with its data at the first of them, which the kernel links (init/initramfs.c, maybe_link).
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from attestation.files import PIECE

from ..errors import MalformedContainer, UnfitContainer
from ..initramfs import BLOCK, make_head, make_trailer
from .tar_reader import Kind
from .tree import Folder, Leaf, Tree

MAX_CONTENT = 2 << 30  # bytes of all files: they are packed in memory, and unpacked into the enclave's
ROOTFS = "rootfs"
MOUNTS = {"dev": 0o755, "proc": 0o555, "run": 0o755, "sys": 0o555, "tmp": 0o1777, "var": 0o755}
_TYPES = {Kind.FILE: stat.S_IFREG, Kind.SYMBOLIC_LINK: stat.S_IFLNK, Kind.FIFO: stat.S_IFIFO}


def check_content(tree: Tree) -> None:
    """Raise UnfitContainer for a tree that is too large, or that has something else where /init mounts."""
    files = {id(leaf): leaf.size for _, leaf in walk(tree.root) if isinstance(leaf, Leaf)}
    if (size := sum(files.values())) > MAX_CONTENT:
        raise UnfitContainer("the container's files are too large", expected=f"{MAX_CONTENT} bytes", actual=size)
    for name in MOUNTS:
        found = tree.root.children.get(name)
        if isinstance(found, Leaf):
            raise UnfitContainer(f"/{name} of the container is no directory", actual=found.kind)


def walk(folder: Folder, prefix: str = "") -> Iterator[tuple[str, Leaf | Folder]]:
    """Yield what is below a directory, with its path, sorted by bytes, parents first."""
    for name in sorted(folder.children, key=lambda name: name.encode("utf-8", "surrogateescape")):
        child, path = folder.children[name], f"{prefix}{name}"
        yield path, child
        if isinstance(child, Folder):
            yield from walk(child, f"{path}/")


def write_ramdisk(tree: Tree, files: Mapping[str, bytes], out: BinaryIO) -> None:
    """Write the archive: `files` at its top, the tree below /rootfs, with the directories that /init mounts upon."""
    check_content(tree)
    root = Folder(tree.root.mode, tree.root.uid, tree.root.gid, dict(tree.root.children))
    for name, mode in MOUNTS.items():
        root.children.setdefault(name, Folder(mode))
    top = Folder(
        children={ROOTFS: root, **{name: Leaf(Kind.FILE, 0o644, 0, 0, len(data)) for name, data in files.items()}}
    )
    links = Counter(id(leaf) for _, leaf in walk(top) if isinstance(leaf, Leaf))
    inodes: dict[int, int] = {}
    size = 0
    for path, node in walk(top):
        first = id(node) not in inodes
        inode = inodes.setdefault(id(node), len(inodes) + 1)
        size += _write_node(path, node, files.get(path), out, inode=inode, first=first, links=links[id(node)])
    size += out.write(make_trailer())
    out.write(bytes(-size % BLOCK))


def _write_node(
    path: str, node: Leaf | Folder, own: bytes | None, out: BinaryIO, *, inode: int, first: bool, links: int
) -> int:
    """Write one member, `own` being the bytes of a file of ours; return how many bytes that took."""
    name, owner = path.encode("utf-8", "surrogateescape"), (node.uid, node.gid)
    if isinstance(node, Folder):
        return out.write(make_head(inode, name, mode=stat.S_IFDIR | node.mode, owner=owner, links=2))
    target = node.target.encode("utf-8", "surrogateescape")
    size = len(target) if node.kind is Kind.SYMBOLIC_LINK else node.size if first else 0
    mode = _TYPES[node.kind] | node.mode
    if node.kind is Kind.SYMBOLIC_LINK:  # the kernel links regular files only: a link of two names is two links
        links = 1
    done = out.write(make_head(inode, name, mode=mode, owner=owner, links=links, size=size))
    if node.kind is Kind.SYMBOLIC_LINK:
        done += out.write(target)
    elif size:
        for piece in [own] if own is not None else _pieces(node):
            done += out.write(piece)
    return done + out.write(bytes(-size % 4))


def _pieces(leaf: Leaf) -> Iterator[bytes]:
    at = 0
    while at < leaf.size:
        piece = leaf.source.read(leaf.offset + at, min(PIECE, leaf.size - at)) if leaf.source is not None else b""
        if not piece:
            raise MalformedContainer("a layer became shorter while it was read")
        at += len(piece)
        yield piece
