# SPDX-License-Identifier: MIT
"""How the isolate reaches its host: AF_VSOCK in an image, Unix sockets `BASE_PORT` in a `process` isolate."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .wire import PARENT_CIDS

DIAL_TIMEOUT = 10.0  # seconds; a closed port resets in milliseconds
BACKLOG = 64  # connections


class Transport(Protocol):
    """Two functions on port numbers: all that the runtime knows of its host."""

    def dial(self, port: int) -> socket.socket:
        """Return a connected stream to the host's port; raise OSError."""

    def listen(self, port: int) -> socket.socket:
        """Return a listening stream socket."""


@dataclass(slots=True)
class Vsock:
    """A guest's side of virtio-vsock; the parent is CID 3 (Nitro) or 2, and stays the one that answered first."""

    parent: int | None = None

    def dial(self, port: int) -> socket.socket:
        """Connect to the parent's port."""
        cids = PARENT_CIDS if self.parent is None else (self.parent,)
        failure: OSError | None = None
        for cid in cids:
            sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
            try:
                sock.settimeout(DIAL_TIMEOUT)
                sock.connect((cid, port))
                sock.settimeout(None)
            except OSError as error:
                sock.close()
                failure = error
                continue
            self.parent = cid
            return sock
        raise failure or OSError("no parent")

    def listen(self, port: int) -> socket.socket:
        """Listen on the guest's own port."""
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        sock.bind((socket.VMADDR_CID_ANY, port))
        sock.listen(BACKLOG)
        return sock


@dataclass(frozen=True, slots=True)
class UnixSockets:
    """The same ports as Unix sockets on the host's own file system, for a `process` isolate."""

    base: str

    def _path(self, port: int) -> str:
        return f"{self.base}_{port}"

    def dial(self, port: int) -> socket.socket:
        """Connect to the supervisor's socket."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(DIAL_TIMEOUT)
            sock.connect(self._path(port))
            sock.settimeout(None)
        except OSError:
            sock.close()
            raise
        return sock

    def listen(self, port: int) -> socket.socket:
        """Listen on a socket of mode 0600; one left by a dead isolate is replaced."""
        path = Path(self._path(port))
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(str(path))
        path.chmod(0o600)
        sock.listen(BACKLOG)
        return sock
