# SPDX-License-Identifier: MIT
"""PROXY protocol, version 2: who the client of a load balancer is (haproxy's proxy-protocol.txt, 2.2).

16 bytes: signature, version and command, family and protocol, length; then so many bytes: addresses, then TLVs, which
are passed over. Believed only from the networks that the operator names.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Sequence

from ..errors import MalformedProxyHeader
from .limits import Network, Source

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
HEAD = len(SIGNATURE) + 4
MAX_REST = 4096  # bytes; addresses take 216 at most, what load balancers add some hundred
VERSION = 2
LOCAL, PROXY = 0, 1  # commands: the balancer's own connection (a health check); a client's
UNSPEC, TCP4, TCP6, UNIX_STREAM = 0x00, 0x11, 0x21, 0x31
ADDRESSES = {TCP4: struct.Struct("!4s4sHH"), TCP6: struct.Struct("!16s16sHH"), UNIX_STREAM: struct.Struct("108s108s")}


class HeaderReader:
    """Takes a header as it arrives, and not a byte of what follows it."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._rest = bytearray()
        self._length = 0

    @property
    def wanted(self) -> int:
        """How many bytes to read next; 0 when the header is whole."""
        if len(self._head) < HEAD:
            return HEAD - len(self._head)
        return self._length - len(self._rest)

    def feed(self, data: bytes) -> None:
        """Take at most `wanted` bytes; raise MalformedProxyHeader as soon as they cannot be a header."""
        if len(self._head) == HEAD:
            self._rest += data
            return
        self._head += data
        signature = bytes(self._head[: len(SIGNATURE)])
        if not SIGNATURE.startswith(signature):
            raise MalformedProxyHeader("no PROXY protocol header", expected=SIGNATURE, actual=signature)
        if len(self._head) == HEAD:
            self._length = int.from_bytes(self._head[14:], "big")
            if self._head[12] >> 4 != VERSION or self._head[12] & 0xF > PROXY:
                raise MalformedProxyHeader(
                    "version and command of a PROXY header", expected="20 or 21", actual=bytes(self._head[12:13])
                )
            if self._length > MAX_REST:
                raise MalformedProxyHeader(
                    "length of a PROXY header", expected=f"at most {MAX_REST} bytes", actual=self._length
                )

    def source(self) -> Source | None:
        """Return the client that a whole header names; None where it names none, and the peer itself is meant."""
        if self._head[12] & 0xF == LOCAL:
            return None
        family = self._head[13]
        form = ADDRESSES.get(family)
        if form is None:  # unspecified, or a protocol that is no stream: the receiver uses the real addresses
            return None
        if self._length < form.size:
            raise MalformedProxyHeader(
                "addresses of a PROXY header", expected=f"{form.size} bytes", actual=f"{self._length} bytes"
            )
        fields = form.unpack_from(self._rest)
        if family == UNIX_STREAM:
            return None  # a path of another machine's says nothing here
        return Source.of_address(ipaddress.ip_address(fields[0]), fields[2])


def write_header(source: Source, client: socket.socket) -> bytes:
    """Return the header that tells a server of a client; the destination is what its connection came in at."""
    if source.address is None or client.family not in (socket.AF_INET, socket.AF_INET6):
        return SIGNATURE + struct.pack("!BBH", VERSION << 4 | PROXY, UNSPEC, 0)
    destination = client.getsockname()
    here = ipaddress.ip_address(str(destination[0]).partition("%")[0])
    mapped = here.ipv4_mapped if isinstance(here, ipaddress.IPv6Address) else None
    here = mapped or here
    family = TCP4 if source.address.version == here.version == 4 else TCP6
    pair = (source.address, here) if family == TCP4 else (_as_ipv6(source.address), _as_ipv6(here))
    body = ADDRESSES[family].pack(pair[0].packed, pair[1].packed, source.port, destination[1])
    return SIGNATURE + struct.pack("!BBH", VERSION << 4 | PROXY, family, len(body)) + body


def _as_ipv6(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv6Address:
    if isinstance(address, ipaddress.IPv6Address):
        return address
    return ipaddress.IPv6Address((0xFFFF << 32) | int(address))


def is_balancer(source: Source, networks: Sequence[Network]) -> bool:
    """Return whether a peer is one that may speak for others; a Unix socket's peers were let in by its file's mode."""
    return source.address is None or any(source.address in network for network in networks)
