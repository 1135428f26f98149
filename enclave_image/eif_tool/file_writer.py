# SPDX-License-Identifier: MIT
"""Write untrusted files below one new directory, step by step, by descriptors that follow no link."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .cpio_reader import Entry
from .ramdisk_files import Index

MAX_DEPTH = 64  # directories in one another
_COLLISIONS = (
    errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL,
    errno.EILSEQ, errno.EPERM, errno.EMLINK,
)  # fmt: skip
_REFUSED_PARTS = ("", ".", "..")


@dataclass(frozen=True, slots=True)
class Extracted:
    """What was written: files by their path below the directory, with their size; and what was not, with the reason."""

    files: dict[str, int]
    left_out: dict[str, str]


def escape_path(path: str) -> str:
    """Return a path safe for a terminal, whole."""
    return path.encode("unicode_escape", "surrogatepass").decode("ascii") or "/"


_FLAGS = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_CREAT
_Link = tuple[int, int, int, int]


class Writer:
    """Writes the files of one ramdisk below the directory `root`; `held`, another, is for its own use and stays empty.

    A file of several names is one file here too: copies could be many times the image.
    """

    def __init__(self, root: int, held: int, *, name: str, index: Index, result: Extracted) -> None:
        self._root = root
        self._held = held
        self._name = name
        self._index = index
        self._result = result
        self._links: dict[str, _Link] = {}  # path -> the file that it is one name of, by its last entry
        self._holds: dict[_Link, str] = {}  # that file -> its name in `held`

    def _refuse(self, path: str, why: str) -> None:
        self._result.left_out[f"{self._name}/{escape_path(path)}"] = why

    def _open_folder(self, steps: list[str]) -> int:
        """Return a descriptor of a directory, made if it is not there; raise OSError."""
        descriptor = os.dup(self._root)
        try:
            for step in steps:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(step, 0o755, dir_fd=descriptor)
                below = os.open(step, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def _place(self, path: str, put: Callable[[int, str], None]) -> None:
        """Let `put` make the last step of a path in its directory, where nothing is any more; or say why it cannot."""
        steps = path.split("/")
        if any(step in _REFUSED_PARTS or "\0" in step for step in steps) or len(steps) > MAX_DEPTH:
            self._refuse(path, "a path that leads out, or too deep")
            return
        try:
            folder = self._open_folder(steps[:-1])
            try:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(steps[-1], dir_fd=folder)
                put(folder, steps[-1])
            finally:
                os.close(folder)
        except OSError as error:
            if error.errno not in _COLLISIONS:
                raise
            self._refuse(path, f"another entry, or this system, is in its way: {error.strerror}")
        else:
            self._result.files[f"{self._name}/{escape_path(path)}"] = self._index[path].size

    def add_folder(self, path: str) -> None:
        """Make a directory."""
        if path and not any(step in _REFUSED_PARTS for step in path.split("/")) and path.count("/") < MAX_DEPTH:
            with contextlib.suppress(OSError):  # what goes below it will say so
                os.close(self._open_folder(path.split("/")))

    def add_file(self, entry: Entry, data: Iterator[bytes]) -> None:
        """Write a file; the last entry of a path counts, as for the kernel."""
        self._links.pop(entry.path, None)
        if entry.link is not None:
            self._links[entry.path] = entry.link
            held = self._holds.setdefault(entry.link, str(len(self._holds)))
            flags = _FLAGS | (os.O_TRUNC if entry.size else 0)
            _fill(os.open(held, flags, _mode(entry), dir_fd=self._held), data)
        elif self._index[entry.path].is_file:
            flags = _FLAGS | os.O_EXCL

            def fill(folder: int, name: str) -> None:
                _fill(os.open(name, flags, _mode(entry), dir_fd=folder), data)

            self._place(entry.path, fill)

    def finish(self) -> None:
        """Put the files of several names in their places."""
        for path, link in self._links.items():
            if self._index[path].is_file:
                self._place(path, functools.partial(self._link, self._holds[link]))
        for held in self._holds.values():
            os.unlink(held, dir_fd=self._held)

    def _link(self, held: str, folder: int, name: str) -> None:
        os.link(held, name, src_dir_fd=self._held, dst_dir_fd=folder, follow_symlinks=False)


def _mode(entry: Entry) -> int:
    return 0o755 if entry.mode & 0o111 else 0o644


def _fill(descriptor: int, data: Iterator[bytes]) -> None:
    with os.fdopen(descriptor, "wb") as file:
        for piece in data:
            file.write(piece)
