# SPDX-License-Identifier: MIT
"""How a start tells of itself: each step as it happens, with its time, to the user and to supervisor.log."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from attestation.errors import VeracruzError
from attestation.files import write_whole

from .console_log import previous

MAX_LOG = 1024 * 1024  # bytes of supervisor.log, and of supervisor.log.1, which has what came before


class Report:
    """Shows lines through `show`, and writes them to a log once there is one."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show: Callable[[str], None] | None = show
        self._start = time.monotonic()
        self._log = -1
        self._path = Path()

    @property
    def elapsed(self) -> float:
        """Seconds since the command began."""
        return time.monotonic() - self._start

    def log_to(self, path: Path, *, keep: bool = False) -> int:
        """Log to a file from now on; return its descriptor, for helpers that write there too.

        What stands there is removed, unless `keep`: it is of the same isolate.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | (0 if keep else os.O_TRUNC)
        self._log, self._path = os.open(path, flags, 0o600), path
        return self._log

    def step(self, text: str) -> None:
        """Tell that something has happened."""
        self._tell(f"{self.elapsed:7.2f} s  {text}")

    def note(self, text: str) -> None:
        """Tell something that the user must know."""
        self._tell(f"   note:    {text}")

    def log(self, text: str) -> None:
        """Write to the log alone."""
        if self._log >= 0:
            self.trim()
            line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n".encode("ascii", "backslashreplace")
            with contextlib.suppress(OSError):  # a full disk does not end an isolate
                os.write(self._log, line)

    def trim(self) -> None:
        """Copy a log that is full aside and empty it: helpers hold it open, and append.

        What strangers do makes lines of helpers' (refused connections, egress), so that its owner must look at times.
        """
        size = os.fstat(self._log).st_size if self._log >= 0 else 0
        if size <= MAX_LOG:
            return
        with contextlib.suppress(OSError, VeracruzError):  # a full disk: then the older lines are lost
            write_whole(previous(self._path), os.pread(self._log, MAX_LOG, size - MAX_LOG), mode=0o600)
        with contextlib.suppress(OSError):
            os.ftruncate(self._log, 0)

    def hush(self) -> None:
        """Show no more; the log goes on."""
        self._show = None

    def close(self) -> None:
        """Close the log."""
        if self._log >= 0:
            os.close(self._log)
            self._log = -1

    def _tell(self, line: str) -> None:
        self.log(line)
        if self._show is not None:
            with contextlib.suppress(OSError):  # a closed terminal does not end an isolate
                self._show(line)
