# SPDX-License-Identifier: MIT
"""The backend's process: QEMU on one socket, the host on the others, one guest at a time, for as many as come."""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .connections import Connections
from .device import Device
from .errors import FaultLog, FrontendFault
from .loop import Loop
from .session import POLL_S, Session
from .sockets import Listener, check_path

ACCEPT_BATCH = 64  # connections of one listener in a round
ACCEPT_RETRY_S = 0.1  # after descriptors ran out
# Seconds at the end for the host to take what it was sent: before children.GRACE is over, after which we are killed.
LAST_S = 3.0
_PORT_DIGITS = 11  # "_" and the largest port
_EDGES = select.EPOLLIN | select.EPOLLET
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Settings:
    """What one backend serves: the guest's port N is the Unix socket `base_N`."""

    base: str
    guest_cid: int
    listen: Sequence[int]  # ports of the guest that the host may open
    vhost: Path | socket.socket  # where QEMU connects, or its connection


class Backend:
    """Everything of one process; construct it, say that it is ready, `run` it."""

    def __init__(self, settings: Settings, resources: ExitStack) -> None:
        """Raises EnvironmentLacks where sockets cannot be had; `resources` closes (and removes) them."""
        self._settings = settings
        self._log = FaultLog()
        self._loop = Loop()
        check_path(Path(settings.base), spare=_PORT_DIGITS)
        self._connections = Connections(self._loop, settings.base, self._log, reserved=settings.listen)
        self._device = Device(self._connections, self._log, guest_cid=settings.guest_cid)
        self._session: Session | None = None
        self._frontend: socket.socket | None = None
        self._signals = socket.socketpair()
        self._retries: set[int | None] = set()  # ports whose listener ran out of descriptors; None: QEMU's own
        self._more_messages = False  # QEMU's, of which the loop heard and has not read all
        self._ends_at: float | None = None  # when all ends, whatever the host has still to take
        self._retry_at = 0.0
        self._listeners: dict[int, Listener] = {}
        for port in settings.listen:
            listener = self._listeners[port] = Listener(Path(f"{settings.base}_{port}"))
            resources.callback(listener.close)
            self._loop.add(listener.socket, partial(self._accept_host, port), _EDGES)
        if isinstance(settings.vhost, Path):
            self._vhost: Listener | None = Listener(settings.vhost)
            resources.callback(self._vhost.close)
            self._loop.add(self._vhost.socket, self._accept_frontend, _EDGES)
        else:
            self._vhost = None
            self._open_session(settings.vhost)
        resources.callback(self._end_session)

    def run(self) -> None:
        """Serve until `stop`; with a connection of QEMU's that was handed over, until that ends."""
        self._loop.run(self._service, self._timeout)

    def stop(self) -> None:
        """End `run`, once the host has taken what streams that have ended hold for it, or after LAST_S seconds."""
        if self._ends_at is None:
            self._ends_at = time.monotonic() + LAST_S
            if self._vhost is not None:
                self._loop.remove(self._vhost.socket)  # no other QEMU is taken
            self._end_session()
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._ends_at is not None and (not self._connections.draining or time.monotonic() >= self._ends_at):
            self._loop.stop()

    def stop_on(self, *signals: signal.Signals) -> None:
        """End `run` cleanly at these signals."""
        reader, writer = self._signals
        reader.setblocking(False)
        writer.setblocking(False)
        self._loop.add(reader, lambda events: self.stop(), _EDGES)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for number in signals:
            signal.signal(number, lambda *_: None)  # the byte on the wakeup descriptor does the work

    def _service(self) -> bool:
        if self._retries and time.monotonic() >= self._retry_at:
            ports, self._retries = self._retries, set()
            for port in ports:
                if port is None:
                    self._accept_frontend(0)
                else:
                    self._accept_host(port, 0)
        if self._more_messages:
            self._on_frontend(0)
        more = self._device.service()  # after whatever may have given it work
        self._end_if_done()
        return more or self._more_messages

    def _timeout(self) -> float | None:
        polls = self._device.lingers or (self._session is not None and self._session.polls)
        if not polls and not self._retries and not self._connections.any_waits and self._ends_at is None:
            return None
        waits = [self._connections.next_deadline()]
        if self._ends_at is not None:
            waits.append(max(0.0, self._ends_at - time.monotonic()))
        if self._retries:
            waits.append(ACCEPT_RETRY_S)
        if polls:
            waits.append(POLL_S)
        return min((wait for wait in waits if wait is not None), default=None)

    # The host's side

    def _accept_host(self, port: int, _events: int) -> None:
        listener = self._listeners[port]
        for _ in range(ACCEPT_BATCH):
            try:
                connection = listener.accept()
            except OSError:
                self._log.note("out of file descriptors: connections of the host's wait")
                self._retry(port, ACCEPT_RETRY_S)
                return
            if connection is None:
                return
            if not self._device.running or not self._connections.accept(connection, port):
                connection.close()  # nobody is there, or too many are
        self._retry(port, 0.0)  # the edge has passed, and there may be more

    def _retry(self, port: int | None, wait: float) -> None:
        self._retries.add(port)
        self._retry_at = time.monotonic() + wait

    # QEMU's side

    def _accept_frontend(self, _events: int) -> None:
        assert self._vhost is not None
        while True:
            try:
                connection = self._vhost.accept()
            except OSError:
                self._log.note("out of file descriptors: QEMU waits")
                self._retry(None, ACCEPT_RETRY_S)
                return
            if connection is None:
                return
            self._on_frontend(0)  # the last one's end may be waiting behind this event
            if self._session is None:
                self._open_session(connection)
            else:
                connection.close()  # one QEMU at a time

    def _open_session(self, connection: socket.socket) -> None:
        self._frontend = connection
        self._session = Session(
            connection, self._device, self._loop, self._log, guest_cid=self._settings.guest_cid
        )  # fmt: skip
        self._loop.add(connection, self._on_frontend, _EDGES | select.EPOLLRDHUP)

    def _on_frontend(self, _events: int) -> None:
        self._more_messages = False
        if self._session is None:
            return
        try:
            self._more_messages = self._session.receive()
        except EOFError:
            self._end_session()
        except FrontendFault as fault:
            self._log.note(f"QEMU's connection ends: {fault.what}")
            self._end_session()

    def _end_session(self) -> None:
        if self._session is None or self._frontend is None:
            return
        self._session.close()
        self._loop.discard(self._frontend)
        self._session = self._frontend = None
        self._more_messages = False
        self._log.new_boot()
        if self._vhost is None:
            self.stop()


def die_with_parent(parent: int) -> bool:
    """Be sent SIGTERM when the parent (its thread that started us) ends; return False if it already has."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    return os.getppid() == parent  # it may have ended before the call


def allow_descriptors() -> None:
    """Raise the limit of open files to what the system allows: every connection takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
