# SPDX-License-Identifier: MIT
"""Immutable contents in a private directory on a tmpfs: a blob's file goes when the last reference to it does."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CHUNK = 256 * 1024  # bytes


class Blob:
    """One content: its file (mode 0400, a number for a name), size and SHA-256. Compared by content."""

    __slots__ = ("__weakref__", "_hasher", "path", "sha256", "size")

    def __init__(self, path: Path, size: int, hasher: Any) -> None:
        self.path = path
        self.size = size
        self.sha256: bytes = hasher.digest()
        self._hasher = hasher
        weakref.finalize(self, _remove, path)

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


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


class Draft:
    """A content that is being written; `seal` makes it a blob, anything else leaves nothing behind."""

    def __init__(self, path: Path, base: Blob | None) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        self._hasher = hashlib.sha256()
        self.size = 0
        if base is not None:
            try:
                base.copy_to(self._descriptor)
            except OSError:
                self.discard()
                raise
            self._hasher = base.extend_digest()
            self.size = base.size

    def write(self, chunk: bytes) -> None:
        """Add bytes; raise OSError where the tmpfs is full."""
        view = memoryview(chunk)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self._hasher.update(chunk)
        self.size += len(chunk)

    def seal(self) -> Blob:
        """Return the finished content."""
        os.close(self._descriptor)
        return Blob(self._path, self.size, self._hasher)

    def discard(self) -> None:
        """Remove what was written."""
        os.close(self._descriptor)
        _remove(self._path)


class Blobs:
    """The directory of all contents, the runtime's alone."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        self._directory = directory
        self._numbers = itertools.count(1)

    def write(self, content: Callable[[], Iterator[bytes]] | Iterator[bytes], *, base: Blob | None = None) -> Blob:
        """Store a stream of bytes, after those of `base`; whatever it raises leaves nothing behind."""
        draft = Draft(self._directory / str(next(self._numbers)), base)
        try:
            for chunk in content() if callable(content) else content:
                draft.write(chunk)
        except BaseException:
            draft.discard()
            raise
        return draft.seal()
