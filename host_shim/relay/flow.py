# SPDX-License-Identifier: MIT
"""One direction of a connection: it holds what its receiver has not taken yet, and reads no further until it has.

A flow that turns out to be bulk moves its bytes through a pipe inside the kernel; small messages are faster copied.
A receiver that breaks off ends its flow alone: what it sent before it did is still carried the other way.
Who is told of an end, and how, is the connection's affair: it knows both flows.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket

from .pipes import PIPE, Pipe, Pipes, drop

BUFFER = 256 * 1024  # bytes read at once by copying, and the most that a flow holds then
BULK = 32 * 1024  # bytes; this many at once ...
BULK_AFTER = 2  # ... so many times in a row is bulk
SMALL = 4 * 1024  # bytes; no more than this at once ...
BULK_OVER = 4  # ... so many times in a row is bulk no longer
WORTH = 64 * 1024  # bytes; after so many, more may have come meanwhile: cheaper to look than to ask epoll
SEND_BUFFER = 1024 * 1024  # bytes asked for; the kernel gives what its limit allows (net.core.wmem_max)
TURNS = 8  # pipes of one flow before the others' turn

CANNOT_SPLICE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # this kernel, or this kind of socket

_splice = getattr(os, "splice", None)
_flags = getattr(os, "SPLICE_F_MOVE", 0) | getattr(os, "SPLICE_F_NONBLOCK", 0)


class Flow:
    """Moves bytes from one socket to another; `moved` counts those that the receiver has taken."""

    __slots__ = (
        "_bulk",
        "_in_pipe",
        "_may_splice",
        "_pending",
        "_pipe",
        "_pipes",
        "_receive",
        "_receiver_fd",
        "_send",
        "_sender_fd",
        "_streak",
        "broken",
        "cut",
        "ended",
        "finished",
        "full",
        "moved",
        "receiver",
        "sender",
    )  # fmt: skip

    def __init__(self, sender: socket.socket, receiver: socket.socket, pipes: Pipes, *, first: bytes = b"") -> None:
        self.sender = sender
        self.receiver = receiver
        self.ended = False  # the sender will send no more
        self.cut = False  # it broke off
        self.finished = False  # and the receiver knows, or takes no more
        self.broken = False  # the receiver takes no more
        self.full = bool(first)  # the receiver has not taken all that is held
        self.moved = 0
        self._receive = sender.recv_into
        self._send = receiver.send
        self._sender_fd = sender.fileno()
        self._receiver_fd = receiver.fileno()
        self._pipes = pipes
        self._pipe: Pipe | None = None
        self._in_pipe = 0
        self._pending = memoryview(first)  # goes before whatever the sender sends
        self._bulk = False
        self._may_splice = True
        self._streak = 0

    def move(self, buffer: memoryview) -> None:
        """Move what can be moved without waiting."""
        if self.full:
            self._flush()
        if self.full or self.ended:
            return
        if not self._bulk:
            self.copy(buffer)
            return
        for _ in range(TURNS):
            if not self._splice():
                return

    def copy(self, buffer: memoryview) -> bool:
        """Read once and pass it on; return whether the flow is as it was before, so that nothing else is to be done.

        Where it returns False, `move` and a look at the flow's state go on.
        """
        if self._bulk:
            return False
        try:
            count = self._receive(buffer)
        except BlockingIOError:
            return False
        except OSError:
            self.cut = self.ended = True
            return False
        if not count:
            self.ended = True
            return False
        try:
            sent = self._send(buffer[:count])
        except BlockingIOError:
            sent = 0
        except OSError:
            self.break_off()
            return False
        self.moved += sent
        if count < BULK:
            self._streak = 0
        else:
            self._streak += 1
            if self._streak >= BULK_AFTER and self._may_splice:
                self._begin_bulk()
        if sent < count:
            self._pending = memoryview(bytes(buffer[sent:count]))
            self.full = True
            return False
        return True

    def finish(self, *, tell: bool) -> None:
        """Be done: the receiver has all that there was. With `tell` it learns that no more will come."""
        self.finished = True
        if tell:
            try:
                self.receiver.shutdown(socket.SHUT_WR)
            except OSError:
                self.broken = True

    def break_off(self) -> None:
        """Be done: the receiver takes no more."""
        self.broken = self.ended = self.finished = True
        self.full = False
        self.close()

    def close(self) -> None:
        """Give up what is held."""
        if self._pipe is not None:
            drop(self._pipe)
            self._pipe = None

    def _begin_bulk(self) -> None:
        self._bulk = True
        self._streak = 0
        if self.receiver.family == socket.AF_UNIX:  # TCP finds a size by itself, and a larger one, unless told one
            with contextlib.suppress(OSError):  # less is slower, and as right
                self.receiver.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)

    def _splice(self) -> bool:
        """Read once through a pipe and pass it on; return whether reading again at once is worth while."""
        assert _splice is not None
        if self._pipe is None:
            self._pipe = self._pipes.take()
            if self._pipe is None:
                self._bulk = False
                return False
        try:
            count = self._in_pipe = _splice(self._sender_fd, self._pipe[1], PIPE, flags=_flags)
        except BlockingIOError:
            self._give_pipe()
            return False
        except OSError as error:
            self._give_pipe()
            if error.errno in CANNOT_SPLICE:
                self._copy_from_now_on()
            else:
                self.cut = self.ended = True
            return False
        if not count:
            self.ended = True
            self._give_pipe()
            return False
        self._empty_pipe()
        if count >= SMALL:
            self._streak = 0
        else:
            self._streak += 1
            if self._streak >= BULK_OVER:
                self._bulk = False
                self._streak = 0
        return count >= WORTH and not (self.full or self.ended)

    def _empty_pipe(self) -> None:
        """Splice on what is in the pipe."""
        assert _splice is not None
        assert self._pipe is not None
        try:
            while self._in_pipe:
                count = _splice(self._pipe[0], self._receiver_fd, self._in_pipe, flags=_flags)
                self._in_pipe -= count
                self.moved += count
        except BlockingIOError:
            self.full = True
            return
        except OSError as error:
            if error.errno not in CANNOT_SPLICE:
                self.break_off()
                return
            self._copy_from_now_on()
            self._pending = memoryview(os.read(self._pipe[0], self._in_pipe))  # a pipe gives all that it has
            self._in_pipe -= len(self._pending)
            self.full = True
            return
        self.full = False
        self._give_pipe()

    def _flush(self) -> None:
        """Give what is held to the receiver."""
        try:
            while self._pending:
                count = self.receiver.send(self._pending)
                self.moved += count
                self._pending = self._pending[count:]
        except BlockingIOError:
            return
        except OSError:
            self.break_off()
            return
        if self._pipe is not None:
            self._empty_pipe()
        else:
            self.full = False

    def _give_pipe(self) -> None:
        if self._pipe is not None:
            self._pipes.give(self._pipe)
            self._pipe = None

    def _copy_from_now_on(self) -> None:
        self._bulk = self._may_splice = False
        self._streak = 0
