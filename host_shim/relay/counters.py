# SPDX-License-Identifier: MIT
"""What the relay counts, published where another process can read it (host_shim.board)."""

from __future__ import annotations

from dataclasses import dataclass

PUBLISHED_EVERY = 1.0  # seconds


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
