# SPDX-License-Identifier: MIT
"""The header of a vsock packet (virtio 1.2, 5.10.6) and the constants in it."""

from __future__ import annotations

import struct
from typing import NamedTuple

HEADER = struct.Struct("<QQIIIHHIII")
HEADER_SIZE = 44
MAX_PAYLOAD = 64 * 1024  # bytes of one packet; Linux VIRTIO_VSOCK_MAX_PKT_BUF_SIZE

STREAM = 1
PARENT_CIDS = (3, 2)  # Nitro's parent instance; the host elsewhere

INVALID, REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = range(8)
SHUTDOWN_RECEIVE, SHUTDOWN_SEND = 1, 2  # the sender of the packet will not receive (send) any more
SHUTDOWN_BOTH = SHUTDOWN_RECEIVE | SHUTDOWN_SEND


class Header(NamedTuple):
    """One packet's header, in the order of its bytes."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    length: int
    type: int
    op: int
    flags: int
    buf_alloc: int
    fwd_cnt: int


class Address(NamedTuple):
    """What names a stream of the guest: the parent's CID as the guest sees it, and a port of each."""

    parent_cid: int
    parent_port: int
    guest_port: int


def split(views: list[memoryview], count: int) -> tuple[list[memoryview], list[memoryview]]:
    """Cut a scatter list after `count` bytes (or at its end)."""
    before: list[memoryview] = []
    for index, view in enumerate(views):
        if count < len(view):
            rest = [view[count:], *views[index + 1 :]]
            return ([*before, view[:count]] if count else before), rest
        before.append(view)
        count -= len(view)
    return before, []
