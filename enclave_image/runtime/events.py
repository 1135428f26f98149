# SPDX-License-Identifier: MIT
"""The one thing that leaves the isolate outside TLS once it serves: constant event codes on port 9003."""

from __future__ import annotations

import contextlib
import socket
import threading

from .transport import Transport
from .wire import PORT_EVENTS, Event

SEND_TIMEOUT = 2.0  # seconds; a host that does not read its events holds nobody up


class Events:
    """One connection for the isolate's life. Nobody listening is no error: the host may deny itself the news."""

    def __init__(self, transport: Transport) -> None:
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None
        with contextlib.suppress(OSError):
            self._sock = transport.dial(PORT_EVENTS)
            self._sock.settimeout(SEND_TIMEOUT)

    def tell(self, event: Event) -> None:
        """Write one byte."""
        with self._lock:
            if self._sock is None:
                return
            try:
                self._sock.sendall(bytes([event]))
            except OSError:
                self._sock.close()
                self._sock = None

    def close(self) -> None:
        """Let go of the connection, in the isolate's end or in a child that must not hold it."""
        with self._lock:
            if self._sock is not None:
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_WR)
                self._sock.close()
                self._sock = None
