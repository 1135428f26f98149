# SPDX-License-Identifier: MIT
"""What `--to` names: an address, or a name that is asked for once, before the first client comes."""

from __future__ import annotations

import socket

from ..errors import MalformedEndpoint, NoSuchHost
from ..listen import TcpEndpoint, UnixEndpoint, VsockEndpoint, parse_endpoint, split_host
from .dial import Target


def find_target(text: str) -> tuple[Target, str | None]:
    """Parse what `--to` was given; return the target, and what a name resolved to if it held one.

    A name is asked for once, now, by the system's own resolver; the first address is used until the relay ends.
    Raise MalformedEndpoint or NoSuchHost.
    """
    try:
        endpoint = parse_endpoint(text)
    except MalformedEndpoint:
        host, port = split_host(text)
        if port is None or not host or host.startswith("["):
            raise
        return _resolve(host, port)
    match endpoint:
        case TcpEndpoint(address, port):
            _demand_port(text, port)
            family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
            return Target(family, (str(address), port), str(endpoint)), None
        case VsockEndpoint(cid, port):
            if cid is None:
                raise MalformedEndpoint("a target needs a CID", expected="vsock:CID:PORT", actual=text)
            _demand_port(text, port)
            return Target(socket.AF_VSOCK, (cid, port), str(endpoint)), None
        case UnixEndpoint(path):
            return Target.unix(path), None


def _demand_port(text: str, port: int) -> None:
    if not port:
        raise MalformedEndpoint("a target needs a port", expected="a port above 0", actual=text)


def _resolve(host: str, port: int) -> tuple[Target, str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise NoSuchHost(
            "the target's name does not resolve", actual=f"{host}: {getattr(error, 'strerror', None) or error}",
            hint="give an address: tcp:ADDRESS:PORT",
        ) from error  # fmt: skip
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    family, _, _, _, address = found[0]
    others = f" (not used: {', '.join(addresses[1:])})" if addresses[1:] else ""
    shown = f"[{addresses[0]}]:{port}" if family == socket.AF_INET6 else f"{addresses[0]}:{port}"
    return Target(family, address[:2], shown), f"{host} is {addresses[0]}{others}; it is not asked for again"
