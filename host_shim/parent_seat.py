# SPDX-License-Identifier: MIT
"""Where the host sits as the isolate's parent: Unix sockets BASE_PORT beside our own backend, or the kernel's vsock."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from .errors import CannotListen

BACKLOG = 64
VMADDR_CID_ANY = 0xFFFFFFFF

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Seat(Protocol):
    """One isolate's parent."""

    @property
    def shared(self) -> bool:
        """Whether all isolates of this host want the same ports."""

    @property
    def peer(self) -> int | None:
        """The CID whose connections alone are served; None where nobody else can connect."""

    def open(self, port: int) -> socket.socket:
        """Return a socket that listens on one of the parent's ports; raise CannotListen."""

    def clear(self, port: int) -> None:
        """Remove what listening left."""


class UnixSeat:
    """Unix sockets BASE_PORT; who may connect is who may enter their directory."""

    shared = False
    peer = None

    def __init__(self, base: str | Path) -> None:
        self._base = str(base)

    def open(self, port: int) -> socket.socket:
        """Listen on BASE_PORT."""
        path = f"{self._base}_{port}"
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.clear(port)  # of a process of ours that was killed; the directory is ours alone
            sock.bind(path)
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            raise CannotListen(f"cannot listen on {path}: {error.strerror or error}") from error
        return sock

    def clear(self, port: int) -> None:
        """Remove the socket."""
        Path(f"{self._base}_{port}").unlink(missing_ok=True)


class VsockSeat:
    """The kernel's vsock, shared by all enclaves of a host: another's connection is dropped unread."""

    shared = True

    def __init__(self, cid: int) -> None:
        self.peer: int | None = cid

    def open(self, port: int) -> socket.socket:
        """Listen on the port, for whoever connects: `serve_at` asks who that is."""
        family = getattr(socket, "AF_VSOCK", None)
        if family is None:
            raise CannotListen(f"cannot listen on vsock port {port}: this system has no vsock")
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.bind((VMADDR_CID_ANY, port))
                sock.listen(BACKLOG)
            except OSError:
                sock.close()
                raise
        except OSError as error:
            hint = {
                errno.EADDRINUSE: "another enclave starts just now or holds the port, or a service of this host does",
                errno.EAFNOSUPPORT: "sudo modprobe vsock",
            }.get(error.errno or 0)
            raise CannotListen(f"cannot listen on vsock port {port}: {error.strerror}", hint=hint) from error
        return sock

    def clear(self, port: int) -> None:
        """Leave nothing to do: the port goes with its socket."""


async def serve_at(listener: socket.socket, peer: int | None, serve: Serve) -> asyncio.Server:
    """Serve a seat's socket, for its peer alone."""

    async def from_peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if peer is not None:
            name = writer.get_extra_info("peername")  # of vsock: the CID, the port
            if not name or name[0] != peer:
                writer.close()
                return
        await serve(reader, writer)

    # start_server listens anew, with a backlog of its own.
    return await asyncio.start_server(from_peer, sock=listener, backlog=BACKLOG)
