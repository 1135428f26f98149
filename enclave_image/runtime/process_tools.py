# SPDX-License-Identifier: MIT
"""What every child of the runtime does first: die with its parent, keep only its own descriptors, say nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable

from .syscalls import PR_SET_DUMPABLE, PR_SET_PDEATHSIG, prctl

FIRST_DESCRIPTOR = 3
HIGHEST_DESCRIPTOR = 1 << 20  # above every limit on them; one close_range(2), however many there are


def silence() -> None:
    """Point the standard streams at nothing: outside TLS only event codes leave the isolate."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    if null > 2:
        os.close(null)


def close_all_but(keep: Iterable[int]) -> None:
    """Close every inherited descriptor from 3 on that is not in `keep`."""
    low = FIRST_DESCRIPTOR
    for descriptor in sorted(set(keep)):
        if descriptor > low:
            os.closerange(low, descriptor)
        low = max(low, descriptor + 1)
    os.closerange(low, max(HIGHEST_DESCRIPTOR, low))


def become_child(*, keep: Iterable[int]) -> None:
    """Called right after fork in the child: nothing that the parent held stays reachable by accident."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl(PR_SET_DUMPABLE, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the runtime decides when children end
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    silence()
    close_all_but(keep)
