# SPDX-License-Identifier: MIT
"""A participant's socket, the isolate's, and the two flows between them."""

from __future__ import annotations

import contextlib
import fcntl
import select
import socket
import struct
import termios

from .flow import Flow
from .limits import Source
from .pipes import Pipes

READABLE = select.EPOLLIN | select.EPOLLERR | select.EPOLLHUP
WRITABLE = select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP
NETWORK = (socket.AF_INET, socket.AF_INET6)
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger
TCP_CLOSE = 7  # tcp_info's state of a connection that is over


class End:
    """One socket of a connection, and what epoll watches it for."""

    __slots__ = ("connection", "descriptor", "mask", "reads", "writes")

    def __init__(self, connection: Connection, descriptor: int, *, reads: Flow, writes: Flow) -> None:
        self.connection = connection
        self.descriptor = descriptor
        self.reads = reads  # the flow that this socket sends into
        self.writes = writes  # the flow that it receives
        self.mask = 0

    def serve(self, mask: int, buffer: memoryview) -> None:
        """Move what an event makes possible."""
        if mask & READABLE and not self.reads.finished:
            self.reads.move(buffer)
        if mask & WRITABLE and self.writes.full:
            self.writes.move(buffer)

    def watch(self, epoll: select.epoll) -> None:
        """Ask epoll for what is waited for now; for nothing, leave its set: a hang-up would be told for ever."""
        mask = 0 if self.reads.full or self.reads.ended else select.EPOLLIN
        if self.writes.full:
            mask |= select.EPOLLOUT
        if mask == self.mask:
            return
        if not mask:
            epoll.unregister(self.descriptor)
        elif not self.mask:
            epoll.register(self.descriptor, mask)
        else:
            epoll.modify(self.descriptor, mask)
        self.mask = mask


class Connection:
    """Both ends, open."""

    __slots__ = ("_counted_in", "_counted_out", "client", "client_end", "inward", "last", "outward", "source",
                 "target", "target_end")  # fmt: skip

    def __init__(
        self, client: socket.socket, target: socket.socket, source: Source, pipes: Pipes, *, first: bytes, now: float
    ) -> None:
        self.client = client
        self.target = target
        self.source = source
        self.inward = Flow(client, target, pipes, first=first)
        self.outward = Flow(target, client, pipes)
        self.client_end = End(self, client.fileno(), reads=self.inward, writes=self.outward)
        self.target_end = End(self, target.fileno(), reads=self.outward, writes=self.inward)
        self.last = now
        self._counted_in = self._counted_out = 0

    @property
    def finished(self) -> bool:
        """Whether both sides have ended."""
        return self.inward.finished and self.outward.finished

    @property
    def broken(self) -> bool:
        """Whether one side has broken off."""
        return self.inward.broken or self.outward.broken or self.inward.cut or self.outward.cut

    @property
    def on_the_way(self) -> bool:
        """Whether a side that is still there has bytes to come that a reset would overtake, and drop."""
        return any(not flow.broken and _unconfirmed(flow.receiver) for flow in (self.inward, self.outward))

    def pass_on_ends(self) -> None:
        """Tell each side that the other has ended; not of one that broke off: that is no regular end."""
        for flow, back in ((self.inward, self.outward), (self.outward, self.inward)):
            if flow.cut and not back.finished:
                back.break_off()
            if flow.ended and not (flow.full or flow.finished):
                flow.finish(tell=not (flow.cut or back.broken))

    def newly_moved(self) -> tuple[int, int]:
        """Return how many bytes went in and out since this was last asked."""
        told = (self.inward.moved - self._counted_in, self.outward.moved - self._counted_out)
        self._counted_in, self._counted_out = self.inward.moved, self.outward.moved
        return told

    def watch(self, epoll: select.epoll) -> None:
        """Watch both ends for what they wait for now."""
        self.client_end.watch(epoll)
        self.target_end.watch(epoll)

    def close(self, *, abort: bool) -> None:
        """Close both ends; with `abort`, so that neither takes it for a regular end."""
        self.inward.close()
        self.outward.close()
        for end in (self.client, self.target):
            if abort:
                abort_socket(end)
            end.close()
        # Each end refers to this connection: without that, no cycle waits for the collector.
        del self.client_end, self.target_end


def abort_socket(sock: socket.socket) -> None:
    """Close so that a peer on the network sees a reset; on a Unix socket it sees that if we left bytes unread."""
    if sock.family in NETWORK:
        with contextlib.suppress(OSError):  # gone already
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    sock.close()


def _unconfirmed(sock: socket.socket) -> bool:
    """Return whether a peer on the network has still to confirm bytes (tcp(7): SIOCOUTQ, which the dead keep)."""
    if sock.family not in NETWORK or sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE:
        return False
    return any(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))
