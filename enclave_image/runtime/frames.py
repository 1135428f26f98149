# SPDX-License-Identifier: MIT
"""One message on a stream: u32 big-endian length, then the bytes. The policy, NSM and attestor channels use it."""

from __future__ import annotations

import socket

LENGTH_SIZE = 4  # bytes


class BrokenFrame(OSError):
    """The peer closed in the middle, or announced more than the limit."""


def recv_exactly(sock: socket.socket, size: int) -> bytes:
    """Return exactly `size` bytes; raise BrokenFrame at an early end."""
    parts = bytearray(size)
    view = memoryview(parts)
    done = 0
    while done < size:
        count = sock.recv_into(view[done:])
        if count == 0:
            raise BrokenFrame("end of stream inside a message")
        done += count
    return bytes(parts)


def recv_frame(sock: socket.socket, limit: int) -> bytes:
    """Return one message of at most `limit` bytes; raise BrokenFrame."""
    size = int.from_bytes(recv_exactly(sock, LENGTH_SIZE), "big")
    if size > limit:
        raise BrokenFrame("message longer than its limit")
    return recv_exactly(sock, size)


def send_frame(sock: socket.socket, message: bytes) -> None:
    """Write one message."""
    sock.sendall(len(message).to_bytes(LENGTH_SIZE, "big") + message)
