# SPDX-License-Identifier: MIT
"""The relay: one thread, one epoll. A client is accepted, perhaps introduced by a PROXY header, connected, relayed.

It never waits for one connection, and a lack of descriptors, a full backlog or a limit is waited for, not spun on.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence

from ..board import Board
from ..errors import MalformedProxyHeader
from .connection import NETWORK, Connection, End, abort_socket
from .counters import PUBLISHED_EVERY, Counters
from .dial import SHORT, Target, TargetBusy, end_dialling
from .flow import BUFFER
from .limits import Limits, Network, Source, Sources, source_of
from .newcomers import Arriving, Dialling
from .notices import Notices
from .pipes import Pipes
from .proxy_protocol import is_balancer, write_header

EVENTS = 256  # looked at before the time limits are
ACCEPTS = 64  # connections accepted before the others' turn
RETRY = 0.05  # seconds between attempts at a full backlog
SHORTAGE = 0.1  # seconds without accepting when there is no descriptor left


class Relay:
    """Accepts from listening sockets and connects each client to one target.

    `balancers` are the networks that must introduce their clients by PROXY headers: None takes no header at all.
    `introduce` sends one to the target. `tell` takes log lines: escaped, without payload.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        target: Target,
        *,
        limits: Limits = Limits(),  # noqa: B008 -- frozen
        balancers: Sequence[Network] | None = None,
        introduce: bool = False,
        board: Board | None = None,
        tell: Callable[[str], None] = lambda line: None,
        tell_connections: bool = False,
    ) -> None:
        self.counters = Counters()
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._target = target
        self._limits = limits
        self._balancers = balancers
        self._introduce = introduce
        self._board = board
        self._notices = Notices(tell, connections=tell_connections)
        self._sources = Sources(limits.per_source)
        self._epoll = select.epoll()
        self._pipes = Pipes()
        self._buffer = memoryview(bytearray(BUFFER))
        self._connections: set[Connection] = set()
        self._ends: dict[int, End] = {}  # of those, by descriptor
        self._newcomers: dict[int, Arriving | Dialling] = {}  # by the descriptor that they wait for
        self._to_dial: deque[Dialling] = deque()  # the first one has waited longest
        self._dial_after = 0.0
        self._accepting = False
        self._accept_after = 0.0
        self._cut_at: float | None = None  # while it drains
        self._now = time.monotonic()
        self._ended = False
        self._stop = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._stop, select.EPOLLIN)

    def stop(self) -> None:
        """Accept no more and end when no connection is left, or at the limit; asked twice, end now.

        May be called by a signal handler or from another thread.
        """
        if not self._ended:
            os.eventfd_write(self._stop, 1)

    def run(self, gate: int | None = None) -> None:
        """Serve until stopped; with `gate`, a descriptor, from when it becomes readable or ends."""
        self._publish()  # who looks from now on sees numbers
        if gate is not None and self._stop in select.select([gate, self._stop], [], [])[0]:
            self._close_all()
            return
        swept = self._now = time.monotonic()
        ends, poll, most = self._ends, self._epoll.poll, self._limits.connections
        while self._cut_at is None or (self.counters.open and self._now < self._cut_at):
            if not self._accepting or self.counters.open >= most:
                self._accept_if_room()
            quiet = self._accepting and not self._to_dial
            events = poll(PUBLISHED_EVERY if quiet else self._patience(), EVENTS)
            now = self._now = time.monotonic()
            calling: list[socket.socket] = []
            for descriptor, mask in events:
                end = ends.get(descriptor)
                if end is not None:
                    self._serve(end, mask)
                elif descriptor in self._listeners:
                    calling.append(self._listeners[descriptor])
                else:
                    self._attend(descriptor)
            # What opens descriptors comes last: until here a number in `events` means what it meant to epoll.
            for listener in calling:
                self._accept(listener)
            if self._to_dial:
                self._dial_all()
            if now - swept >= PUBLISHED_EVERY:
                swept = now
                self._sweep()
        self._close_all()

    def _patience(self) -> float:
        if self._to_dial:
            return RETRY
        return SHORTAGE if self._now < self._accept_after else PUBLISHED_EVERY

    # Accepting

    def _accept_if_room(self) -> None:
        room = (
            self.counters.open < self._limits.connections and self._now >= self._accept_after and self._cut_at is None
        )
        if room == self._accepting:
            return
        self._accepting = room
        for descriptor in self._listeners:
            if room:
                self._epoll.register(descriptor, select.EPOLLIN)
            else:
                self._epoll.unregister(descriptor)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS):
            if self.counters.open >= self._limits.connections:
                return
            try:
                client, peer = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in SHORT:
                    self._note_shortage()
                    return
                continue  # that client is gone already
            self.counters.accepted += 1
            try:
                client.setblocking(False)
                source = source_of(client, peer)
                _tune(client)
            except (OSError, ValueError):  # gone too
                client.close()
                continue
            self._admit(client, source)

    def _admit(self, client: socket.socket, source: Source) -> None:
        self.counters.open += 1
        if self._balancers is None:
            self._introduced(client, source)
        elif not is_balancer(source, self._balancers):
            self.counters.refused_proxy += 1
            self._refuse(client, source, "not a balancer that PROXY headers are taken from")
        else:
            arriving = Arriving(client, source, until=self._now + self._limits.header)
            self._newcomers[client.fileno()] = arriving
            self._epoll.register(client.fileno(), select.EPOLLIN)

    def _introduced(self, client: socket.socket, source: Source) -> None:
        """Go on with a client of which it is known who it is."""
        if not self._sources.take(source):
            self.counters.refused_source += 1
            self._refuse(client, source, f"its source has {self._limits.per_source} connections")
            return
        first = write_header(source, client) if self._introduce else b""
        self._to_dial.append(Dialling(client, source, first, until=self._now + self._limits.connect))

    def _note_shortage(self) -> None:
        self.counters.short_of_descriptors += 1
        self._accept_after = self._now + SHORTAGE  # the rest wait in the backlog
        self._accept_if_room()
        self._notices.note("short of descriptors or memory: accepting waits", "")

    def _refuse(self, client: socket.socket, source: Source, why: str) -> None:
        self.counters.open -= 1
        self._notices.note(f"refused: {why}", source.text)
        abort_socket(client)

    # Newcomers

    def _attend(self, descriptor: int) -> None:
        match self._newcomers.get(descriptor):
            case Arriving() as arriving:
                self._hear(arriving)
            case Dialling() as dialling:
                self._connected(dialling)
            case None if descriptor == self._stop:
                self._drain()

    def _hear(self, arriving: Arriving) -> None:
        try:
            if not arriving.hear():
                return
            source = arriving.introduced()
        except (OSError, EOFError, MalformedProxyHeader) as error:
            self._forget(arriving.client)
            self.counters.refused_proxy += 1
            self._refuse(arriving.client, arriving.source, f"PROXY header: {error}")
            return
        self._forget(arriving.client)
        self._introduced(arriving.client, source)

    def _dial_all(self) -> None:
        while self._to_dial and self._now >= self._dial_after:
            dialling = self._to_dial.popleft()
            try:
                dialling.target, connected = self._target.begin()
            except TargetBusy as busy:  # for those behind it too: they are not tried
                if busy.short:
                    self._note_shortage()
                self._to_dial.appendleft(dialling)
                self._dial_after = self._now + RETRY
                break
            except OSError as error:
                self._refuse_target(dialling, error)
                continue
            if connected:
                self._open(dialling, dialling.target)
            else:
                self._newcomers[dialling.target.fileno()] = dialling
                self._epoll.register(dialling.target.fileno(), select.EPOLLOUT)
        while self._to_dial and self._now >= self._to_dial[0].until:
            self._refuse_late(self._to_dial.popleft())

    def _connected(self, dialling: Dialling) -> None:
        assert dialling.target is not None
        self._forget(dialling.target)
        try:
            end_dialling(dialling.target)
        except OSError as error:
            self._refuse_target(dialling, error)
            return
        self._open(dialling, dialling.target)

    def _refuse_target(self, dialling: Dialling, error: OSError) -> None:
        self.counters.refused_target += 1
        self._end_dialling(dialling, f"no connection to {self._target.text}: {error.strerror}")

    def _refuse_late(self, dialling: Dialling) -> None:
        self.counters.refused_late += 1
        self._end_dialling(dialling, f"{self._target.text} took no connection within {self._limits.connect:g} s")

    def _end_dialling(self, dialling: Dialling, why: str) -> None:
        if dialling.target is not None:
            dialling.target.close()
        self._sources.give(dialling.source)
        self._refuse(dialling.client, dialling.source, why)

    def _forget(self, sock: socket.socket) -> None:
        del self._newcomers[sock.fileno()]
        self._epoll.unregister(sock.fileno())

    # Connections

    def _open(self, dialling: Dialling, target: socket.socket) -> None:
        _tune(target)
        connection = Connection(
            dialling.client, target, dialling.source, self._pipes, first=dialling.first, now=self._now
        )
        self._ends[connection.client_end.descriptor] = connection.client_end
        self._ends[connection.target_end.descriptor] = connection.target_end
        self._connections.add(connection)
        connection.watch(self._epoll)
        self._notices.opened(connection)

    def _serve(self, end: End, mask: int) -> None:
        if mask == select.EPOLLIN and end.reads.copy(self._buffer):  # by far the most there is
            return
        connection = end.connection
        end.serve(mask, self._buffer)
        connection.pass_on_ends()
        if not (connection.finished and self._end(connection)):
            connection.watch(self._epoll)

    def _end(self, connection: Connection) -> bool:
        """Close a finished connection; return False if it must wait, until the sweep, for bytes to arrive."""
        if not connection.broken:
            self.counters.finished += 1
            self._close(connection, "finished")
            return True
        if connection.on_the_way:
            return False
        self.counters.broken += 1
        self._close(connection, "broken off", abort=True)
        return True

    def _close(self, connection: Connection, how: str, *, abort: bool = False) -> None:
        self._connections.remove(connection)
        del self._ends[connection.client_end.descriptor]
        del self._ends[connection.target_end.descriptor]
        self._count_bytes(connection)
        self._sources.give(connection.source)
        self.counters.open -= 1
        self._notices.closed(connection, how, at=self._now)
        connection.close(abort=abort)  # closing takes the descriptors out of epoll's set

    def _count_bytes(self, connection: Connection) -> bool:
        """Count what has moved; return whether anything has."""
        inward, outward = connection.newly_moved()
        self.counters.bytes_in += inward
        self.counters.bytes_out += outward
        return bool(inward or outward)

    # Time

    def _sweep(self) -> None:
        """Look at the time limits, count, tell."""
        for connection in list(self._connections):
            if self._count_bytes(connection):
                connection.last = self._now
            if connection.finished and self._end(connection):
                continue
            if self._now - connection.last >= self._limits.idle:
                self.counters.cut_idle += 1
                self._close(connection, "idle", abort=True)
        for newcomer in [one for one in self._newcomers.values() if self._now >= one.until]:
            if isinstance(newcomer, Dialling):
                assert newcomer.target is not None
                self._forget(newcomer.target)
                self._refuse_late(newcomer)
            else:
                self._forget(newcomer.client)
                self.counters.refused_proxy += 1
                self._refuse(newcomer.client, newcomer.source, f"no PROXY header within {self._limits.header:g} s")
        self._publish()

    def _publish(self) -> None:
        self._notices.flush()
        if self._board is not None:
            self._board.publish(self.counters)

    # The end

    def _drain(self) -> None:
        times = os.eventfd_read(self._stop)
        if self._cut_at is not None:  # asked again
            self._cut_at = self._now
            return
        self._cut_at = self._now + (self._limits.drain if times == 1 else 0)
        self._accept_if_room()
        for listener in self._listeners.values():  # who comes now is refused, unless somebody else holds the socket too
            listener.close()
        self._listeners.clear()
        self._notices.say(f"draining: {self.counters.open} open, at most {self._limits.drain:g} s")

    def _close_all(self) -> None:
        """Cut what is left."""
        self._ended = True  # a signal may come as late as it likes
        for newcomer in [*self._newcomers.values(), *self._to_dial]:
            self.counters.cut_drain += 1
            if isinstance(newcomer, Dialling):
                self._end_dialling(newcomer, "the relay ends")
            else:
                self._refuse(newcomer.client, newcomer.source, "the relay ends")
        for connection in list(self._connections):
            self.counters.cut_drain += 1
            self._close(connection, "cut by the end of the relay", abort=True)
        with contextlib.suppress(OSError, ValueError):
            self._publish()
        self._pipes.close()
        self._epoll.close()
        os.close(self._stop)


def _tune(sock: socket.socket) -> None:
    if sock.family in NETWORK:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
