# SPDX-License-Identifier: MIT
"""Immutable contents in a private directory on a tmpfs: a blob's file goes when the last reference to it does.

What one owner's contents take is bounded, those that only a waiting job still holds included: a tmpfs is memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

CHUNK = 256 * 1024  # bytes


class Blob:
    """One content: its file (mode 0400, a number for a name), size and SHA-256, and who sent all of it, if one did."""

    __slots__ = ("__weakref__", "_hasher", "path", "sender", "sha256", "size")

    def __init__(self, path: Path, size: int, hasher: Any, when_gone: Callable[[], None]) -> None:
        self.path = path
        self.size = size
        self.sender: str | None = None
        self.sha256: bytes = hasher.digest()
        self._hasher = hasher
        weakref.finalize(self, when_gone)

    def extend_digest(self) -> Any:
        """Return a SHA-256 that has already taken this content."""
        return self._hasher.copy()

    def chunks(self) -> Iterator[bytes]:
        """Yield the content."""
        with self.path.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                yield chunk

    def copy_to(self, descriptor: int) -> None:
        """Write the content to an open file."""
        source = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            offset = 0
            while offset < self.size:
                offset += os.sendfile(descriptor, source, offset, self.size - offset)
        finally:
            os.close(source)

    def read(self) -> bytes:
        """Return the content."""
        return self.path.read_bytes()


class Full(OSError):
    """An owner's contents, or the tmpfs, would grow beyond what they may."""


class Draft:
    """A content that is being written; `seal` makes it a blob, anything else leaves nothing behind."""

    def __init__(self, path: Path, charge: Callable[[int], None]) -> None:
        self._path = path
        self._charge = charge
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        self._hasher = hashlib.sha256()
        self._size = 0

    def begin_with(self, base: Blob) -> None:
        """Begin with a content that is there already."""
        self._charge(base.size)
        self._size = base.size
        base.copy_to(self._descriptor)
        self._hasher = base.extend_digest()

    def write(self, chunk: bytes) -> None:
        """Add bytes; raise Full."""
        self._charge(len(chunk))
        self._size += len(chunk)
        view = memoryview(chunk)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self._hasher.update(chunk)

    def seal(self) -> Blob:
        """Return the finished content."""
        os.close(self._descriptor)
        return Blob(self._path, self._size, self._hasher, self._forget)

    def discard(self) -> None:
        """Remove what was written."""
        os.close(self._descriptor)
        self._forget()

    @property
    def _forget(self) -> Callable[[], None]:
        path, size, charge = self._path, self._size, self._charge

        def forget() -> None:
            with contextlib.suppress(OSError):
                path.unlink()
            charge(-size)

        return forget


class Blobs:
    """The directory of all contents, the runtime's alone; each owner may take `allowance` bytes of it."""

    def __init__(self, directory: Path, *, allowance: int) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        self._directory = directory
        self._allowance = allowance
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._used: Counter[str] = Counter()
        self._given_back: deque[tuple[str, int]] = deque()  # by finalisers, which may run at any moment: no lock there

    def write(self, content: Iterator[bytes], *, owner: str, base: Blob | None = None) -> Blob:
        """Store a stream of bytes, after those of `base`; whatever it raises, Full too, leaves nothing behind."""
        draft = Draft(self._directory / str(next(self._numbers)), partial(self._charge, owner))
        try:
            if base is not None:
                draft.begin_with(base)
            for chunk in content:
                draft.write(chunk)
        except BaseException:
            draft.discard()
            raise
        return draft.seal()

    def _charge(self, owner: str, size: int) -> None:
        if size <= 0:
            if size:  # an empty content gives nothing back, and would only make the list longer
                self._given_back.append((owner, size))
            return
        with self._lock:
            while self._given_back:
                debtor, negative = self._given_back.popleft()
                self._used[debtor] += negative
            if self._used[owner] + size > self._allowance:
                raise Full
            self._used[owner] += size
