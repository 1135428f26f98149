# SPDX-License-Identifier: MIT
"""The file tree of a container image: layers applied one upon the other in memory; no file of it touches this machine.

Source: OCI image specification, layer.md ("Applying Changesets", "Whiteouts"). A name never leaves the tree: `..` in it
is refused, and links on the way to it are followed inside the tree, as a process does whose root it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

from attestation.errors import escape

from ..eif_tool.layout import Source
from ..errors import MalformedContainer
from .tar_reader import Budget, Kind, Member, read_tar

MAX_DEPTH = 200  # directories in one another
MAX_PART = 255  # bytes; NAME_MAX
MAX_HOPS = 40  # links followed on the way to one name; the kernel's own limit
WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
_DEVICES = (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE)


@dataclass(slots=True, eq=False)
class Leaf:
    """A file, symbolic link or fifo. A file of several names is one object in several places."""

    kind: Kind
    mode: int
    uid: int
    gid: int
    size: int = 0  # bytes
    offset: int = 0  # of a file's data in its source
    source: Source | None = None
    target: str = ""  # of a symbolic link


@dataclass(slots=True, eq=False)
class Folder:
    """A directory."""

    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    children: dict[str, Leaf | Folder] = field(default_factory=dict)


@dataclass(slots=True)
class Tree:
    """What layers applied so far give, and what of them an enclave image cannot hold."""

    root: Folder = field(default_factory=Folder)
    left_out: list[str] = field(default_factory=list)  # device nodes below /dev, which is another file system then
    attributes: set[str] = field(default_factory=set)  # names of extended attributes, which a ramdisk cannot hold

    def find(self, path: str) -> Leaf | Folder | None:
        """Return what a path leads to, links followed inside the tree; None for nothing."""
        parts = _follow([], path)
        for _ in range(MAX_HOPS):
            if not parts:
                return self.root
            folder = _descend(self.root, parts[:-1], make=False)
            found = folder.children.get(parts[-1]) if folder is not None and parts[-1] != ".." else None
            if not isinstance(found, Leaf) or found.kind is not Kind.SYMBOLIC_LINK:
                return found
            parts = _follow(parts[:-1], found.target)
        return None

    def apply(self, source: Source, budget: Budget) -> None:
        """Apply one layer, an uncompressed tar; raise MalformedContainer naming member and reason."""
        members = [(split_path(member.name, member), member) for member in read_tar(source, budget)]
        for parts, member in members:
            if parts and parts[-1].startswith(WHITEOUT):
                self._remove(parts, member)
        seen: dict[tuple[Folder, str], Kind] = {}
        for parts, member in members:
            if not any(part.startswith(WHITEOUT) for part in parts):
                self._add(parts, member, source, seen)

    def _remove(self, parts: list[str], member: Member) -> None:
        """Take away what a whiteout names in the layers below; the layer's own files are not there yet."""
        hidden = parts[-1][len(WHITEOUT) :]
        if member.kind is not Kind.FILE or member.size or hidden in ("", ".", ".."):
            _refuse(member, "no whiteout", expected="an empty file .wh.NAME")
        folder = _descend(self.root, parts[:-1], make=False)
        if folder is None:
            return
        if parts[-1] == OPAQUE:
            folder.children.clear()
        elif not hidden.startswith(WHITEOUT):  # other names of that form are a storage driver's own
            folder.children.pop(hidden, None)

    def _add(self, parts: list[str], member: Member, source: Source, seen: dict[tuple[Folder, str], Kind]) -> None:
        self.attributes.update(member.attributes)
        if not parts:
            if member.kind is not Kind.DIRECTORY:
                _refuse(member, "the root is no directory")
            self.root.mode, self.root.uid, self.root.gid = member.mode, member.uid, member.gid
            return
        if member.kind in _DEVICES:
            if parts[0] != "dev":
                _refuse(member, f"a {member.kind} outside /dev")
            self.left_out.append("/".join(parts))
            return
        folder = _descend(self.root, parts[:-1], make=True)
        if folder is None:
            _refuse(member, "its directory is a file, or a link that leads nowhere")
        name = parts[-1]
        if (folder, name) in seen and not seen[folder, name] is member.kind is Kind.DIRECTORY:
            _refuse(member, "a layer names it twice")
        seen[folder, name] = member.kind
        old = folder.children.get(name)
        if member.kind is Kind.DIRECTORY and isinstance(old, Folder):
            old.mode, old.uid, old.gid = member.mode, member.uid, member.gid
            return
        folder.children[name] = self._make(parts, member, source)

    def _make(self, parts: list[str], member: Member, source: Source) -> Leaf | Folder:
        match member.kind:
            case Kind.DIRECTORY:
                return Folder(member.mode, member.uid, member.gid)
            case Kind.HARD_LINK:
                return self._find_linked(member)
            case Kind.SYMBOLIC_LINK:
                _check_target(parts, member)
                return Leaf(member.kind, 0o777, member.uid, member.gid, target=member.target)
            case _:
                return Leaf(member.kind, member.mode, member.uid, member.gid, member.size, member.offset, source)

    def _find_linked(self, member: Member) -> Leaf:
        parts = split_path(member.target, member)
        folder = _descend(self.root, parts[:-1], make=False) if parts else None
        found = folder.children.get(parts[-1]) if folder is not None else None
        if not isinstance(found, Leaf):
            _refuse(member, "a hard link to what is no file of the image", actual=member.target)
        return found


def split_path(path: str, member: Member) -> list[str]:
    """Return a member's path as its steps from the root on; a leading slash means that root."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        _refuse(member, "a path that leads up", actual=path)
    if len(parts) > MAX_DEPTH:
        _refuse(member, "too deep", expected=f"at most {MAX_DEPTH} directories")
    if any(len(part.encode("utf-8", "surrogateescape")) > MAX_PART for part in parts):
        _refuse(member, "a name is too long", expected=f"at most {MAX_PART} bytes")
    return parts


def _refuse(member: Member, why: str, *, expected: object = None, actual: object = None) -> NoReturn:
    raise MalformedContainer(f"layer, member {escape(member.name)}: {why}", expected=expected, actual=actual)


def _check_target(parts: list[str], member: Member) -> None:
    """Refuse a symbolic link without a target, or one that climbs above the root: it means another file elsewhere."""
    if not member.target:
        _refuse(member, "a symbolic link to nothing")
    depth = 0 if member.target.startswith("/") else len(parts) - 1
    for step in member.target.split("/"):
        depth += {"": 0, ".": 0, "..": -1}.get(step, 1)
        if depth < 0:
            _refuse(member, "a symbolic link that leads out of the image", actual=member.target)


def _follow(before: list[str], target: str) -> list[str]:
    """Return the steps of a link's target; `before` are those of the directory that holds the link."""
    return ([] if target.startswith("/") else before) + [step for step in target.split("/") if step not in ("", ".")]


def _descend(root: Folder, parts: list[str], *, make: bool) -> Folder | None:
    """Return the directory at a path, following links inside the tree; None where it leads to no directory.

    With `make`, what is missing on the way becomes a directory.
    """
    path: list[tuple[str, Folder]] = []  # from the root to where we are
    todo, hops = list(reversed(parts)), 0
    while todo:
        step = todo.pop()
        if step == "..":
            path = path[:-1]
            continue
        here = path[-1][1] if path else root
        found = here.children.get(step)
        if found is None and make:
            found = here.children[step] = Folder()
        if isinstance(found, Folder):
            path.append((step, found))
        elif found is not None and found.kind is Kind.SYMBOLIC_LINK and hops < MAX_HOPS:
            hops += 1
            todo += reversed(_follow([], found.target))
            path = [] if found.target.startswith("/") else path
        else:
            return None
        if len(path) > MAX_DEPTH:
            return None
    return path[-1][1] if path else root
