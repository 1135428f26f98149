# SPDX-License-Identifier: MIT
"""The process that workers are forked from: started before policy, TLS key and files existed, so that none of them is
in a worker's memory. It holds one control socket.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading

from .process_tools import become_child
from .task import MAX_TASK, Report, Task
from .warden import guard

START = b"start"
MAX_MODULE = 256 * 1024 * 1024  # bytes, compiled; a bound for reads, the file limits are lower


class ZygoteGone(Exception):
    """The zygote ended: no job can run any more, and the isolate has to stop."""


def read_all(descriptor: int, limit: int) -> bytes:
    """Return the whole content of a memory file."""
    size = os.fstat(descriptor).st_size
    if size > limit:
        raise ValueError("too long")
    parts = bytearray()
    while len(parts) < size and (chunk := os.pread(descriptor, size - len(parts), len(parts))):
        parts += chunk
    return bytes(parts)


def start_zygote() -> socket.socket:
    """Fork the zygote; return the runtime's end of its control socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        try:
            become_child(keep=(theirs.fileno(),))
            serve(theirs)
        finally:
            os._exit(0)
    theirs.close()
    return ours


def serve(control: socket.socket) -> None:
    """Load the engine, then fork one warden for each task, until the runtime goes away."""
    with contextlib.suppress(OSError):  # first the runtime's own start, where there is one processor
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    from . import engine  # noqa: F401 -- the engine is the zygote's alone, and loads while the runtime starts

    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for wardens
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, len(START), 4)
        if not message:
            return
        if message == START and len(descriptors) == 4 and os.fork() == 0:
            try:
                control.close()
                watch(*descriptors)
            finally:
                os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def watch(job_fd: int, task_fd: int, module_fd: int, artifact_fd: int) -> None:
    """Be the warden of one task."""
    from . import engine

    task = Task.decode(read_all(task_fd, MAX_TASK))
    run = task.run

    def body() -> Report:
        module = read_all(module_fd, MAX_MODULE)
        if run is not None:
            return engine.run_module(module, run)
        report, compiled = engine.compile_module(module)
        view = memoryview(compiled)
        while view:
            view = view[os.write(artifact_fd, view) :]
        return report

    guard(task, socket.socket(fileno=job_fd), body, keep=(module_fd, artifact_fd))


class Zygote:
    """The runtime's side of the control socket."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._lock = threading.Lock()

    def start(self, task: Task, *, module: int, artifact: int) -> socket.socket:
        """Start a worker on two memory files; return its job socket, which must be read to its end, then closed."""
        ours, theirs = socket.socketpair()
        plan = os.memfd_create("task", os.MFD_CLOEXEC)
        try:
            os.write(plan, task.encode())
            with self._lock:
                socket.send_fds(self._control, [START], [theirs.fileno(), plan, module, artifact])
        except OSError as error:
            ours.close()
            raise ZygoteGone from error
        finally:
            os.close(plan)
            theirs.close()
        return ours
