# SPDX-License-Identifier: MIT
"""Run a command inside a directory as its whole world: no network, no host file, no root needed.

Executed as a script of its own (`python -I sandbox.py ROOT -- COMMAND...`), so that no thread of the caller's is alive
when the namespaces change. Order of means: an unprivileged user namespace; for root a plain chroot where namespaces
are forbidden (Docker's default seccomp); else exit code 97, which `sandboxed` turns into NoSandbox.
The root directory already holds everything, so no mount is needed but /dev/null.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import stat
import sys

EXIT_NO_SANDBOX = 97
HOST_NAME = b"build"  # uname -n inside, so that the machine's name cannot leak into a product

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
PR_SET_PDEATHSIG = 1


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _write(path: str, text: str) -> None:
    with open(path, "w") as stream:  # noqa: PTH123 -- /proc, in a script that imports as little as it can
        stream.write(text)


def _enter_namespaces() -> None:
    libc = _libc()
    uid, gid = os.geteuid(), os.getegid()
    flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC
    _check(libc.unshare(flags), "unshare")
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"0 {uid} 1\n")
    _write("/proc/self/gid_map", f"0 {gid} 1\n")
    _check(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None), "mount private")
    _check(libc.sethostname(HOST_NAME, len(HOST_NAME)), "sethostname")


def _bind_dev_null(root: str) -> None:
    target = os.path.join(root, "dev/null")  # noqa: PTH118
    os.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH103, PTH120
    if not os.path.exists(target):  # noqa: PTH110
        _write(target, "")
    _check(_libc().mount(b"/dev/null", target.encode(), None, MS_BIND, None), "bind /dev/null")


def _make_dev_null(root: str) -> None:
    target = os.path.join(root, "dev/null")  # noqa: PTH118
    os.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH103, PTH120
    with contextlib.suppress(FileNotFoundError):
        os.unlink(target)  # noqa: PTH108
    os.mknod(target, 0o666 | stat.S_IFCHR, os.makedev(1, 3))


def main(argv: list[str]) -> int:
    """Enter `argv[0]` and execute the words after `--` there with the caller's environment."""
    root, command = argv[0], argv[2:]
    os.umask(0o022)
    _libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        _enter_namespaces()
        _bind_dev_null(root)
    except OSError as error:
        if os.geteuid() != 0:
            print(f"sandbox: {error}", file=sys.stderr)
            return EXIT_NO_SANDBOX
        try:
            _make_dev_null(root)
        except OSError as second:
            print(f"sandbox: {error}; {second}", file=sys.stderr)
            return EXIT_NO_SANDBOX
    child = os.fork()  # the first process of the new PID namespace: when it ends, all of its children end
    if child == 0:
        _libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.chroot(root)
        os.chdir("/")
        program = command[0] if "/" in command[0] else f"/usr/bin/{command[0]}"
        os.execve(program, command, dict(os.environ))
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) & 0xFF


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
