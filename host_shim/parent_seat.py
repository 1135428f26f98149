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

BACKLOG = 16
VMADDR_CID_ANY = 0xFFFFFFFF

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Seat(Protocol):
    """One isolate's parent."""

    @property
    def shared(self) -> bool:
        """Whether all isolates of this host want the same ports."""

    async def listen(self, port: int, serve: Serve) -> asyncio.Server:
        """Listen on one of the parent's ports for this isolate alone; raise CannotListen."""

    def clear(self, port: int) -> None:
        """Remove what listening left."""


class UnixSeat:
    """Unix sockets; who may connect is who may enter their directory."""

    shared = False

    def __init__(self, base: str | Path) -> None:
        self._base = str(base)

    async def listen(self, port: int, serve: Serve) -> asyncio.Server:
        """Listen on BASE_PORT."""
        return await asyncio.start_unix_server(serve, path=f"{self._base}_{port}", backlog=BACKLOG)

    def clear(self, port: int) -> None:
        """Remove the socket."""
        Path(f"{self._base}_{port}").unlink(missing_ok=True)


class VsockSeat:
    """The kernel's vsock, shared by all enclaves of a host: another's connection is dropped unread."""

    shared = True

    def __init__(self, cid: int) -> None:
        self._cid = cid

    async def listen(self, port: int, serve: Serve) -> asyncio.Server:
        """Listen on the port for connections from this CID."""

        async def from_ours(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = writer.get_extra_info("peername")
            if peer is None or peer[0] != self._cid:
                writer.close()
                return
            await serve(reader, writer)

        return await asyncio.start_server(from_ours, sock=_open_vsock(port), backlog=BACKLOG)

    def clear(self, port: int) -> None:
        """Leave nothing to do: the port goes with its socket."""


def _open_vsock(port: int) -> socket.socket:
    family = getattr(socket, "AF_VSOCK", None)
    if family is None:
        raise CannotListen(f"cannot listen on vsock port {port}: this system has no vsock")
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.bind((VMADDR_CID_ANY, port))
        except OSError:
            sock.close()
            raise
    except OSError as error:
        hint = {
            errno.EADDRINUSE: "another enclave starts just now, or a service of this host has the port: try again",
            errno.EAFNOSUPPORT: "sudo modprobe vsock",
        }.get(error.errno or 0)
        raise CannotListen(f"cannot listen on vsock port {port}: {error.strerror}", hint=hint) from error
    return sock
