# SPDX-License-Identifier: MIT
"""PROXY headers: any bytes give a source or MalformedProxyHeader, however they are cut into pieces."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host_shim.errors import MalformedProxyHeader
from host_shim.relay.limits import Source
from host_shim.relay.proxy_protocol import HEAD, MAX_REST, SIGNATURE, HeaderReader, is_balancer, write_header


def read(data: bytes, pieces: int = 1 << 20) -> tuple[Source | None, bytes]:
    """Return the source and what is left after the header."""
    reader = HeaderReader()
    at = 0
    while wanted := reader.wanted:
        piece = data[at : at + min(wanted, pieces)]
        assert piece, "the header is not whole"
        reader.feed(piece)
        at += len(piece)
    return reader.source(), data[at:]


def header(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE + bytes([0x20 | command, family]) + len(body).to_bytes(2, "big") + body


@given(st.ip_addresses(v=4), st.integers(0, 0xFFFF), st.binary(max_size=300), st.integers(1, 40))
def test_names_an_ipv4_client_whatever_follows(
    address: ipaddress.IPv4Address, port: int, more: bytes, pieces: int
) -> None:
    body = address.packed + bytes(4) + port.to_bytes(2, "big") + bytes(2) + more
    source, left = read(header(1, 0x11, body) + b"payload", pieces)
    assert source == Source.of_address(address, port)
    assert left == b"payload"


@given(st.ip_addresses(v=6), st.integers(0, 0xFFFF))
def test_names_an_ipv6_client(address: ipaddress.IPv6Address, port: int) -> None:
    source, _ = read(header(1, 0x21, address.packed + bytes(16) + port.to_bytes(2, "big") + bytes(2)))
    assert source == Source.of_address(address, port)


@given(st.binary(max_size=64), st.booleans())
def test_any_bytes_are_a_header_or_malformed(data: bytes, signed: bool) -> None:
    data = (SIGNATURE + data) if signed else data
    reader = HeaderReader()
    try:
        while (wanted := reader.wanted) and data:
            piece, data = data[:wanted], data[wanted:]
            reader.feed(piece)
        assert reader.wanted <= HEAD + MAX_REST
        if not reader.wanted:
            reader.source()
    except MalformedProxyHeader:
        pass


@pytest.mark.parametrize("family", [0x00, 0x12, 0x22, 0x32, 0xFF])
def test_what_is_no_stream_leaves_the_peer_as_it_is(family: int) -> None:
    assert read(header(1, family, bytes(216)))[0] is None
    assert read(header(0, 0x11, bytes(12)))[0] is None  # LOCAL
    assert read(header(1, 0x31, bytes(216)))[0] is None  # a path elsewhere


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",  # version 1
        SIGNATURE[:-1] + b"\r",
        SIGNATURE + b"\x11\x11\x00\x0c",
        SIGNATURE + b"\x22\x11\x00\x0c",
        SIGNATURE + b"\x21\x11" + (MAX_REST + 1).to_bytes(2, "big"),
        header(1, 0x11, bytes(11)),
        header(1, 0x21, bytes(35)),
        header(1, 0x31, bytes(215)),
    ],
)
def test_refuses_other_forms(data: bytes) -> None:
    with pytest.raises(MalformedProxyHeader):
        read(data)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("client", ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"])
def test_reads_what_it_writes(host: str, client: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as here:
        source = Source.of_address(ipaddress.ip_address(client), 1234)
        got, left = read(write_header(source, here))
        assert got == source
        assert left == b""


def test_a_source_off_the_network_is_introduced_as_unknown() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert read(write_header(Source("unix pid 1 uid 0", "uid 0"), left)) == (None, b"")


def test_only_named_networks_are_balancers() -> None:
    networks = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8::/32")]
    for text, expected in (("10.1.2.3", True), ("11.0.0.1", False), ("2001:db8::1", True), ("::1", False)):
        assert is_balancer(Source.of_address(ipaddress.ip_address(text), 1), networks) is expected
    assert is_balancer(Source("unix pid 1 uid 0", "uid 0"), networks)
