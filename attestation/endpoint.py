# SPDX-License-Identifier: MIT
"""Where an isolate is reached: `HOST:PORT`, `[IPv6]:PORT` or `unix:PATH`. The address is believed in nothing."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from .errors import EnvironmentLacks, Unreachable, UsageError

_HINT = "is the isolate running? veracruz enclave list"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address to connect to; `port` is None for a Unix socket."""

    host: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Parse an address as it is given on a command line; raise UsageError."""
        if text.startswith("unix:"):
            if len(text) == len("unix:"):
                raise _malformed(text)
            return cls(text.removeprefix("unix:"), None)
        host, separator, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise _malformed(text)
        if not (host and separator and port.isascii() and port.isdigit() and 0 < int(port[:6]) < 1 << 16):
            raise _malformed(text)
        return cls(host, int(port))

    def __str__(self) -> str:
        if self.port is None:
            return f"unix:{self.host}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def dial(self, *, timeout: float) -> socket.socket:
        """Open a connection; raise Unreachable."""
        try:
            if self.port is not None:
                return _dial_tcp(self.host, self.port, timeout=timeout)
            return _dial_unix(self.host, timeout=timeout)
        except (OSError, UnicodeError) as error:  # a host name that IDNA cannot encode is a UnicodeError
            reason = getattr(error, "strerror", None) or error
            raise Unreachable(f"no connection to {self}", actual=reason, hint=_HINT) from error


def _dial_tcp(host: str, port: int, *, timeout: float) -> socket.socket:
    sock = socket.create_connection((host, port), timeout=timeout)
    # A request follows the handshake's last flight at once: Nagle would hold it for the other side's delayed ACK.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _dial_unix(path: str, *, timeout: float) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise EnvironmentLacks("this system has no Unix sockets", hint="give --isolate HOST:PORT")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def _malformed(text: str) -> UsageError:
    return UsageError("no address of an isolate", expected="HOST:PORT or unix:PATH", actual=text)
