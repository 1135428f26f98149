# SPDX-License-Identifier: MIT
"""The tree that one job sees: copies of what its program may read, empty places for what it may write.

    ROOT/tree/...        the parties' paths; each directory that a right names is opened for the guest
    ROOT/streams/        standard output and error, outside of everything that the guest can open

ROOT is a tmpfs of limited size, the worker's root. What the program may not change belongs to root, in directories of
root's, opened read-only.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from attestation.policy import Program, Right, Rights, covers

from .blobs import Blob
from .store import Snapshot
from .syscalls import MS_NODEV, MS_NOEXEC, MS_NOSUID, mount, unmount
from .task import Preopen

TREE = "tree"
STREAMS = "streams"
STDOUT, STDERR = f"{STREAMS}/stdout", f"{STREAMS}/stderr"
STREAM_HEADROOM = 1 << 20  # bytes
BLOCK = 4096  # bytes; what a small file takes of a tmpfs
MAX_NODES = 8192  # files and directories in a job's tree, beyond its inputs

CHANGING = frozenset({Right.WRITE, Right.APPEND, Right.DELETE})


class NoStaging(Exception):
    """The tree could not be made."""


def directory_of(key: str) -> str:
    """Return the directory (with its last "/") that a right's key is about."""
    return key if key.endswith("/") else key[: key.rindex("/") + 1]


def is_mutable(rights: Rights, directory: str) -> bool:
    """Return whether something directly in this directory may be changed."""
    return any(
        words & CHANGING and (covers(key, directory) or directory_of(key) == directory) for key, words in rights.entries
    )


def find_preopens(rights: Rights) -> tuple[Preopen, ...]:
    """Return the directories that a program's rights name; a guest's C library takes the longest that fits."""
    directories = sorted({directory_of(key) for key, _ in rights.entries})
    return tuple(
        Preopen(guest=name.rstrip("/") or "/", host=(TREE + name).rstrip("/"), mutable=is_mutable(rights, name))
        for name in directories
    )


@dataclass(frozen=True, slots=True)
class Staging:
    """One job's tree, and the inputs that were put into it."""

    root: Path
    mounted: bool
    inputs: Snapshot

    def remove(self) -> None:
        """Take the tree away, whatever is in it."""
        if self.mounted:
            with contextlib.suppress(OSError):
                unmount(str(self.root))
        remove_tree(self.root)


def find_inputs(program: Program, snapshot: Snapshot) -> dict[str, Blob]:
    """Return what a program may read."""
    return {path: blob for path, blob in snapshot.items() if program.rights.allow(path, Right.READ)}


def make_staging(
    root: Path, *, program: Program, inputs: Snapshot, uid: int | None, room: int, strict: bool
) -> Staging:
    """Make the tree with `room` bytes for results; raise NoStaging and leave nothing."""
    make_passable(root)
    mounted = False
    try:
        if uid is not None:
            mounted = _mount(root, inputs=inputs, room=room, strict=strict)
        make_passable(root / TREE)
        make_passable(root / STREAMS)
        for stream in (STDOUT, STDERR):
            _give(os.open(root / stream, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), uid)
        for key, _ in program.rights.entries:
            _make_directory(root, directory_of(key), rights=program.rights, uid=uid)
        for path, blob in sorted(inputs.items()):
            _make_directory(root, directory_of(path), rights=program.rights, uid=uid)
            changing = program.rights.allow(path, Right.WRITE) or program.rights.allow(path, Right.APPEND)
            _copy(blob, root / (TREE + path), uid=uid if changing else None, mode=0o600 if changing else 0o444)
    except OSError as error:
        Staging(root, mounted, {}).remove()
        raise NoStaging from error
    return Staging(root, mounted, inputs)


def make_passable(directory: Path) -> None:
    """Make a directory that another uid may read and enter, whatever the umask."""
    directory.mkdir()
    directory.chmod(0o755)


def _mount(root: Path, *, inputs: Snapshot, room: int, strict: bool) -> bool:
    blocks = sum(blob.size // BLOCK + 1 for blob in inputs.values())
    size = blocks * BLOCK + room + STREAM_HEADROOM
    try:
        mount(
            "staging", str(root), "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC,
            f"size={size},nr_inodes={2 * len(inputs) + MAX_NODES},mode=0755",
        )  # fmt: skip
    except OSError:
        if strict:
            raise
        return False
    return True


def _make_directory(root: Path, directory: str, *, rights: Rights, uid: int | None) -> None:
    """Make a directory and those above it; those in which something may change are the worker's."""
    for end in (index for index, letter in enumerate(directory) if letter == "/"):
        step = directory[: end + 1]
        path = root / (TREE + step)
        with contextlib.suppress(FileExistsError):
            make_passable(path)
        if uid is not None and is_mutable(rights, step):
            os.chown(path, uid, uid)


def _copy(blob: Blob, target: Path, *, uid: int | None, mode: int) -> None:
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        blob.copy_to(descriptor)
        os.fchmod(descriptor, mode)
        os.utime(descriptor, (0, 0))
    except OSError:
        os.close(descriptor)
        raise
    _give(descriptor, uid)


def _give(descriptor: int, uid: int | None) -> None:
    try:
        if uid is not None:
            os.fchown(descriptor, uid, uid)
    finally:
        os.close(descriptor)


def remove_tree(root: Path) -> None:
    """Remove a directory and what is in it, following no link."""
    for directory, names, files in os.walk(root, topdown=False, followlinks=False):
        for name in files:
            with contextlib.suppress(OSError):
                Path(directory, name).unlink()
        for name in names:
            path = Path(directory, name)
            with contextlib.suppress(OSError):
                path.unlink() if path.is_symlink() else path.rmdir()
    with contextlib.suppress(OSError):
        root.rmdir()
