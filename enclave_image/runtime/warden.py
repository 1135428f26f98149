# SPDX-License-Identifier: MIT
"""One process per worker that stays outside its jail: it starts the worker, ends it in time, and tells how it ended.

Forked from the zygote, it has never held policy, key or files. Its job socket is its only tie to the runtime: an end
of stream there means cancel, one report goes back.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from . import cgroup, jail
from .process_tools import close_all_but
from .syscalls import PR_SET_PDEATHSIG, prctl
from .task import MAX_REPORT, Ending, Report, Task

Body = Callable[[], Report]


def guard(task: Task, job: socket.socket, body: Body, *, keep: tuple[int, ...]) -> None:
    """Run `body` in a worker in its jail and report its end on the job socket.

    What runs in the jail is an argument, so that a probe can stand in the engine's place in the very same jail.
    """
    started = time.monotonic()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    group = None if task.jail.cgroup is None else Path(task.jail.cgroup)
    reading, writing = os.pipe2(os.O_CLOEXEC)
    worker = None
    try:
        if group is not None:
            cgroup.make(group, memory_bytes=task.jail.memory_bytes)
        jail.leave_pid_namespace(task.jail)
        worker = os.fork()
    except (OSError, jail.NoJail):
        _send(job, Report(None, Ending.ENGINE, 0))
    if worker == 0:
        _work(task, body, writing, keep)
    os.close(writing)
    if worker is not None:
        ending = _wait(worker, job, deadline=started + task.wall_s)
        if group is not None:
            cgroup.kill(group)
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
        _, status, usage = os.wait4(worker, 0)
        if ending is None and _spent_all(status, usage.ru_utime + usage.ru_stime, task.jail.cpu_s):
            ending = Ending.WALL
        report = _judge(reading, status, ending, out_of_memory=group is not None and cgroup.ran_out_of_memory(group))
        peak = (cgroup.peak(group) if group is not None else 0) or usage.ru_maxrss * 1024
        wall = int((time.monotonic() - started) * 1000)
        _send(job, replace(report, wall_ms=wall, memory_bytes=peak))
    if group is not None:
        cgroup.remove(group)


def _work(task: Task, body: Body, writing: int, keep: tuple[int, ...]) -> None:
    """Be the worker; never returns."""
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        close_all_but((writing, *keep))
        try:
            jail.enter(task.jail)
            report = body()
        except BaseException:  # whatever it was: it is told by one word
            report = Report(None, Ending.ENGINE, 0)
        os.write(writing, report.encode())
    finally:
        os._exit(0)


def _wait(worker: int, job: socket.socket, *, deadline: float) -> Ending | None:
    """Wait until the worker ends by itself (None), its time is over, or the runtime lets go of the job."""
    pidfd = os.pidfd_open(worker)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(job, select.POLLIN | select.POLLRDHUP)
        left = max(deadline - time.monotonic(), 0)
        ready = {descriptor for descriptor, _ in poll.poll(left * 1000)}
        if pidfd in ready:
            return None
        return Ending.CANCELLED if ready else Ending.WALL
    finally:
        os.close(pidfd)


def _spent_all(status: int, spent: float, limit: float) -> bool:
    """Whether the kernel has killed who used up its processor time (seconds): it counts by the tick, a few % more."""
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and spent >= 0.9 * limit


def _judge(reading: int, status: int, ending: Ending | None, *, out_of_memory: bool) -> Report:
    """Return the worker's report where it is to be had, else the reason why there is none."""
    if ending is not None:
        return Report(None, ending, 0)
    if os.WIFSIGNALED(status):
        if out_of_memory:
            return Report(None, Ending.MEMORY, 0)
        return Report(None, Ending.KILLED, 0)
    os.set_blocking(reading, False)
    try:
        report = Report.decode(os.read(reading, MAX_REPORT + 1))
    except (OSError, ValueError):
        return Report(None, Ending.KILLED, 0)
    return report


def _send(job: socket.socket, report: Report) -> None:
    with contextlib.suppress(OSError):
        job.sendall(report.encode())
        job.shutdown(socket.SHUT_WR)
