# SPDX-License-Identifier: MIT
"""One epoll loop: who owns a descriptor hears of its events, then the service runs until it has nothing to do."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

Handler = Callable[[int], None]

_MAX_EVENTS = 256  # of one round


class Loop:
    """Descriptors and their handlers. Sockets that are discarded close after the round.

    A descriptor number that was closed and used again within a round would hear of its predecessor's events.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._discarded: list[socket.socket] = []
        self._stopped = False

    def add(self, source: socket.socket | int, handler: Handler, events: int) -> None:
        """Call `handler(events)` whenever one of `events` happens."""
        fd = source if isinstance(source, int) else source.fileno()
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def change(self, source: socket.socket, events: int) -> None:
        """Hear of other events from now on; those that hold already are told again."""
        self._epoll.modify(source.fileno(), events)

    def remove(self, source: socket.socket | int) -> None:
        """Hear no more of the source; nothing happens if nobody did."""
        fd = source if isinstance(source, int) else source.fileno()
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def discard(self, source: socket.socket) -> None:
        """Hear no more of the socket, and close it at the end of the round."""
        self.remove(source)
        self._discarded.append(source)

    def stop(self) -> None:
        """End `run` after this round."""
        self._stopped = True

    def run(self, service: Callable[[], bool], timeout: Callable[[], float | None]) -> None:
        """Serve until `stop`: `service` returns whether it has more to do at once, `timeout` how long it can wait."""
        busy = False
        while not self._stopped:
            for fd, events in self._epoll.poll(0 if busy else timeout(), _MAX_EVENTS):
                handler = self._handlers.get(fd)
                if handler is not None:
                    handler(events)
            busy = service()
            if self._discarded:
                self._close_discarded()
        self._close_discarded()

    def _close_discarded(self) -> None:
        for source in self._discarded:
            source.close()
        self._discarded.clear()
