# SPDX-License-Identifier: MIT
"""The host's place on the wire: a relay that records every byte both ways, switches servers, and spoils chosen records.

It works on TLS records (RFC 8446 5.1), so that a fault is at the same place in every run and no peer waits for bytes
that a spoilt length field promised.
"""

from __future__ import annotations

import contextlib
import enum
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from attestation.endpoint import Endpoint

PATIENCE = 20.0  # seconds
HEADER = 5  # bytes: type, legacy version, length
CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION_DATA = 20, 21, 22, 23
EMPTY_RECORD = bytes([APPLICATION_DATA, 3, 3, 0, 17]) + bytes(17)  # what nobody who lacks the keys can seal


@dataclass(frozen=True)
class Record:
    """One TLS record."""

    kind: int
    body: bytes


class Way(enum.Enum):
    """A direction on the wire."""

    TO_SERVER = "to the server"
    TO_CLIENT = "to the client"


class Deed(enum.Enum):
    """What the host does to one record."""

    FLIP = "flip"  # one bit in the middle of it
    CUT = "cut"  # end both connections before it
    HALVE = "halve"  # pass its first half, then cut
    INJECT = "inject"  # put one of the host's own before it
    REPEAT = "repeat"  # send it twice
    DROP = "drop"  # leave it out
    RESET = "reset"  # as CUT, but the client's TCP connection is reset


@dataclass(frozen=True)
class Fault:
    """One deed to one record of one connection, all counted from 0."""

    deed: Deed
    way: Way
    record: int
    connection: int = 0


@dataclass
class Tape:
    """One connection, as the host saw it before it touched anything."""

    to_server: bytearray = field(default_factory=bytearray)
    to_client: bytearray = field(default_factory=bytearray)

    def records(self, way: Way) -> list[Record]:
        """Return the records of one direction; bytes that are no whole record are one of kind 0."""
        records, rest = split(bytes(self.to_server if way is Way.TO_SERVER else self.to_client))
        return records + ([Record(0, rest)] if rest else [])

    @property
    def hello(self) -> bytes:
        """The ClientHello."""
        first = self.records(Way.TO_SERVER)[0]
        assert first.kind == HANDSHAKE
        return first.body

    @property
    def after_hello(self) -> list[Record]:
        """What the client sent after its ClientHello."""
        return self.records(Way.TO_SERVER)[1:]

    @property
    def both(self) -> bytes:
        """Everything, for a search."""
        return bytes(self.to_server) + b"\0" + bytes(self.to_client)


def split(data: bytes) -> tuple[list[Record], bytes]:
    """Split a stream into whole records and the rest."""
    records = []
    while len(data) >= HEADER and len(data) >= (end := HEADER + int.from_bytes(data[3:HEADER], "big")):
        records.append(Record(data[0], data[HEADER:end]))
        data = data[end:]
    return records, data


def hello_extensions(hello: bytes) -> dict[int, bytes]:
    """Return the extensions of a ClientHello (RFC 8446 4.1.2)."""
    place = 4 + 2 + 32  # handshake header, legacy version, random
    place += 1 + hello[place]  # legacy session id
    place += 2 + int.from_bytes(hello[place : place + 2], "big")  # cipher suites
    place += 1 + hello[place]  # compression methods
    extensions = {}
    rest = hello[place + 2 :]
    while rest:
        kind, size = struct.unpack(">HH", rest[:4])
        extensions[kind] = rest[4 : 4 + size]
        rest = rest[4 + size :]
    return extensions


class Relay:
    """Pass connections on, the n-th to the n-th target (the last for all later ones), until closed."""

    def __init__(self, *targets: Endpoint, faults: tuple[Fault, ...] = ()) -> None:
        self.tapes: list[Tape] = []
        self._targets = targets
        self._faults = faults
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    @property
    def endpoint(self) -> Endpoint:
        """Where it listens."""
        return Endpoint("127.0.0.1", self._listener.getsockname()[1])

    def settle(self) -> None:
        """Wait until every connection has ended at both sides."""
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        self.settle()

    def _passed(self, data: bytes) -> bytes:
        """Return what is sent on for a record; other hosts change it here."""
        return data

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            number = len(self.tapes)
            tape = Tape()
            self.tapes.append(tape)
            thread = threading.Thread(target=self._connect, args=(client, number, tape))
            self._threads.append(thread)
            thread.start()

    def _connect(self, client: socket.socket, number: int, tape: Tape) -> None:
        server = self._targets[min(number, len(self._targets) - 1)].dial(timeout=PATIENCE)
        with client, server:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.settimeout(PATIENCE)
            server.settimeout(PATIENCE)
            pumps = [
                threading.Thread(target=self._pump, args=(client, server, Way.TO_SERVER, number, tape.to_server)),
                threading.Thread(target=self._pump, args=(server, client, Way.TO_CLIENT, number, tape.to_client)),
            ]
            for pump in pumps:
                pump.start()
            for pump in pumps:
                pump.join()

    def _pump(self, source: socket.socket, sink: socket.socket, way: Way, number: int, kept: bytearray) -> None:
        faults = {f.record: f.deed for f in self._faults if (f.way, f.connection) == (way, number)}
        client = source if way is Way.TO_SERVER else sink
        try:
            for place, data in enumerate(_receive(source, kept)):
                deed = faults.get(place)
                sink.sendall(_spoilt(self._passed(data), deed))
                if deed is Deed.RESET:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    _end(source if source is not client else sink)
                    with contextlib.suppress(OSError):
                        client.shutdown(socket.SHUT_RD)
                    return
                if deed in (Deed.CUT, Deed.HALVE):
                    _end(source, sink)
                    return
            sink.shutdown(socket.SHUT_WR)  # an end is passed on as it is; the other way stays open
        except OSError:
            _end(source, sink)


def _receive(source: socket.socket, kept: bytearray) -> Iterator[bytes]:
    """Yield whole records as they come, with their headers; at the end whatever is left."""
    rest = b""
    while data := source.recv(65536):
        kept += data
        rest += data
        while len(rest) >= HEADER and len(rest) >= (end := HEADER + int.from_bytes(rest[3:HEADER], "big")):
            yield rest[:end]
            rest = rest[end:]
    if rest:
        yield rest


def _spoilt(data: bytes, deed: Deed | None) -> bytes:
    match deed:
        case Deed.FLIP:
            middle = HEADER + (len(data) - HEADER) // 2
            return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        case Deed.HALVE:
            return data[: len(data) // 2]
        case Deed.INJECT:
            return EMPTY_RECORD + data
        case Deed.REPEAT:
            return data + data
        case Deed.CUT | Deed.RESET | Deed.DROP:
            return b""
        case None:
            return data


def _end(*sockets: socket.socket) -> None:
    for sock in sockets:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
