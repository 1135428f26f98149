# SPDX-License-Identifier: MIT
"""Load for a relay, from processes of its own: bytes go out by sendfile, and are dropped in the kernel as they come.

    relay_load.py serve unix:PATH|tcp:PORT ...        until its stdin ends
    relay_load.py up|down ADDRESS STREAMS BYTES       prints seconds; BYTES is the sum of all streams
    relay_load.py ping ADDRESS COUNT                  prints the median seconds of a 64-byte round trip
    relay_load.py idle ADDRESS COUNT                  prints "ready", then holds them until its stdin ends

A connection begins with 16 bytes: what is asked (u = upload, d = download, e = echo), zeros, and how many bytes.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import statistics
import struct
import sys
import time

HEADER = struct.Struct(">c7xQ")
COUNT = struct.Struct(">Q")
BUFFER = 1 << 20  # bytes; also of the pipe through which bytes are dropped
SOURCE = 1 << 24  # bytes in the memory file that everything is sent from
PING = 64  # bytes
LIMIT = 120.0  # seconds without any progress


def make_source() -> int:
    """Return a memory file of random bytes."""
    descriptor = os.memfd_create("load")
    block = os.urandom(1 << 20)
    for _ in range(SOURCE >> 20):
        os.write(descriptor, block)
    return descriptor


class Sink:
    """Drops what a socket holds without copying it to this process: that load is the machine's, not the relay's."""

    def __init__(self) -> None:
        self._from, self._into = os.pipe2(os.O_NONBLOCK)
        fcntl.fcntl(self._into, fcntl.F_SETPIPE_SZ, BUFFER)
        self._null = os.open(os.devnull, os.O_WRONLY)
        self._buffer = bytearray(BUFFER)

    def drop(self, sock: socket.socket) -> int:
        """Return how many bytes were dropped; 0 at the end."""
        if sock.family == socket.AF_INET:  # tcp(7): MSG_TRUNC discards
            return sock.recv_into(self._buffer, BUFFER, socket.MSG_TRUNC)
        count = os.splice(sock.fileno(), self._into, BUFFER, flags=os.SPLICE_F_NONBLOCK)
        left = count
        while left:
            left -= os.splice(self._from, self._null, left)
        return count


class Stream:
    """One connection, whichever side; both sides are driven by `step` when epoll says so."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.asked = b""
        self.head = b""
        self.to_send = 0
        self.received = 0

    def push(self, source: int) -> bool:
        """Send what goes without waiting; return whether all is sent."""
        while self.to_send:
            try:
                sent = os.sendfile(self.sock.fileno(), source, 0, min(self.to_send, SOURCE))
            except BlockingIOError:
                return False
            self.to_send -= sent
        return True


def dial(address: str) -> socket.socket:
    """Connect to unix:PATH or tcp:PORT."""
    kind, _, place = address.partition(":")
    if kind == "unix":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(place)
        return sock
    sock = socket.create_connection(("127.0.0.1", int(place)), timeout=LIMIT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def serve(addresses: list[str]) -> None:
    """Answer on every address until stdin ends."""
    source = make_source()
    buffer = memoryview(bytearray(BUFFER))
    sink = Sink()
    epoll = select.epoll()
    listeners, streams = {}, {}
    for address in addresses:
        kind, _, place = address.partition(":")
        listener = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET)
        if kind == "tcp":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place if kind == "unix" else ("127.0.0.1", int(place)))
        listener.listen(4096)
        listener.setblocking(False)
        listeners[listener.fileno()] = listener
        epoll.register(listener.fileno(), select.EPOLLIN)
    epoll.register(0, select.EPOLLIN)
    print("ready", flush=True)
    while True:
        for descriptor, _ in epoll.poll():
            if descriptor == 0:
                return
            if descriptor in listeners:
                try:
                    sock, _ = listeners[descriptor].accept()
                except OSError:
                    continue
                sock.setblocking(False)
                if sock.family == socket.AF_INET:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                streams[sock.fileno()] = Stream(sock)
                epoll.register(sock.fileno(), select.EPOLLIN)
                continue
            stream = streams[descriptor]
            try:
                done = answer(stream, epoll, source, buffer, sink)
            except OSError:
                done = True
            if done:
                del streams[descriptor]
                stream.sock.close()


def answer(stream: Stream, epoll: select.epoll, source: int, buffer: memoryview, sink: Sink) -> bool:
    """Go on with one connection; return whether it is over."""
    if not stream.asked:
        stream.head += stream.sock.recv(HEADER.size - len(stream.head))
        if len(stream.head) < HEADER.size:
            return not stream.head
        stream.asked, size = HEADER.unpack(stream.head)
        if stream.asked == b"d":
            stream.to_send = size
            epoll.modify(stream.sock.fileno(), select.EPOLLOUT)
        return False
    if stream.asked == b"d":
        return stream.push(source)
    try:
        if stream.asked == b"e":
            count = stream.sock.recv_into(buffer)
            stream.sock.sendall(buffer[:count])
            return not count
        count = sink.drop(stream.sock)
    except BlockingIOError:
        return False
    stream.received += count
    if not count:
        stream.sock.sendall(COUNT.pack(stream.received))
    return not count


def carry(asked: str, address: str, number: int, size: int) -> float:
    """Carry `size` bytes on `number` streams; return the seconds from the first byte to the last one's arrival."""
    source = make_source()
    sink = Sink()
    epoll = select.epoll()
    each = size // number
    streams = {}
    for _ in range(number):
        sock = dial(address)
        sock.settimeout(0)
        streams[sock.fileno()] = stream = Stream(sock)
        stream.asked = asked[:1].encode()
        epoll.register(sock.fileno(), select.EPOLLOUT if asked == "up" else select.EPOLLIN)
    begin = time.perf_counter()
    for stream in streams.values():
        stream.sock.send(HEADER.pack(stream.asked, each))
        stream.to_send = each if asked == "up" else 0
    while streams:
        events = epoll.poll(LIMIT)
        if not events:
            raise SystemExit("no progress")
        for descriptor, mask in events:
            stream = streams[descriptor]
            if mask & select.EPOLLOUT and stream.to_send:
                if stream.push(source):
                    stream.sock.shutdown(socket.SHUT_WR)
                    epoll.modify(descriptor, select.EPOLLIN)
                continue
            if asked == "down":
                count = sink.drop(stream.sock)
            else:
                count = len(answered := stream.sock.recv(COUNT.size))
                stream.head += answered
            stream.received += count
            if not count:
                arrived = stream.received if asked == "down" else COUNT.unpack(stream.head)[0]
                if arrived != each:
                    raise SystemExit(f"{arrived} of {each} bytes arrived")
                del streams[descriptor]
                stream.sock.close()
    return time.perf_counter() - begin


def ping(address: str, count: int) -> float:
    """Return the median round trip in seconds."""
    sock = dial(address)
    sock.send(HEADER.pack(b"e", 0))
    payload, buffer, times = os.urandom(PING), bytearray(PING), []
    for _ in range(count):
        begin = time.perf_counter()
        sock.send(payload)
        got = sock.recv_into(buffer)
        times.append(time.perf_counter() - begin)
        if got != PING or buffer != payload:
            raise SystemExit("an echo came back wrong")
    return statistics.median(times)


def idle(address: str, count: int) -> None:
    """Hold connections that have each carried a message."""
    socks = [dial(address) for _ in range(count)]
    for sock in socks:
        sock.send(HEADER.pack(b"e", 0) + b"x")
    for sock in socks:
        if sock.recv(1) != b"x":
            raise SystemExit("an echo did not come back")
    print("ready", flush=True)
    sys.stdin.read()


def main() -> None:
    """Do what the command line says."""
    what, *rest = sys.argv[1:]
    if what == "serve":
        serve(rest)
    elif what == "ping":
        print(ping(rest[0], int(rest[1])))
    elif what == "idle":
        idle(rest[0], int(rest[1]))
    else:
        print(carry(what, rest[0], int(rest[1]), int(rest[2])))


if __name__ == "__main__":
    main()
