# SPDX-License-Identifier: MIT
"""The walls around a worker, built from inside it, in the order in which they can be built.

The warden gives a PID namespace (it begins with the next fork); `enter` does the rest: cgroup, namespaces, a root that
is the staging tree alone, limits, a uid of its own, no_new_privs and the system call list. After it the process can
only compute and touch files in its tree.

In an image every wall must stand or the job is not run. In a `process` isolate each stands as far as the host lets it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

from . import seccomp
from .syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
    MS_BIND,
    MS_MOVE,
    MS_PRIVATE,
    MS_REC,
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    mount,
    prctl,
    unshare,
)
from .task import Jail

MAX_THREADS = 32
MAX_DESCRIPTORS = 256


class NoJail(Exception):
    """A wall that is demanded could not be built."""


@contextlib.contextmanager
def _wall(jail: Jail) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, seccomp.NoFilter) as error:
        if jail.strict:
            raise NoJail from error


def leave_pid_namespace(jail: Jail) -> None:
    """Let the next child of this process be the first of a PID namespace of its own."""
    if jail.uid is not None:
        with _wall(jail):
            unshare(CLONE_NEWPID)


def enter(jail: Jail) -> None:
    """Build all walls around the calling process; raise NoJail where a strict one cannot stand."""
    if jail.strict and jail.uid is None:
        raise NoJail
    if jail.cgroup is not None:
        with _wall(jail):
            Path(jail.cgroup, "cgroup.procs").write_text("0")
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out, a guest goes first
    own_mounts = False
    if jail.uid is not None:
        with _wall(jail):
            unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP)
            own_mounts = True
    rooted = _change_root(jail, own_mounts=own_mounts)
    for kind, limit in _limits(jail):
        with _wall(jail):
            resource.setrlimit(kind, (limit, limit))
    if jail.uid is not None and rooted:  # outside its own root another uid could not even reach its tree
        with _wall(jail):
            os.setgroups([])
            os.setresgid(jail.uid, jail.uid, jail.uid)
            os.setresuid(jail.uid, jail.uid, jail.uid)
    os.umask(0o077)
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # again: a change of uid clears it
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    with _wall(jail):
        seccomp.install()


def _limits(jail: Jail) -> list[tuple[int, int]]:
    limits = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, jail.file_bytes),
        (resource.RLIMIT_NOFILE, MAX_DESCRIPTORS),
        (resource.RLIMIT_CPU, jail.cpu_s),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ]
    if jail.uid is not None:  # counted by uid: an ordinary user's own processes would count too
        limits.append((resource.RLIMIT_NPROC, MAX_THREADS))
    return limits


def _change_root(jail: Jail, *, own_mounts: bool) -> bool:
    """Make the tree the root: moved over / where mounts can be made (an initramfs has no pivot_root), and chroot."""
    os.chdir(jail.root)
    if jail.uid is None:
        return False
    if own_mounts:
        with _wall(jail):
            mount("", "/", flags=MS_REC | MS_PRIVATE)
            mount(jail.root, jail.root, flags=MS_BIND)
            os.chdir(jail.root)
            mount(".", "/", flags=MS_MOVE)
    with _wall(jail):
        os.chroot(".")
        os.chdir("/")
        return True
    return False
