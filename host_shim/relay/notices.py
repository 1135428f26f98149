# SPDX-License-Identifier: MIT
"""What the relay logs: one line a second for each kind of refusal, however many there are; connections if asked."""

from __future__ import annotations

import time
from collections.abc import Callable

from attestation.errors import escape

from .connection import Connection

MOST_KINDS = 16  # lines in one second; a stranger's header is part of some


class Notices:
    """Lines go to `tell`, printable ASCII, without payload."""

    def __init__(self, tell: Callable[[str], None], *, connections: bool) -> None:
        self._tell = tell
        self._connections = connections
        self._noted: dict[str, tuple[int, str]] = {}
        self._since: dict[int, float] = {}
        escape("")  # loads its codec now: there may be no descriptor left to open the file with

    def say(self, text: str) -> None:
        """Tell at once."""
        self._tell(escape(text))

    def note(self, what: str, source: str) -> None:
        """Tell with the next flush, together with its like."""
        if what in self._noted or len(self._noted) < MOST_KINDS:
            self._noted[what] = (self._noted.get(what, (0, ""))[0] + 1, source)

    def flush(self) -> None:
        """Tell what was noted."""
        for what, (count, source) in self._noted.items():
            times = f" ({count} times)" if count > 1 else ""
            self.say(f"{what}{times}{', last ' + source if source else ''}")
        self._noted.clear()

    def opened(self, connection: Connection) -> None:
        """Tell of a connection if that was asked for."""
        if self._connections:
            self._since[id(connection)] = time.monotonic()
            self.say(f"{connection.source.text}: open")

    def closed(self, connection: Connection, how: str, *, at: float) -> None:
        """Tell how it went."""
        if self._connections:
            seconds = at - self._since.pop(id(connection), at)
            inward, outward = connection.inward.moved, connection.outward.moved
            self.say(f"{connection.source.text}: {how}, {inward} bytes in, {outward} out, {seconds:.1f} s")
