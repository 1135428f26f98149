# SPDX-License-Identifier: MIT
"""The isolate's side: an address known before the first client comes, connected to without waiting."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)  # of descriptors or memory: that passes


class TargetBusy(Exception):
    """The other side's backlog is full, or this process has no descriptor left: try again soon."""

    def __init__(self, *, short: bool) -> None:
        super().__init__()
        self.short = short  # it is this process that lacks something


@dataclass(frozen=True, slots=True)
class Target:
    """Where connections are relayed to."""

    family: int
    address: Any  # as socket.connect takes it
    text: str

    @classmethod
    def unix(cls, path: Path) -> Target:
        """Return a Unix socket."""
        return cls(socket.AF_UNIX, str(path), f"unix:{path}")

    def begin(self) -> tuple[socket.socket, bool]:
        """Begin to connect; return the socket and whether it is connected already. Raise TargetBusy or OSError."""
        try:
            sock = socket.socket(self.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            if error.errno in SHORT:
                raise TargetBusy(short=True) from error
            raise
        try:
            sock.connect(self.address)
            _refuse_itself(sock)
        except BlockingIOError as error:
            if error.errno != errno.EINPROGRESS:  # unix(7): EAGAIN is a full backlog; nothing was begun
                sock.close()
                raise TargetBusy(short=False) from error
            return sock, False
        except OSError:
            sock.close()
            raise
        return sock, True


def end_dialling(sock: socket.socket) -> None:
    """Learn how a connect that had begun went; raise OSError."""
    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if number:
        raise OSError(number, os.strerror(number))
    _refuse_itself(sock)


def _refuse_itself(sock: socket.socket) -> None:
    """Raise OSError if TCP met itself: that happens at a port of clients' where nobody listens."""
    if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.getsockname() == sock.getpeername():
        raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
