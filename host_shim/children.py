# SPDX-License-Identifier: MIT
"""The one door for processes that the host shim starts: none outlives its parent, none is mistaken for another."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

GRACE = 5.0  # seconds between SIGTERM and SIGKILL
PR_SET_PDEATHSIG = 1  # prctl(2)
GONE = 256  # the exit code of a process that is not our child: it is not told to us
START_TIME_FIELD = 22  # proc_pid_stat(5): starttime

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process, not just its number: numbers are used again, start times are not."""

    pid: int
    start: int  # clock ticks after boot

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """Return the identity of the process that has this number now; None if there is none (or only a zombie)."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
        except OSError:
            return None
        fields = stat[stat.rindex(")") + 2 :].split()  # the name before it may hold anything
        if fields[0] in "ZX":
            return None
        return cls(pid, int(fields[START_TIME_FIELD - 3]))

    @property
    def alive(self) -> bool:
        """Whether exactly this process still runs."""
        return ProcessId.of(self.pid) == self

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal to exactly this process; return False if it is gone."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except OSError:
            return False
        try:
            if not self.alive:  # looked at while the descriptor holds the number
                return False
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True


def _tie_to(parent: int) -> None:
    """Run in the child before exec: die with the parent."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died meanwhile
        os._exit(1)


class Process(Protocol):
    """What ends when the isolate does, or brings its end about: a child of ours, or a process that others started."""

    name: str
    lives_on: bool  # whether it may go on once it was stopped: it is not ours, and did not answer

    @property
    def pid(self) -> int:
        """Its number."""

    @property
    def identity(self) -> ProcessId | None:
        """The process as others can recognise it; None once it has ended."""

    async def wait(self) -> int:
        """Return the exit code once it ends (negative: the signal)."""

    async def stop(self) -> None:
        """End it, kindly first."""

    def kill(self) -> None:
        """End it at once."""


class Child:
    """A process of ours in a process group of its own, so that the terminal's Ctrl-C reaches the supervisor alone."""

    lives_on = False

    def __init__(
        self,
        command: Sequence[str],
        *,
        name: str,
        stdout: int = subprocess.DEVNULL,
        stderr: int = subprocess.DEVNULL,
        pass_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        parent = os.getpid()
        # preexec_fn is safe here: the supervisor has one thread.
        self._popen = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            pass_fds=tuple(pass_fds),
            process_group=0,
            preexec_fn=lambda: _tie_to(parent),
            env=None if environment is None else {**os.environ, **environment},
        )
        self._ended: asyncio.Future[int] | None = None

    @property
    def pid(self) -> int:
        """Its number."""
        return self._popen.pid

    @property
    def identity(self) -> ProcessId | None:
        """The process as others can recognise it."""
        return ProcessId.of(self.pid)

    async def wait(self) -> int:
        """Return the exit code once it ends (negative: the signal)."""
        if self._popen.poll() is None:
            if self._ended is None:
                self._watch()
            assert self._ended is not None
            return await asyncio.shield(self._ended)
        return self._popen.returncode

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        ended = self._ended = loop.create_future()
        descriptor = os.pidfd_open(self.pid)

        def reap() -> None:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            code = self._popen.wait()
            if not ended.done():
                ended.set_result(code)

        loop.add_reader(descriptor, reap)

    async def stop(self, grace: float = GRACE) -> None:
        """End it: SIGTERM, then SIGKILL to all that it started."""
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.wait(), grace)
        self.kill()
        await self.wait()

    def kill(self) -> None:
        """Kill it and all that it started in its group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs one of our modules, from wherever this one was loaded.

    -P keeps the working directory off the module path; our own place is added for a checkout that is not installed.
    """
    place = str(Path(__file__).resolve().parent.parent)
    start = f"import runpy, sys; sys.path.insert(0, {place!r}); runpy.run_module({module!r}, run_name='__main__')"
    return [sys.executable, "-P", "-c", start, *arguments]
