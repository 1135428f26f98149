# SPDX-License-Identifier: MIT
"""What differs between a booted image and a `process` isolate; everything else is one code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .transport import Transport


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where the runtime finds itself."""

    transport: Transport
    device: str | None  # the NSM's device node; None: the emulator alone
    directory: Path  # for files and trees; on a tmpfs in an image
    is_image: bool  # sets the clock, prepares control groups, and runs no job in a jail with a wall missing
    is_root: bool  # without it there is no uid for each job
    trace: bool = False  # tracebacks on stderr, for those who work on the runtime; never in an image
