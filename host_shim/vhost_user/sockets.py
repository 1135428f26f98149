# SPDX-License-Identifier: MIT
"""Unix sockets as files: mode 0600, in a directory that is the caller's own, stale ones replaced, removed at exit."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from .errors import SocketInUse, UnsafeDirectory

MAX_PATH = 107  # bytes of sun_path without its NUL (unix(7))
BACKLOG = 1024  # connections that wait for `accept`; the kernel cuts it to net.core.somaxconn


def check_path(path: Path, *, spare: int = 0) -> None:
    """Raise unless a socket can be made at `path` (and `spare` bytes beyond), and nobody else could replace it."""
    length = len(os.fsencode(path)) + spare
    if length > MAX_PATH:
        raise UnsafeDirectory("the path of a Unix socket is too long", expected=f"<= {MAX_PATH} bytes", actual=length)
    directory = path.parent
    try:
        status = directory.stat()
    except OSError as error:
        raise UnsafeDirectory(
            f"the directory of the sockets cannot be used: {error.strerror}", actual=directory
        ) from error
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UnsafeDirectory(
            "the directory of the sockets is not the caller's own",
            expected="owned by the caller, writable by nobody else",
            actual=f"{directory}: owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}",
            hint=f"chmod go-w {directory}, or use another directory",
        )


class Listener:
    """A listening socket and its file."""

    def __init__(self, path: Path) -> None:
        """Raises SocketInUse where somebody listens already, or something that is no socket is in the way."""
        check_path(path)
        _remove_stale(path)
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        before = os.umask(0o177)  # the file is never open to others, not for a moment
        try:
            self.socket.bind(str(path))
        finally:
            os.umask(before)
        self.socket.listen(BACKLOG)
        self._file = _identity(path)

    def accept(self) -> socket.socket | None:
        """Return the next connection, or None if there is none now; raises OSError where descriptors run out."""
        try:
            connection, _ = self.socket.accept()
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return None
        connection.setblocking(False)
        return connection

    def close(self) -> None:
        """Stop listening and remove the file, if it is still ours."""
        self.socket.close()
        if _identity(self.path) == self._file:
            self.path.unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SocketInUse("something that is no socket is in the way", actual=path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass  # alive, with a full backlog
    raise SocketInUse("another process listens on the socket", actual=path, hint="stop it, or choose another path")
