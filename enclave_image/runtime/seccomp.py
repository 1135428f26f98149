# SPDX-License-Identifier: MIT
"""The worker's system calls: a list of what an engine needs, everything else fails with EPERM.

Not on it: socket and its kin (neither a network namespace nor Landlock stops AF_VSOCK), ptrace and
process_vm_*, execve, fork (clone is for threads only), every ioctl, mount, bpf, io_uring, keyrings, kill of others: nor
by a descriptor whose owner is sent a signal, so of fcntl's commands a few are.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from .syscalls import PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, prctl

X32_BIT = 0x40000000  # system calls of x86's x32 ABI share the arch value

# include/uapi/linux/bpf_common.h, seccomp.h
LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
JUMP_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
JUMP_SET = 0x45  # BPF_JMP | BPF_JSET | BPF_K
RETURN = 0x06  # BPF_RET | BPF_K
RET_ALLOW = 0x7FFF0000
RET_ERRNO = 0x00050000
RET_KILL_PROCESS = 0x80000000
NUMBER, ARCH, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data

# include/uapi/linux/fcntl.h: copies, flags, seals; no owners and signals, leases, notifications
DESCRIPTOR_COMMANDS = {
    "F_DUPFD": 0, "F_GETFD": 1, "F_SETFD": 2, "F_GETFL": 3, "F_SETFL": 4, "F_DUPFD_CLOEXEC": 1030,
    "F_ADD_SEALS": 1033, "F_GET_SEALS": 1034,
}  # fmt: skip
RENAME_WHITEOUT = 4  # include/uapi/linux/fs.h: leaves a character device in the old place
CLONE_THREAD = 0x00010000
CLONE_NEW_ANY = 0x7E020000 | 0x02000000  # every CLONE_NEW* that clone(2) takes


@dataclass(frozen=True, slots=True)
class Abi:
    """How one processor numbers the system calls that are on the list, and those that are looked at closer."""

    audit: int  # AUDIT_ARCH_* of include/uapi/linux/audit.h
    clone: int
    clone3: int
    prlimit64: int
    fcntl: int
    renameat2: int
    allowed: Mapping[str, int]


# arch/x86/entry/syscalls/syscall_64.tbl
X86_64 = Abi(0xC000003E, clone=56, clone3=435, prlimit64=302, fcntl=72, renameat2=316, allowed={
    # files: all of them under the worker's own root, which holds its staging tree alone
    "read": 0, "write": 1, "close": 3, "fstat": 5, "lseek": 8, "pread64": 17, "pwrite64": 18, "readv": 19,
    "writev": 20, "dup": 32, "fsync": 74, "fdatasync": 75, "ftruncate": 77, "fadvise64": 221,
    "openat": 257, "mkdirat": 258, "newfstatat": 262, "unlinkat": 263, "renameat": 264, "readlinkat": 267,
    "utimensat": 280, "fallocate": 285, "dup3": 292, "preadv": 295, "pwritev": 296,
    "preadv2": 327, "pwritev2": 328, "statx": 332, "getdents64": 217, "openat2": 437, "close_range": 436,
    "fstatfs": 138,
    # memory: an engine makes code at run time, so mprotect with PROT_EXEC stays
    "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "mremap": 25, "madvise": 28, "memfd_create": 319,
    # threads and signals of its own
    "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "sched_yield": 24, "sigaltstack": 131,
    "gettid": 186, "futex": 202, "sched_getaffinity": 204, "set_robust_list": 273, "rseq": 334, "getpid": 39,
    "exit": 60, "exit_group": 231, "set_tid_address": 218, "restart_syscall": 219,
    # waiting and time
    "poll": 7, "nanosleep": 35, "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "ppoll": 271,
    "epoll_wait": 232, "epoll_ctl": 233, "epoll_create1": 291, "epoll_pwait": 281, "eventfd2": 290, "getrandom": 318,
})  # fmt: skip

# include/uapi/asm-generic/unistd.h; the older of two calls is missing there
AARCH64 = Abi(0xC00000B7, clone=220, clone3=435, prlimit64=261, fcntl=25, renameat2=276, allowed={
    "read": 63, "write": 64, "close": 57, "fstat": 80, "lseek": 62, "pread64": 67, "pwrite64": 68, "readv": 65,
    "writev": 66, "dup": 23, "fsync": 82, "fdatasync": 83, "ftruncate": 46, "fadvise64": 223,
    "openat": 56, "mkdirat": 34, "newfstatat": 79, "unlinkat": 35, "renameat": 38, "readlinkat": 78,
    "utimensat": 88, "fallocate": 47, "dup3": 24, "preadv": 69, "pwritev": 70,
    "preadv2": 286, "pwritev2": 287, "statx": 291, "getdents64": 61, "openat2": 437, "close_range": 436,
    "fstatfs": 44,
    # and the barrier after which every core sees the code that the engine has made
    "mmap": 222, "mprotect": 226, "munmap": 215, "brk": 214, "mremap": 216, "madvise": 233, "memfd_create": 279,
    "membarrier": 283,
    "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "sched_yield": 124, "sigaltstack": 132,
    "gettid": 178, "futex": 98, "sched_getaffinity": 123, "set_robust_list": 99, "rseq": 293, "getpid": 172,
    "exit": 93, "exit_group": 94, "set_tid_address": 96, "restart_syscall": 128,
    "nanosleep": 101, "clock_gettime": 113, "clock_getres": 114, "clock_nanosleep": 115, "ppoll": 73,
    "epoll_ctl": 21, "epoll_create1": 20, "epoll_pwait": 22, "eventfd2": 19, "getrandom": 278,
})  # fmt: skip

ABIS: dict[str, Abi] = {"x86_64": X86_64, "aarch64": AARCH64}  # by what platform.machine() says


class NoFilter(Exception):
    """There is no system call list for this processor."""


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value & 0xFFFFFFFF)  # struct sock_filter


def make_filter(abi: Abi) -> bytes:
    """Return the BPF program for a processor."""
    allow = _step(RETURN, RET_ALLOW)
    refuse = _step(RETURN, RET_ERRNO | errno.EPERM)
    steps = [
        _step(LOAD, ARCH),
        _step(JUMP_EQUAL, abi.audit, yes=1),
        _step(RETURN, RET_KILL_PROCESS),
        _step(LOAD, NUMBER),
        _step(JUMP_AT_LEAST, X32_BIT, no=1),
        _step(RETURN, RET_KILL_PROCESS),
        # glibc falls back to clone(2), whose flags a filter can read
        _step(JUMP_EQUAL, abi.clone3, no=1),
        _step(RETURN, RET_ERRNO | errno.ENOSYS),
        _step(JUMP_EQUAL, abi.clone, no=5),
        _step(LOAD, ARGUMENTS),
        _step(JUMP_SET, CLONE_NEW_ANY, yes=2),
        _step(JUMP_SET, CLONE_THREAD, no=1),
        allow,
        refuse,
        # prlimit64(0, resource, NULL, old): reading one's own limits, as pthread_getattr_np does
        _step(JUMP_EQUAL, abi.prlimit64, no=8),
        _step(LOAD, ARGUMENTS),
        _step(JUMP_EQUAL, 0, no=5),
        _step(LOAD, ARGUMENTS + 2 * 8),
        _step(JUMP_EQUAL, 0, no=3),
        _step(LOAD, ARGUMENTS + 2 * 8 + 4),
        _step(JUMP_EQUAL, 0, no=1),
        allow,
        refuse,
    ]
    commands = [_step(JUMP_EQUAL, command, no=1) + allow for command in DESCRIPTOR_COMMANDS.values()]
    steps += [
        _step(JUMP_EQUAL, abi.fcntl, no=2 * len(commands) + 2),
        _step(LOAD, ARGUMENTS + 8),
        *commands,
        refuse,
        _step(JUMP_EQUAL, abi.renameat2, no=4),
        _step(LOAD, ARGUMENTS + 4 * 8),
        _step(JUMP_SET, RENAME_WHITEOUT, no=1),
        refuse,
        allow,
    ]
    for number in sorted(abi.allowed.values()):
        steps += [_step(JUMP_EQUAL, number, no=1), allow]
    return b"".join([*steps, refuse])


def install() -> None:
    """Set no_new_privs and the filter for this process and every thread that it starts; raise OSError or NoFilter."""
    abi = ABIS.get(platform.machine())
    if abi is None:
        raise NoFilter
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    code = make_filter(abi)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(buffer))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program))
