# SPDX-License-Identifier: MIT
"""Linux system calls that Python has no function for (os.unshare came with 3.12), by ctypes."""

from __future__ import annotations

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

# include/uapi/linux/sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# include/uapi/linux/mount.h
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

# include/uapi/linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2

# include/uapi/linux/openat2.h
SYS_OPENAT2 = 437  # the same number on every architecture (since 5.6)
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def unshare(flags: int) -> None:
    """Leave the namespaces named by CLONE_NEW* flags (unshare(2))."""
    _check(libc.unshare(ctypes.c_int(flags)))


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """Mount, move or remount (mount(2))."""
    _check(
        libc.mount(
            source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None
        )
    )


def unmount(target: str) -> None:
    """Detach a mount at once; it goes when its last user does (umount2(2))."""
    _check(libc.umount2(target.encode(), ctypes.c_int(MNT_DETACH)))


def prctl(option: int, value: int, pointer: object = None) -> None:
    """Set one property of the process (prctl(2))."""
    _check(
        libc.prctl(
            ctypes.c_int(option), ctypes.c_ulong(value), pointer or ctypes.c_ulong(0), ctypes.c_ulong(0),
            ctypes.c_ulong(0),
        )
    )  # fmt: skip


def open_beneath(directory: int, path: str, flags: int) -> int:
    """Open `path` under a directory's descriptor: no `..` out of it, no symbolic link anywhere (openat2(2))."""
    how = _OpenHow(flags | os.O_CLOEXEC, 0, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)
    return _check(
        libc.syscall(
            ctypes.c_long(SYS_OPENAT2), ctypes.c_int(directory), os.fsencode(path), ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
    )  # fmt: skip
