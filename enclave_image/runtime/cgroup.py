# SPDX-License-Identifier: MIT
"""Control groups, version 2: memory and number of threads of one worker, and the kill that reaches all of it."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
JOBS = MOUNT / "jobs"
CONTROLLERS = "+memory +pids"
MAX_TASKS = 32
REMOVE_TRIES = 100
REMOVE_PAUSE = 0.01  # seconds; a killed group empties as its members are reaped


def prepare() -> None:
    """Let the groups of jobs have controllers, in an image; raise OSError."""
    (MOUNT / "cgroup.subtree_control").write_text(CONTROLLERS)
    JOBS.mkdir(exist_ok=True)
    (JOBS / "cgroup.subtree_control").write_text(CONTROLLERS)


def make(path: Path, *, memory_bytes: int) -> None:
    """Make one worker's group; raise OSError."""
    path.mkdir()
    (path / "memory.max").write_text(str(memory_bytes))
    (path / "memory.oom.group").write_text("1")
    (path / "pids.max").write_text(str(MAX_TASKS))
    with contextlib.suppress(OSError):  # there is no swap in an image
        (path / "memory.swap.max").write_text("0")


def kill(path: Path) -> None:
    """Kill every member (since Linux 5.14)."""
    with contextlib.suppress(OSError):
        (path / "cgroup.kill").write_text("1")


def peak(path: Path) -> int:
    """Return the most memory in bytes that was in use, 0 where it is not known (memory.peak: since Linux 5.19)."""
    try:
        return int((path / "memory.peak").read_text())
    except (OSError, ValueError):
        return 0


def ran_out_of_memory(path: Path) -> bool:
    """Return whether the kernel killed a member for lack of memory."""
    try:
        fields = dict(line.split() for line in (path / "memory.events").read_text().splitlines())
        return int(fields.get("oom_kill", "0")) > 0
    except (OSError, ValueError):
        return False


def remove(path: Path) -> None:
    """Remove an emptied group."""
    for _ in range(REMOVE_TRIES):
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(REMOVE_PAUSE)
        else:
            return
