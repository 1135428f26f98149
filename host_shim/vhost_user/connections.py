# SPDX-License-Identifier: MIT
"""All connections of one guest: who may open how many, and what becomes of them when a side goes away."""

from __future__ import annotations

import errno
import select
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from functools import partial
from itertools import takewhile

from .connection import Connection, State
from .errors import FaultLog
from .loop import Loop
from .packet import PARENT_CIDS, Address

MAX_CONNECTIONS = 1024  # from each side: neither can take the other's share
WINDOW = 256 * 1024  # bytes of credit of a connection; Linux's own default
SMALL_WINDOW = 32 * 1024  # bytes, once the connections have used up the budget
WINDOW_BUDGET = 64 * 1024 * 1024  # bytes: a bound on what a guest can make us keep (twice that with small windows)
DIAL_S = 2.0  # seconds that a full backlog of the host's listener may last; Linux's own connect timeout on vsock
DIAL_RETRY_S = 0.005
DRAIN_S = 60.0  # seconds in which a host may take none of what a stream that has ended still holds for it
ANSWER_S = 10.0  # seconds for the guest to answer a request of the host's
FIRST_PORT, LAST_PORT = 1 << 30, (1 << 31) - 1  # of our side, for connections that the host opens

_EDGES = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_EDGES_FULL = (
    _EDGES | select.EPOLLOUT
)  # asked for only while the host's socket is full: each of its reads would wake us


class Connections:
    """The table of streams, the Unix sockets behind them, and the list of those with something for the guest."""

    def __init__(self, loop: Loop, base: str, log: FaultLog, *, reserved: Collection[int]) -> None:
        """`base`: the guest's port N is the socket `base_N`; `reserved` ports are ours and never dialled."""
        self._loop = loop
        self._base = base
        self._log = log
        self._reserved = frozenset(reserved)
        self._table: dict[tuple[int, int, int], Connection] = {}  # keys are addresses
        self._waiting: dict[Connection, float] = {}  # until when; for the guest's answer
        self._dialling: dict[Connection, float] = {}  # until when; for a place in the listener's backlog
        self._draining: OrderedDict[Connection, float] = OrderedDict()  # until when; for the host to take a byte
        self._retry_at = 0.0  # when to try the dialling ones again
        self._open = {True: 0, False: 0}  # by Connection.accepted
        self._windows = 0  # bytes
        self._port = FIRST_PORT
        self.ready: OrderedDict[Connection, None] = OrderedDict()  # open ones that may have something for the guest

    def __len__(self) -> int:
        return sum(self._open.values())

    def get(self, address: tuple[int, int, int]) -> Connection | None:
        """Return the connection that the guest knows by this address."""
        return self._table.get(address)

    def wake(self, connection: Connection) -> None:
        """Put the connection on the list of work; one that is on it keeps its place."""
        self.ready[connection] = None

    def dial(self, address: Address) -> Connection | None:
        """Open what the guest asks for; None if nobody listens there or it has too many open."""
        if address.parent_port in self._reserved or self._open[False] >= MAX_CONNECTIONS:
            return None
        try:
            host = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError:
            self._log.note("out of file descriptors: a connection of the guest's is refused")
            return None
        connection = self._add(address, host, accepted=False)
        if not self._try_dial(connection):
            self.close(connection)
            return None
        if connection.state is State.DIALLING:
            self._dialling[connection] = time.monotonic() + DIAL_S
        return connection

    def _try_dial(self, connection: Connection) -> bool:
        """Connect to the host's socket, for which a full backlog is no refusal; return whether there is hope."""
        code = connection.socket.connect_ex(f"{self._base}_{connection.address.parent_port}")
        if code == errno.EAGAIN:
            return True
        if code:
            return False
        connection.answer()
        self._loop.add(connection.socket, partial(self._on_events, connection), _EDGES)
        self.wake(connection)
        return True

    def accept(self, host: socket.socket, guest_port: int) -> bool:
        """Ask the guest to take a connection of the host's; return False if there are too many."""
        if self._open[True] >= MAX_CONNECTIONS:
            return False
        address = Address(PARENT_CIDS[0], self._next_port(guest_port), guest_port)
        connection = self._add(address, host, accepted=True)
        self._waiting[connection] = time.monotonic() + ANSWER_S
        self._loop.add(host, partial(self._on_events, connection), _EDGES)
        self.wake(connection)
        return True

    def _next_port(self, guest_port: int) -> int:
        while True:  # ends: there are fewer connections than ports
            port = self._port
            self._port = FIRST_PORT if port == LAST_PORT else port + 1
            if Address(PARENT_CIDS[0], port, guest_port) not in self._table:
                return port

    def _add(self, address: Address, host: socket.socket, *, accepted: bool) -> Connection:
        window = WINDOW if self._windows + WINDOW <= WINDOW_BUDGET else SMALL_WINDOW
        connection = Connection(address, host, window=window, accepted=accepted)
        self._table[address] = connection
        self._open[accepted] += 1
        self._windows += window
        return connection

    def pass_on(self, connection: Connection) -> None:
        """Send the bytes that were gathered from the guest's packets to the host."""
        connection.pass_on()
        if connection.backlog and not connection.waits_for_room:
            connection.waits_for_room = True
            self._loop.change(connection.socket, _EDGES_FULL)
        if connection.owes:
            self.wake(connection)

    def _on_events(self, connection: Connection, events: int) -> None:
        connection.notice(events)
        if events & (select.EPOLLOUT | select.EPOLLHUP) and connection.backlog:
            connection.flush()
            if connection in self._draining:
                self._draining[connection] = time.monotonic() + DRAIN_S
                self._draining.move_to_end(connection)
            if not connection.backlog:
                connection.waits_for_room = False
                self._loop.change(connection.socket, _EDGES)
        if connection.state is State.DRAINING:
            if not connection.backlog:
                self.close(connection)
        else:
            self.wake(connection)

    def answered(self, connection: Connection) -> None:
        """The guest took the host's connection."""
        del self._waiting[connection]
        connection.opened()
        self.wake(connection)

    def lose(self, connection: Connection) -> None:
        """The guest is done with it: close it once all that the guest sent has reached the host."""
        if connection.backlog and connection.state is State.OPEN:
            del self._table[connection.address]
            self.ready.pop(connection, None)
            connection.drain()
            self._draining[connection] = time.monotonic() + DRAIN_S
        else:
            self.close(connection)

    def close(self, connection: Connection) -> None:
        """Forget the connection, and close its socket once this round of events is over."""
        if connection.state is State.CLOSED:
            return
        if connection.state is not State.DRAINING:
            del self._table[connection.address]
        connection.state = State.CLOSED
        self.ready.pop(connection, None)
        for waits in (self._waiting, self._dialling, self._draining):
            waits.pop(connection, None)
        self._open[connection.accepted] -= 1
        self._windows -= connection.window
        connection.backlog.clear()
        self._loop.discard(connection.socket)

    def lose_all(self) -> None:
        """The guest is gone."""
        for connection in list(self._table.values()):
            self.lose(connection)

    @property
    def draining(self) -> bool:
        """Whether the host has still to take what streams held that have ended."""
        return bool(self._draining)

    @property
    def any_waits(self) -> bool:
        """Whether `expire` may have something to do some day."""
        return bool(self._dialling or self._waiting or self._draining)

    def next_deadline(self) -> float | None:
        """Return the seconds until `expire` has something to do; None for never."""
        if self._dialling:
            return DIAL_RETRY_S
        first = [
            next(iter(waits.values())) for waits in (self._waiting, self._draining) if waits
        ]  # the nearest of each
        return max(0.0, min(first) - time.monotonic()) if first else None

    def expire(self, refuse: Callable[[Address], None]) -> None:
        """Try full backlogs again, and give up what waited too long; `refuse` is told what the guest asked for."""
        now = time.monotonic()
        again = list(self._dialling.items()) if now >= self._retry_at else []
        self._retry_at = now + DIAL_RETRY_S if again else self._retry_at
        full: set[int] = set()  # ports whose backlog had no place for one: nor has it for the next
        for connection, deadline in again:
            port = connection.address.parent_port
            if now > deadline or (port not in full and not self._try_dial(connection)):
                refuse(connection.address)
                self.close(connection)
            elif connection.state is State.OPEN:
                del self._dialling[connection]
            else:
                full.add(port)
        for connection in _overdue(self._waiting, now):
            if connection.announced:  # else the guest has never heard of it
                refuse(connection.address)
            self.close(connection)
        for connection in _overdue(self._draining, now):
            self.close(connection)


def _overdue(waits: Mapping[Connection, float], now: float) -> list[Connection]:
    """Return those whose time is over; they stand in the order of their deadlines."""
    return [connection for connection, _ in takewhile(lambda row: row[1] <= now, waits.items())]
