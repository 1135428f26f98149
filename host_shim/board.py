# SPDX-License-Identifier: MIT
"""Numbers that one process writes and others read: a small shared file, no requests, no waiting.

Layout, little-endian unsigned 64-bit: a magic that names the numbers, a sequence, then the numbers in their order. The
sequence is odd while they are written; a reader takes them when it was even and has not changed.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

ATTEMPTS = 100  # at a consistent reading; one writing takes microseconds
_HEAD = struct.Struct("<QQ")


Kind = type[Any]  # a dataclass whose fields are all numbers
T = TypeVar("T", bound=Any)


def names_of(kind: Kind) -> tuple[str, ...]:
    """Return the names of a dataclass's numbers, in their order."""
    return tuple(field.name for field in fields(kind))


def _magic(kind: Kind) -> int:
    return int.from_bytes(hashlib.sha256(" ".join(names_of(kind)).encode()).digest()[:8], "little")


def size_of(kind: Kind) -> int:
    """Return the file's size in bytes."""
    return _HEAD.size + 8 * len(names_of(kind))


class Board:
    """Publishes numbers of one kind in a file that its owner and the reader share."""

    def __init__(self, descriptor: int, kind: Kind) -> None:
        self._names = names_of(kind)
        self._form = struct.Struct(f"<{len(self._names)}Q")
        self._magic = _magic(kind)
        os.posix_fallocate(descriptor, 0, size_of(kind))  # nothing new for a file of open_board
        self._map = mmap.mmap(descriptor, size_of(kind))
        self._sequence = 0

    def publish(self, numbers: object) -> None:
        """Write what they are now."""
        _HEAD.pack_into(self._map, 0, self._magic, self._sequence + 1)
        self._form.pack_into(self._map, _HEAD.size, *(getattr(numbers, name) for name in self._names))
        self._sequence += 2
        _HEAD.pack_into(self._map, 0, self._magic, self._sequence)

    def close(self) -> None:
        """Let go of the file; what stands in it stays."""
        self._map.close()


def read_board(descriptor: int, kind: type[T]) -> T | None:
    """Return the numbers that were published last; None if there are none (yet)."""
    size = size_of(kind)
    for _ in range(ATTEMPTS):
        raw = os.pread(descriptor, size, 0)
        if len(raw) < size:
            return None
        magic, sequence = _HEAD.unpack_from(raw)
        if magic != _magic(kind) or sequence == 0:
            return None
        again = os.pread(descriptor, _HEAD.size, 0)
        if sequence % 2 == 0 and again == raw[: _HEAD.size]:
            numbers: T = kind(*struct.unpack_from(f"<{len(names_of(kind))}Q", raw, _HEAD.size))
            return numbers
    return None


def open_board(path: Path, kind: Kind) -> int:
    """Make the file, without numbers, and return its descriptor; raise OSError where there is no room for it.

    It has blocks, and no hole: a hole on a full disk ends whoever writes the first number by SIGBUS.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size_of(kind))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def look_at(path: Path, kind: type[T]) -> T | None:
    """Return the numbers in a file; None where there are none, or it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        return read_board(descriptor, kind)
    except OSError:
        return None
    finally:
        os.close(descriptor)
