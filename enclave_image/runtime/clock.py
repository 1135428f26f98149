# SPDX-License-Identifier: MIT
"""The isolate's only clock: the NSM's timestamp. It never runs back, and no answer means that the time is over.

The kernel's clock belongs to the host, so it is used for two things alone: CLOCK_BOOTTIME to tell that an answer is
still fresh, and CLOCK_REALTIME, which is set from the NSM, by OpenSSL for the dates in certificates.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

FRESH = 60.0  # seconds that one answer serves


class ClockFailed(Exception):
    """The NSM gave no time, or one before its last."""


class TimeSource(Protocol):
    """Who knows the time: the attestor."""

    def time(self) -> int:
        """Return milliseconds since 1970; raise any exception where there is no answer."""


def boottime() -> float:
    """Return seconds since boot, suspension included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Clock:
    """Monotonic NSM time with a cache of under a minute."""

    def __init__(self, source: TimeSource, *, since_boot: Callable[[], float] = boottime) -> None:
        self._source = source
        self._since_boot = since_boot
        self._lock = threading.Lock()
        self._stamp = 0  # ms; the NSM's last answer
        self._asked = 0.0  # s since boot, taken before the question: age is never understated
        self._highest = 0  # ms; the latest time given to anybody

    def now(self) -> int:
        """Return milliseconds since 1970; raise ClockFailed."""
        with self._lock:
            before = self._since_boot()
            if not self._stamp or not 0 <= before - self._asked < FRESH:
                try:
                    stamp = self._source.time()
                except Exception as error:  # whatever it was, there is no time
                    raise ClockFailed from error
                if stamp < self._stamp:
                    raise ClockFailed
                self._stamp, self._asked = stamp, before
            age = int((self._since_boot() - self._asked) * 1000)
            self._highest = max(self._highest, self._stamp + max(age, 0))
            return self._highest

    def passed(self, moment: datetime | None) -> bool:
        """Return whether a moment has come; without a moment it never comes, but there must still be a time."""
        now = self.now()
        return moment is not None and datetime.fromtimestamp(now / 1000, UTC) >= moment


def set_system_clock(milliseconds: int) -> None:
    """Set CLOCK_REALTIME, in an image only."""
    time.clock_settime(time.CLOCK_REALTIME, milliseconds / 1000)
