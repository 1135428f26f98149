# SPDX-License-Identifier: MIT
"""The endpoint that participants reach: parsed without asking any name service, bound before anything boots."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from .errors import CannotListen, MalformedEndpoint
from .state import MAX_SOCKET_PATH

BACKLOG = 512  # connections; they wait there until the isolate serves
FORM = "ADDRESS:PORT, [IPV6]:PORT, unix:PATH or vsock:CID:PORT"
ANY_CID = 0xFFFFFFFF  # VMADDR_CID_ANY
ANY_PORT = 0xFFFFFFFF  # VMADDR_PORT_ANY


@dataclass(frozen=True, slots=True)
class TcpEndpoint:
    """An address of this machine and a port; port 0 takes a free one."""

    host: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if self.host.version == 6 else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixEndpoint:
    """The absolute path of a Unix socket."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class VsockEndpoint:
    """A context and a port (32 bits each); no context means whichever this machine has."""

    cid: int | None
    port: int

    def __str__(self) -> str:
        return f"vsock:{'any' if self.cid is None else self.cid}:{self.port}"


Endpoint = TcpEndpoint | UnixEndpoint | VsockEndpoint


def parse_endpoint(text: str) -> Endpoint:
    """Parse what `--listen` was given, perhaps with tcp: before an address; raise MalformedEndpoint."""
    if text.startswith("unix:"):
        path = Path(text.removeprefix("unix:")).absolute()
        if text == "unix:" or len(os.fsencode(path)) > MAX_SOCKET_PATH:
            raise MalformedEndpoint(
                "the socket's path is empty or too long", expected=f"1 to {MAX_SOCKET_PATH} bytes", actual=path
            )
        return UnixEndpoint(path)
    if text.startswith("vsock:"):
        return _parse_vsock(text)
    host, port = split_host(text)
    if port is None:
        raise MalformedEndpoint("no endpoint", expected=FORM, actual=text)
    literal = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if literal == "localhost":
        literal = "127.0.0.1"
    try:
        address = ipaddress.ip_address(literal)
    except ValueError as error:
        raise MalformedEndpoint(
            "the host is no address",
            expected=FORM,
            actual=text,
            hint="127.0.0.1 for this machine alone, 0.0.0.0 for all networks",
        ) from error
    if (address.version == 6) != host.startswith("["):
        raise MalformedEndpoint("an IPv6 address stands in brackets, others do not", expected=FORM, actual=text)
    return TcpEndpoint(address, port)


def split_host(text: str) -> tuple[str, int | None]:
    """Return what stands before the last colon, without a leading tcp:, and the port; None for no port."""
    host, separator, port = text.removeprefix("tcp:").rpartition(":")
    if not separator or not _is_number(port, 0xFFFF):
        return text, None
    return host, int(port)


def _parse_vsock(text: str) -> VsockEndpoint:
    cid, separator, port = text.removeprefix("vsock:").partition(":")
    if not separator or not _is_number(port, 0xFFFFFFFE) or not (cid == "any" or _is_number(cid, ANY_CID)):
        raise MalformedEndpoint("no vsock endpoint", expected="vsock:CID:PORT or vsock:any:PORT", actual=text)
    return VsockEndpoint(None if cid == "any" or int(cid) == ANY_CID else int(cid), int(port))


def _is_number(text: str, most: int) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= len(str(most)) and int(text) <= most


class Listener:
    """A listening socket and the endpoint that it really has; close() also removes a Unix socket's file."""

    def __init__(self, wanted: Endpoint) -> None:
        self._closed = False  # the socket may be closed by who accepts from it
        match wanted:
            case TcpEndpoint(host, _):
                family = socket.AF_INET6 if host.version == 6 else socket.AF_INET
            case UnixEndpoint(path):
                family = socket.AF_UNIX
                _remove_stale(path)
            case VsockEndpoint():
                if not hasattr(socket, "AF_VSOCK"):
                    raise CannotListen(f"cannot listen on {wanted}: this system has no vsock")
                family = socket.AF_VSOCK
        try:
            self._sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            raise CannotListen(
                f"cannot listen on {wanted}: {error.strerror}", hint=_hint(error.errno, wanted)
            ) from error
        try:
            self.endpoint = self._bind(wanted)
        except OSError as error:
            self._sock.close()
            raise CannotListen(
                f"cannot listen on {wanted}: {error.strerror}", hint=_hint(error.errno, wanted)
            ) from error

    def _bind(self, wanted: Endpoint) -> Endpoint:
        match wanted:
            case TcpEndpoint(host, port):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self._sock.bind((str(host), port))
                self._sock.listen(BACKLOG)  # at once: bind alone does not keep others off the port
                return TcpEndpoint(host, self._sock.getsockname()[1])
            case UnixEndpoint(path):
                self._sock.bind(str(path))
                self._sock.listen(BACKLOG)
                return wanted
            case VsockEndpoint(cid, port):
                self._sock.bind((ANY_CID if cid is None else cid, port or ANY_PORT))
                self._sock.listen(BACKLOG)
                return VsockEndpoint(cid, self._sock.getsockname()[1])

    @property
    def sock(self) -> socket.socket:
        """The socket itself."""
        return self._sock

    def fileno(self) -> int:
        """Return the descriptor to accept from."""
        return self._sock.fileno()

    def close(self) -> None:
        """Let go of the address."""
        if self._closed:
            return
        self._closed = True
        self._sock.close()
        if isinstance(self.endpoint, UnixEndpoint):
            with contextlib.suppress(OSError):
                self.endpoint.path.unlink()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _hint(number: int | None, wanted: Endpoint) -> str | None:
    if isinstance(wanted, UnixEndpoint):
        return {
            errno.EADDRINUSE: f"somebody listens there, or it is no socket of ours: ls -l {wanted.path}",
            errno.ENOENT: f"mkdir -p {wanted.path.parent}",
            errno.EACCES: f"this user may not write in {wanted.path.parent}; choose another path with --listen",
        }.get(number or 0)
    match number:
        case errno.EADDRINUSE:
            return "choose another with --listen (port 0 takes a free one), or see: veracruz enclave list"
        case errno.EACCES:
            return "ports below 1024 are root's; choose another with --listen"
        case errno.EADDRNOTAVAIL:
            return "this machine has no such address; 127.0.0.1 reaches itself; 0.0.0.0 and vsock:any are all it has"
        case errno.EAFNOSUPPORT:
            return "the kernel has no such sockets here; for vsock: modprobe vhost_vsock on a host, vsock in a guest"
    return None


def _remove_stale(path: Path) -> None:
    """Remove a socket on which nobody listens any more; leave everything else."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
        try:
            probe.settimeout(1.0)
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
