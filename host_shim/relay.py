# SPDX-License-Identifier: MIT
"""Carries bytes between participants and the isolate, in a process of its own, and looks at none of them.

One thread, one epoll. Each connection is two flows; a flow holds at most one buffer that its receiver has not taken,
and reads no further until it has. A flow that turns out to be bulk moves its bytes through a pipe inside the kernel.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence

BUFFER = 256 * 1024  # bytes read at once, and the most that a flow holds
PIPE = 1024 * 1024  # bytes; the most that an unprivileged user may ask for (pipe(7))
BULK_READ = 32 * 1024  # bytes; this many at once ...
BULK_AFTER = 4  # ... so many times in a row is bulk
TURNS = 8  # reads of one flow before the others' turn
ACCEPTS = 64  # connections accepted before the others' turn

MAX_CONNECTIONS = 1024
IDLE = 300.0  # seconds without a byte in either direction; a job is waited for in questions of 30 s
CONNECT = 5.0  # seconds until the isolate's side must take a connection
SWEEP = 1.0  # seconds between looks at the time limits
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: the peer sees a reset, not a regular end

BROKEN = select.EPOLLERR | select.EPOLLHUP

_splice_flags = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Flow:
    """One direction of a connection."""

    __slots__ = ("_bulk", "_in_pipe", "_moved", "_pending", "_pipe", "ended", "finished", "receiver", "sender")

    def __init__(self, sender: socket.socket, receiver: socket.socket) -> None:
        self.sender = sender
        self.receiver = receiver
        self.ended = False  # the sender will send no more
        self.finished = False  # and the receiver knows
        self._pending = memoryview(b"")
        self._pipe: tuple[int, int] | None = None
        self._in_pipe = 0
        self._bulk = 0
        self._moved = False

    @property
    def full(self) -> bool:
        """Whether the receiver has not taken all yet."""
        return bool(self._pending) or self._in_pipe > 0

    def move(self, buffer: memoryview) -> bool:
        """Move what can be moved without waiting; return whether any byte was. Raise OSError for a broken end."""
        self._moved = False
        with contextlib.suppress(BlockingIOError):
            for _ in range(TURNS):
                self._flush()
                if self.ended or not self._read(buffer):
                    break
        if self.ended and not self.full and not self.finished:
            self.finished = True
            self.receiver.shutdown(socket.SHUT_WR)
        return self._moved

    def _flush(self) -> None:
        """Give what is held to the receiver; raise BlockingIOError while it takes no more."""
        while self._pending:
            self._pending = self._pending[self.receiver.send(self._pending) :]
            self._moved = True
        while self._in_pipe:
            assert self._pipe is not None
            self._in_pipe -= os.splice(self._pipe[0], self.receiver.fileno(), self._in_pipe, flags=_splice_flags)
            self._moved = True

    def _read(self, buffer: memoryview) -> bool:
        """Read once and pass on at once; False at the sender's end."""
        if self._pipe is not None:
            count = self._in_pipe = os.splice(self.sender.fileno(), self._pipe[1], PIPE, flags=_splice_flags)
        else:
            count = self.sender.recv_into(buffer)
            self._bulk = self._bulk + 1 if count >= BULK_READ else 0
            if self._bulk >= BULK_AFTER:
                self._open_pipe()
            self._pass_on(buffer[:count])
        self.ended = count == 0
        self._moved |= count > 0
        return count > 0

    def _pass_on(self, piece: memoryview) -> None:
        while piece:
            try:
                piece = piece[self.receiver.send(piece) :]
            except BlockingIOError:
                self._pending = memoryview(bytes(piece))
                self._moved = True
                raise

    def _open_pipe(self) -> None:
        self._bulk = 0
        with contextlib.suppress(OSError):  # out of descriptors: copying goes on
            self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.fcntl(self._pipe[1], fcntl.F_SETPIPE_SZ, PIPE)

    def close(self) -> None:
        """Give the pipe back."""
        if self._pipe is not None:
            for descriptor in self._pipe:
                os.close(descriptor)
            self._pipe = None


class Connection:
    """A participant's socket, the isolate's, and the two flows between them."""

    __slots__ = ("client", "flows", "last", "masks", "target")

    def __init__(self, client: socket.socket, target: socket.socket, now: float) -> None:
        self.client = client
        self.target = target
        self.flows = (Flow(client, target), Flow(target, client))
        self.masks = {client.fileno(): 0, target.fileno(): 0}
        self.last = now

    def wanted(self) -> dict[int, int]:
        """Return what each descriptor waits for."""
        masks = dict.fromkeys(self.masks, 0)
        for flow in self.flows:
            if flow.full:
                masks[flow.receiver.fileno()] |= select.EPOLLOUT
            elif not flow.ended:
                masks[flow.sender.fileno()] |= select.EPOLLIN
        return masks

    @property
    def finished(self) -> bool:
        """Whether both sides have ended."""
        return self.flows[0].finished and self.flows[1].finished


class Relay:
    """Accepts from one listening socket and connects each to one Unix socket."""

    def __init__(
        self,
        listener: socket.socket,
        target: str,
        *,
        max_connections: int = MAX_CONNECTIONS,
        idle: float = IDLE,
        connect: float = CONNECT,
    ) -> None:
        self._listener = listener
        self._target = target
        self._max = max_connections
        self._idle = idle
        self._connect = connect
        self._epoll = select.epoll()
        self._ends: dict[int, Connection] = {}  # by both descriptors
        self._waiting: list[tuple[socket.socket, float]] = []  # accepted; the isolate's backlog is full
        self._buffer = memoryview(bytearray(BUFFER))
        self._accepting = False
        self._accept_after = 0.0
        self._now = time.monotonic()

    def run(self, gate: int | None = None) -> None:
        """Serve for ever; with `gate`, a descriptor, from the moment on when it becomes readable or ends."""
        if gate is not None:
            select.select([gate], [], [])
        swept = self._now = time.monotonic()
        while True:
            self._accept_if_room()
            events = self._epoll.poll(0.05 if self._waiting else SWEEP)
            self._now = time.monotonic()
            for descriptor, mask in events:
                if descriptor == self._listener.fileno():
                    self._accept()
                elif (connection := self._ends.get(descriptor)) is not None:
                    self._serve(connection, descriptor, mask)
            self._retry_waiting()
            if self._now - swept >= SWEEP:
                swept = self._now
                self._close_idle()

    def _accept_if_room(self) -> None:
        room = len(self._ends) // 2 + len(self._waiting) < self._max and self._now >= self._accept_after
        if room and not self._accepting:
            self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        elif self._accepting and not room:
            self._epoll.unregister(self._listener.fileno())
        self._accepting = room

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            if len(self._ends) // 2 + len(self._waiting) >= self._max:
                return
            try:
                client, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._accept_after = self._now + 0.1  # the rest wait in the backlog
                    return
                continue  # that client is gone already
            client.setblocking(False)
            if client.family != socket.AF_UNIX:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if not self._dial(client):
                self._waiting.append((client, self._now + self._connect))

    def _dial(self, client: socket.socket) -> bool:
        """Connect a client to the isolate; False if the isolate's backlog is full just now."""
        try:
            target = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError:
            _abort(client)
            return True
        try:
            target.connect(self._target)
        except BlockingIOError:  # unix(7): EAGAIN is a full backlog; nothing was begun
            target.close()
            return False
        except OSError:
            target.close()
            _abort(client)
            return True
        connection = Connection(client, target, self._now)
        for descriptor in connection.masks:
            self._ends[descriptor] = connection
        self._watch(connection)
        return True

    def _retry_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for client, until in waiting:
            if self._now >= until:
                _abort(client)
            elif not self._dial(client):
                self._waiting.append((client, until))

    def _serve(self, connection: Connection, descriptor: int, mask: int) -> None:
        try:
            for flow in connection.flows:
                due = mask & (select.EPOLLOUT if flow.receiver.fileno() == descriptor else select.EPOLLIN)
                if (due or mask & BROKEN) and not flow.finished and flow.move(self._buffer):
                    connection.last = self._now
        except OSError:
            self._close(connection, abort=True)
            return
        if connection.finished:
            self._close(connection)
        else:
            self._watch(connection)

    def _watch(self, connection: Connection) -> None:
        wanted = connection.wanted()
        for descriptor, mask in wanted.items():
            before = connection.masks[descriptor]
            if mask == before:
                continue
            if not mask:  # out of the set: a hang-up would be reported for ever
                self._epoll.unregister(descriptor)
            elif not before:
                self._epoll.register(descriptor, mask)
            else:
                self._epoll.modify(descriptor, mask)
        connection.masks = wanted

    def _close(self, connection: Connection, *, abort: bool = False) -> None:
        for descriptor, mask in connection.masks.items():
            del self._ends[descriptor]
            if mask:
                self._epoll.unregister(descriptor)
        for flow in connection.flows:
            flow.close()
        if abort:
            _abort(connection.client)
        connection.client.close()
        connection.target.close()

    def _close_idle(self) -> None:
        for connection in {id(c): c for c in self._ends.values()}.values():
            if self._now - connection.last >= self._idle:
                self._close(connection, abort=True)


def _abort(client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        if client.family != socket.AF_UNIX:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    client.close()


def _raise_descriptor_limit(connections: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections * 6 + 64  # two sockets and two pipes each
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the relay on an inherited listening socket until it is told to end."""
    parser = argparse.ArgumentParser(prog="host_shim.relay", allow_abbrev=False)
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--gate-fd", type=int, help="begin to accept when this descriptor becomes readable")
    parser.add_argument("--target", required=True, help="the isolate's Unix socket")
    parser.add_argument("--max-connections", type=int, default=MAX_CONNECTIONS)
    parser.add_argument("--idle", type=float, default=IDLE, help="seconds")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _raise_descriptor_limit(args.max_connections)
    listener = socket.socket(fileno=args.listen_fd)
    listener.setblocking(False)
    relay = Relay(listener, args.target, max_connections=args.max_connections, idle=args.idle)
    relay.run(args.gate_fd)
    return 0


if __name__ == "__main__":
    sys.exit(main())
