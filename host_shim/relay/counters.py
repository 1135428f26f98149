# SPDX-License-Identifier: MIT
"""What the relay counts, where another process can read it: numbers in a shared file, no requests, no waiting.

Layout, little-endian unsigned 64-bit: magic, sequence, then the counters in the order of NAMES. The sequence is odd
while they are written; a reader takes them when it was even and has not changed.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass, fields

MAGIC = 0x3159414C45525A56  # "VZRELAY1"
PUBLISHED_EVERY = 1.0  # seconds
ATTEMPTS = 100  # at a consistent reading; one writing takes microseconds


@dataclass(slots=True)
class Counters:
    """Since the relay's start, but for `open`. Bytes are those that the receiving side has taken."""

    accepted: int = 0
    open: int = 0  # now, whatever they wait for
    bytes_in: int = 0  # from clients to the isolate
    bytes_out: int = 0
    finished: int = 0  # both sides ended as they should
    broken: int = 0  # one side broke off; the other was told by a reset
    refused_source: int = 0  # one source has as many as it may
    refused_proxy: int = 0  # no PROXY header, a malformed one, or from whom none is taken
    refused_target: int = 0  # the isolate's side did not take it
    refused_late: int = 0  # ... or not within the time for it
    cut_idle: int = 0
    cut_drain: int = 0
    short_of_descriptors: int = 0  # times that accepting or connecting had to wait for a descriptor or memory

    @property
    def refused(self) -> int:
        """All that were accepted by the kernel and never reached the isolate."""
        return self.refused_source + self.refused_proxy + self.refused_target + self.refused_late


NAMES = tuple(field.name for field in fields(Counters))
_FORM = struct.Struct(f"<{len(NAMES)}Q")
_HEAD = struct.Struct("<QQ")
SIZE = _HEAD.size + _FORM.size


class Board:
    """Publishes counters in a file that its owner and the reader share."""

    def __init__(self, descriptor: int) -> None:
        os.ftruncate(descriptor, SIZE)
        self._map = mmap.mmap(descriptor, SIZE)
        self._sequence = 0

    def publish(self, counters: Counters) -> None:
        """Write what they are now."""
        _HEAD.pack_into(self._map, 0, MAGIC, self._sequence + 1)
        _FORM.pack_into(self._map, _HEAD.size, *(getattr(counters, name) for name in NAMES))
        self._sequence += 2
        _HEAD.pack_into(self._map, 0, MAGIC, self._sequence)

    def close(self) -> None:
        """Let go of the file; what stands in it stays."""
        self._map.close()


def read_counters(descriptor: int) -> Counters | None:
    """Return the counters that a relay published last; None if there are none (yet)."""
    for _ in range(ATTEMPTS):
        raw = os.pread(descriptor, SIZE, 0)
        if len(raw) < SIZE:
            return None
        magic, sequence = _HEAD.unpack_from(raw)
        if magic != MAGIC or sequence == 0:
            return None
        again = os.pread(descriptor, _HEAD.size, 0)
        if sequence % 2 == 0 and again == raw[: _HEAD.size]:
            return Counters(*_FORM.unpack_from(raw, _HEAD.size))
    return None
