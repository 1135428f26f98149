# SPDX-License-Identifier: MIT
"""vhost-user messages on a Unix socket, with the file descriptors that travel beside them.

Source: QEMU's docs/interop/vhost-user.rst. Integers are in native byte order, and virtio's are little-endian: only
little-endian hosts are served.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from dataclasses import dataclass, field
from enum import IntEnum

from .errors import FrontendFault

VERSION = 0x1
FLAG_VERSION_MASK = 0x3
FLAG_REPLY = 0x4
FLAG_NEED_REPLY = 0x8

MAX_PAYLOAD = 4096  # bytes; the largest that is understood (a memory table of eight regions) has 264
MAX_FDS = 8  # VHOST_MEMORY_BASELINE_NREGIONS: one a region
NO_FD = 0x100  # bit 8 of SET_VRING_KICK, CALL and ERR: no descriptor comes with it
RING_MASK = 0xFF

HEADER = struct.Struct("=III")  # request, flags, size
U64 = struct.Struct("=Q")
RING_STATE = struct.Struct("=II")  # index, num
RING_ADDRESS = struct.Struct("=IIQQQQ")  # index, flags, descriptors, used, available, log
TABLE = struct.Struct("=II")  # regions, padding
REGION = struct.Struct("=QQQQ")  # guest address, size, QEMU's address, offset in the file
CONFIG = struct.Struct("=III")  # offset, size, flags


class Request(IntEnum):
    """What QEMU asks; the values are the protocol's."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24


class Feature:
    """Bits of the device's features (virtio 1.2, 6; vhost-user for bit 30)."""

    INDIRECT = 1 << 28
    EVENT_IDX = 1 << 29
    PROTOCOL = 1 << 30
    VERSION_1 = 1 << 32
    ALL = INDIRECT | EVENT_IDX | PROTOCOL | VERSION_1


class ProtocolFeature:
    """Bits of the protocol's own features."""

    REPLY_ACK = 1 << 3
    CONFIG = 1 << 9  # QEMU demands it: it asks for the guest's CID
    ALL = REPLY_ACK | CONFIG


@dataclass(slots=True)
class Message:
    """One message of QEMU's; whoever takes a descriptor out of `fds` owns it, `close` ends the others."""

    request: int
    flags: int
    payload: bytes
    fds: list[int] = field(default_factory=list)

    def unpack(self, form: struct.Struct) -> tuple[int, ...]:
        """Return the payload's integers; raises FrontendFault if it has another length."""
        if len(self.payload) != form.size:
            raise FrontendFault("malformed vhost-user message", expected=form.size, actual=len(self.payload))
        return form.unpack(self.payload)

    def take_fd(self) -> int:
        """Return the one descriptor that came with the message, and its ownership."""
        if len(self.fds) != 1:
            raise FrontendFault("malformed vhost-user message", expected="1 descriptor", actual=len(self.fds))
        return self.fds.pop()

    def close(self) -> None:
        """Close every descriptor that nobody took."""
        while self.fds:
            os.close(self.fds.pop())


class Channel:
    """Messages from and replies to QEMU on a connected, non-blocking Unix socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._bytes = bytearray()
        self._fds: list[int] = []

    def receive(self) -> Message | None:
        """Return the next message, or None until more bytes come; raises EOFError when QEMU has gone."""
        while True:
            wanted = HEADER.size
            if len(self._bytes) >= HEADER.size:
                request, flags, size = HEADER.unpack_from(self._bytes)
                if flags & FLAG_VERSION_MASK != VERSION or flags & FLAG_REPLY or size > MAX_PAYLOAD:
                    raise FrontendFault("malformed vhost-user header")
                wanted += size
                if len(self._bytes) == wanted:
                    message = Message(request, flags, bytes(self._bytes[HEADER.size :]), self._fds)
                    self._bytes, self._fds = bytearray(), []
                    return message
            try:
                self._read(wanted - len(self._bytes))
            except BlockingIOError:
                return None

    def _read(self, count: int) -> None:
        ancillary_size = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(count, ancillary_size, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError as error:
            raise EOFError from error
        for level, kind, packed in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i")
                fds.frombytes(packed[: len(packed) - len(packed) % fds.itemsize])
                self._fds.extend(fds)
        if flags & socket.MSG_CTRUNC or len(self._fds) > MAX_FDS:
            raise FrontendFault("too many descriptors in a vhost-user message")
        if not data:
            raise EOFError
        self._bytes += data

    def reply(self, request: int, payload: bytes) -> None:
        """Answer `request`; a frontend that lets its few replies pile up unread is at fault."""
        message = HEADER.pack(request, VERSION | FLAG_REPLY, len(payload)) + payload
        try:
            sent = self._socket.send(message)
        except ConnectionError as error:
            raise EOFError from error
        except BlockingIOError:
            sent = 0
        if sent != len(message):
            raise FrontendFault("vhost-user replies are not read")

    def close(self) -> None:
        """Close descriptors of a message that never became whole; the socket is the caller's."""
        while self._fds:
            os.close(self._fds.pop())
