# SPDX-License-Identifier: MIT
"""What systemd gives a service: sockets that it has bound already (sd_listen_fds(3)), and an ear (sd_notify(3))."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping

from .errors import BadActivation

FIRST = 3  # SD_LISTEN_FDS_START
MOST = 64  # sockets
FAMILIES = tuple(
    getattr(socket, name) for name in ("AF_INET", "AF_INET6", "AF_UNIX", "AF_VSOCK") if hasattr(socket, name)
)
VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def take_sockets(environ: MutableMapping[str, str], name: str | None = None) -> list[socket.socket]:
    """Return the listening sockets that were handed over, those of one FileDescriptorName if `name` is given.

    Each is checked to be a listening stream socket. The variables are removed: no child takes them for its own.
    Raise BadActivation.
    """
    pid, count, names = (environ.pop(variable, "") for variable in VARIABLES)
    if not pid or not count:
        raise BadActivation(
            "no socket was handed over", expected="LISTEN_PID and LISTEN_FDS in the environment",
            hint="start it by its .socket unit, or try: systemd-socket-activate -l 127.0.0.1:5000 veracruz relay ...",
        )  # fmt: skip
    if pid != str(os.getpid()):
        raise BadActivation("the sockets are for another process", expected=f"LISTEN_PID={os.getpid()}", actual=pid)
    if not (count.isascii() and count.isdecimal() and len(count) <= 3 and 0 < int(count) <= MOST):
        raise BadActivation("LISTEN_FDS", expected=f"1 to {MOST}", actual=count)
    told = names.split(":") if names else ["unknown"] * int(count)  # sd_listen_fds_with_names(3)
    if len(told) != int(count):
        raise BadActivation("LISTEN_FDNAMES", expected=f"{count} names", actual=names)
    descriptors = range(FIRST, FIRST + int(count))
    chosen = [number for number, its in zip(descriptors, told, strict=True) if name in (None, its)]
    if not chosen:
        raise BadActivation("no socket of that name was handed over", expected=name, actual=names)
    return [_checked(number) for number in chosen]


def _checked(descriptor: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise BadActivation(f"descriptor {descriptor}", expected="a socket", actual=error.strerror) from error
    kind = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
    listens = kind == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if sock.family not in FAMILIES or not listens:
        sock.detach()  # not ours to close
        raise BadActivation(
            f"descriptor {descriptor}", expected="a stream socket that listens (ListenStream=, Accept=no)",
            actual=f"family {int(sock.family)}, type {kind}, listening: {bool(listens)}",
        )  # fmt: skip
    sock.set_inheritable(False)
    sock.setblocking(False)
    return sock


def notify(environ: MutableMapping[str, str], *states: str) -> None:
    """Tell the service manager, if there is one that listens: "READY=1", "STOPPING=1", "STATUS=..."."""
    place = environ.get("NOTIFY_SOCKET", "")
    if not place.startswith(("/", "@")):
        return
    address = "\0" + place[1:] if place.startswith("@") else place
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto("\n".join(states).encode(), address)
