# SPDX-License-Identifier: MIT
"""Pipes to splice through. A flow holds one only while bytes are in it: a thousand busy flows share a few pipes."""

from __future__ import annotations

import contextlib
import fcntl
import os

PIPE = 1024 * 1024  # bytes; the most that an unprivileged user may ask for (pipe(7))
LEAST = 64 * 1024  # bytes; a user who has many pipes gets smaller ones (pipe-user-pages-soft), worse than copying
KEPT = 16  # empty pipes

Pipe = tuple[int, int]  # descriptors: to read from, to write to

AVAILABLE = hasattr(os, "splice")


class Pipes:
    """Empty pipes, the last one used first: its place in the processor's cache is warm."""

    def __init__(self) -> None:
        self._empty: list[Pipe] = []

    def take(self) -> Pipe | None:
        """Return an empty pipe, None where there is none to be had: bytes are copied then."""
        if self._empty:
            return self._empty.pop()
        return _make() if AVAILABLE else None

    def give(self, pipe: Pipe) -> None:
        """Take an empty pipe back."""
        if len(self._empty) < KEPT:
            self._empty.append(pipe)
        else:
            drop(pipe)

    def close(self) -> None:
        """Close what is kept."""
        while self._empty:
            drop(self._empty.pop())


def _make() -> Pipe | None:
    try:
        pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # out of descriptors
        return None
    with contextlib.suppress(OSError):
        fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, PIPE)
    if fcntl.fcntl(pipe[1], fcntl.F_GETPIPE_SZ) < LEAST:
        drop(pipe)
        return None
    return pipe


def drop(pipe: Pipe) -> None:
    """Close a pipe and lose what is in it."""
    for descriptor in pipe:
        os.close(descriptor)
