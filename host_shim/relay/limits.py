# SPDX-License-Identifier: MIT
"""How much the relay lets happen: at once, from one source, and for how long."""

from __future__ import annotations

import ipaddress
import resource
import socket
import struct
from dataclasses import dataclass
from typing import Any

MAX_CONNECTIONS = 1024
IDLE = 300.0  # seconds without a byte in either direction; a job is waited for in questions of 30 s
CONNECT = 5.0  # seconds until the isolate's side must take a connection
HEADER = 5.0  # seconds until a PROXY header must be there
DRAIN = 30.0  # seconds
SPARE = 64  # descriptors beside those of connections
EACH = 4  # descriptors of a connection: two sockets, and a pipe while its receiver is slow
IPV6_SITE = 64  # bits; who has one IPv6 address has 2**64 of them

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Limits:
    """Times are in seconds; 0 connections from one source is no limit."""

    connections: int = MAX_CONNECTIONS
    per_source: int = 0
    idle: float = IDLE
    connect: float = CONNECT
    header: float = HEADER
    drain: float = DRAIN

    def words(self) -> list[str]:
        """Return them as options of the relay's process."""
        return [
            "--max-connections", str(self.connections), "--max-per-source", str(self.per_source),
            "--idle", str(self.idle), "--connect-limit", str(self.connect), "--drain", str(self.drain),
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Source:
    """Who connects: as it is told, and as it is counted."""

    text: str
    key: str
    address: Address | None = None  # None for a Unix or a vsock socket
    port: int = 0

    @classmethod
    def of_address(cls, address: Address, port: int) -> Source:
        """Return a source on the network: IPv6 counts by /64, an IPv4 address mapped into IPv6 as IPv4."""
        if isinstance(address, ipaddress.IPv6Address):
            if address.ipv4_mapped is not None:
                return cls.of_address(address.ipv4_mapped, port)
            site = ipaddress.IPv6Network((int(address), IPV6_SITE), strict=False)
            return cls(f"[{address}]:{port}", str(site), address, port)
        return cls(f"{address}:{port}", str(address), address, port)


def source_of(client: socket.socket, peer: Any) -> Source:
    """Return who an accepted socket's peer is (`peer` as accept gave it); raise OSError if the client is gone."""
    if client.family in (socket.AF_INET, socket.AF_INET6):
        host = str(peer[0]).partition("%")[0]  # a link-local address carries its interface
        return Source.of_address(ipaddress.ip_address(host), peer[1])
    if client.family == socket.AF_UNIX:
        raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", raw)
        return Source(f"unix pid {pid} uid {uid}", f"uid {uid}")
    return Source(f"vsock {peer[0]}:{peer[1]}", f"cid {peer[0]}")


class Sources:
    """Counts the connections of each source."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._counts: dict[str, int] = {}

    def take(self, source: Source) -> bool:
        """Count one more; return False, and count none, if the source has as many as it may."""
        count = self._counts.get(source.key, 0)
        if self._most and count >= self._most:
            return False
        self._counts[source.key] = count + 1
        return True

    def give(self, source: Source) -> None:
        """Count one less."""
        count = self._counts[source.key] - 1
        if count:
            self._counts[source.key] = count
        else:
            del self._counts[source.key]


def fit_descriptors(connections: int) -> int:
    """Raise this process's limit on descriptors to what so many connections need; return how many it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections * EACH + SPARE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return connections
    return min(connections, max(1, (soft - SPARE) // EACH))
