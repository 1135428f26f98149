# SPDX-License-Identifier: MIT
"""Stands in the engine's place in a changed image: native code in the worker's jail, up to no good.

It does what /input/open/plan says and writes what it saw to /output/probe.json. What it searches for in memory it
holds in two halves that never lie side by side, so that it does not find itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import signal
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from enclave_image.runtime.canaries import CANARIES, CONTROL  # type: ignore[import-not-found]

from enclave_image.runtime import real_engine  # type: ignore[attr-defined]
from enclave_image.runtime.task import Report, Run, Task

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.pwrite.restype = ctypes.c_ssize_t
libc.sbrk.restype = ctypes.c_void_p

PLAN, OUTPUT = "tree/input/open/plan", "tree/output"
AT_FDCWD = -100
X32 = 0x40000000  # __X32_SYSCALL_BIT
USER32 = 0x23  # __USER32_CS
MAP_32BIT = 0x40
CHUNK, OVERLAP = 1 << 20, 64
kept: list[bytes] = []  # what is in every worker's memory, to show that the search finds things
mappings: list[tuple[int, int, str]] = []
family: dict[str, int] = {}

OUTSIDE = (
    "/dev", "/dev/nsm", "/dev/vsock", "/dev/mem", "/dev/kmsg", "/dev/console", "/dev/ttyS0", "/dev/null",
    "/dev/random", "/dev/shm", "/proc", "/proc/self/maps", "/proc/1/environ", "/proc/1/mem", "/sys", "/sys/fs/cgroup",
    "/app", "/app/start.pyc", "/usr", "/usr/bin/python3.13", "/init", "/run", "/run/veracruz/store",
    "/run/veracruz/store/1", "/run/veracruz/stage", "/tmp", "/etc", "../dev/nsm", "../../../../../../proc/self/maps",
    "tree/../../dev/nsm", "tree/input/alice", "tree/input/alice/secret", "tree/input/bob", "tree/input/bob/secret",
    "tree/program", "tree/program/probe.wasm",
)  # fmt: skip

FAMILIES = {
    "AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16, "AF_PACKET": 17, "AF_ALG": 38, "AF_VSOCK": 40,
}  # fmt: skip
SIGCHLD = 17
NAMESPACES = {
    "mount": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000, "pid": 0x20000000,
    "net": 0x40000000, "time": 0x80,
}  # fmt: skip
# A system call and arguments with which it would work for somebody: what must refuse it is the list, not the arguments.
CALLS: dict[str, tuple[Any, ...]] = {
    "open": (2, b"tree", 0, 0), "fchdir": (81, 0), "chdir": (80, b".."), "chroot": (161, b"."),
    "pivot_root": (155, b".", b"."), "mount": (165, b"x", b"tree", b"tmpfs", 0, 0), "umount2": (166, b"/", 2),
    "move_mount": (429, AT_FDCWD, b".", AT_FDCWD, b"tree", 0), "open_tree": (428, AT_FDCWD, b".", 1),
    "fsopen": (430, b"tmpfs", 0), "setns": (308, 0, 0), "fork": (57,), "vfork": (58,),
    "clone-fork": (56, SIGCHLD, 0, 0, 0, 0), "clone3": (435, 0, 0), "execve": (59, b"/init", 0, 0),
    "execveat": (322, AT_FDCWD, b"/init", 0, 0, 0), "socketpair": (53, 1, 1, 0, bytes(8)),
    "ptrace-traceme": (101, 0, 0, 0, 0), "ptrace-attach-1": (101, 16, 1, 0, 0),
    "ptrace-seize-2": (101, 0x4206, 2, 0, 0),
    "process_vm_readv": (310, 1, bytes(16), 0, bytes(16), 0, 0), "process_vm_writev": (311, 1, 0, 0, 0, 0, 0),
    "pidfd_open": (434, 1, 0), "pidfd_getfd": (438, 0, 0, 0), "pidfd_send_signal": (424, 0, 0, 0, 0),
    "kill-1": (62, 1, 0), "kill-2": (62, 2, 9), "kill-all": (62, -1, 9), "kill-group": (62, 0, 0),
    "tkill": (200, 1, 0), "tgkill": (234, 1, 1, 0), "rt_sigqueueinfo": (129, 1, 0, bytes(128)), "kcmp": (312, 1, 2, 0),
    "wait4": (61, -1, 0, 1, 0), "getppid": (110,), "setsid": (112,), "setpgid": (109, 0, 0),
    "setuid": (105, 0), "setgid": (106, 0), "setresuid": (117, 0, 0, 0), "setresgid": (119, 0, 0, 0),
    "setgroups": (116, 0, 0), "setfsuid": (122, 0), "capset": (126, bytes(8), bytes(24)), "capget": (125, bytes(8), 0),
    "prctl-dumpable": (157, 4, 1, 0, 0, 0), "prctl-keepcaps": (157, 8, 1, 0, 0, 0), "seccomp": (317, 1, 0, 0),
    "arch_prctl": (158, 0x1003, bytes(8)), "personality": (135, 0x0040000), "iopl": (172, 3), "ioperm": (173, 0, 8, 1),
    "modify_ldt": (154, 0, bytes(16), 16), "mknod": (133, b"tree/output/node", 0o20600, 0x0A7E),
    "mknodat": (259, AT_FDCWD, b"tree/output/node", 0o20600, 0x0A7E),
    "symlink": (88, b"/run/veracruz/store/1", b"tree/output/link"),
    "symlinkat": (266, b"/run/veracruz/store/1", AT_FDCWD, b"tree/output/link"),
    "link": (86, b"tree/input/open/plan", b"tree/output/hard"),
    "linkat": (265, AT_FDCWD, b"tree/input/open/plan", AT_FDCWD, b"tree/output/hard", 0),
    "name_to_handle_at": (303, AT_FDCWD, b".", bytes(128), bytes(4), 0), "open_by_handle_at": (304, 0, bytes(128), 0),
    "chmod": (90, b"tree", 0o777), "fchmodat": (268, AT_FDCWD, b"tree", 0o777),
    "fchownat": (260, AT_FDCWD, b".", 0, 0, 0),
    "setxattr": (188, b"tree/output", b"user.x", b"", 0, 0), "inotify_init1": (294, 0), "fanotify_init": (300, 0, 0),
    "swapon": (167, b"tree", 0), "reboot": (169, 0xFEE1DEAD, 0x28121969, 0x1234567, 0), "kexec_load": (246, 0, 0, 0, 0),
    "init_module": (175, 0, 0, b""), "finit_module": (313, 0, b"", 0), "syslog": (103, 3, bytes(64), 64),
    "sethostname": (170, b"x", 1), "settimeofday": (164, bytes(16), 0), "clock_settime": (227, 0, bytes(16)),
    "adjtimex": (159, bytes(208)), "bpf": (321, 0, bytes(72), 72), "perf_event_open": (298, bytes(112), 0, -1, -1, 0),
    "userfaultfd": (323, 1), "io_uring_setup": (425, 4, bytes(120)), "add_key": (248, b"user", b"x", b"x", 1, -1),
    "request_key": (249, b"user", b"x", 0, 0), "keyctl": (250, 0, -3, 0, 0, 0), "ioctl-tiocsti": (16, 0, 0x5412, b"x"),
    "ioctl-fionread": (16, 0, 0x541B, bytes(4)), "ioctl-nsm": (16, 0, 0xC0200A00, bytes(32)),
    "msgget": (68, 0, 0o1600), "shmget": (29, 0, 4096, 0o1600), "semget": (64, 0, 1, 0o1600),
    "mq_open": (240, b"x", 0o102, 0o600, 0), "memfd_secret": (447, 0), "landlock_create_ruleset": (444, 0, 0, 1),
    "setrlimit": (160, 7, bytes(16)), "prlimit64-set": (302, 0, 7, bytes(16), 0),
    "prlimit64-other": (302, 1, 7, 0, bytes(16)),
    "sched_setscheduler": (144, 0, 0, bytes(4)), "sched_setaffinity": (203, 0, 8, b"\1" + bytes(7)),
    "setpriority": (141, 0, 0, -20), "ioprio_set": (251, 1, 0, 0), "timer_create": (222, 0, 0, bytes(4)),
    "splice": (275, 0, 0, 0, 0, 1, 0), "vmsplice": (278, 1, bytes(16), 1, 0), "sendfile": (40, 1, 0, 0, 1),
    "copy_file_range": (326, 0, 0, 0, 0, 0, 0), "process_madvise": (440, 0, 0, 0, 0, 0), "quotactl": (179, 0, 0, 0, 0),
    "acct": (163, 0), "uname": (63, bytes(390)), "sysinfo": (99, bytes(112)), "getuid": (102,),
    "connect": (42, 0, bytes(16), 16), "bind": (49, 0, bytes(16), 16), "listen": (50, 0, 1),
    "accept4": (288, 0, 0, 0, 0),
    "sendto": (44, 0, b"", 0, 0, 0, 0), "sendmsg": (46, 0, bytes(56), 0), "recvmsg": (47, 0, bytes(56), 0),
    "getsockname": (51, 0, bytes(16), bytes(4)), "number-0": (1000,), "number-max": (0x3FFFFFFF,),
}  # fmt: skip


def settle(parent: int) -> None:
    """Called in the zygote once the engine is loaded."""
    family["runtime"] = parent
    kept.append(b"".join(CONTROL))


def before_guard(task: Task) -> None:
    """Called in the warden, outside the jail and as root: end a process of the runtime's, if that is the plan."""
    plan = read_plan(task)
    runtime = family["runtime"]
    zygote = os.getppid()
    match plan:
        case "kill-runtime":
            os.kill(runtime, signal.SIGKILL)
        case "kill-zygote":
            os.kill(zygote, signal.SIGKILL)
        case "kill-attestor":
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit() and int(entry.name) != zygote:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    if int(fields[1]) == runtime:
                        os.kill(int(entry.name), signal.SIGKILL)


def before_jail(task: Task) -> None:
    """Called in the worker before any wall stands: note the mappings; plant what a worker cannot make itself."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, mode, *rest = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in span.split("-"))
        mappings.append((start, end, mode + " " + (rest[3] if len(rest) > 3 else "")))
    place = Path(task.jail.root, OUTPUT)
    match read_plan(task):
        case "symlink":
            (place / "planted").symlink_to("/run/veracruz/store/1")
        case "symlink-inside":
            (place / "planted").symlink_to("../input/open/plan")
        case "directory-link":
            (place / "planted").symlink_to("/run/veracruz/store")
        case "fifo":
            os.mkfifo(place / "planted")
        case "device":
            os.mknod(place / "planted", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        case "set-id":
            (place / "planted").write_bytes(b"#!/init\n")
            (place / "planted").chmod(0o6755)


def read_plan(task: Task) -> str:
    """Return what is to be done; nothing while compiling."""
    path = Path(task.jail.root, PLAN)
    return path.read_text().strip() if path.exists() else ""


def compile_module(_: bytes) -> tuple[Report, bytes]:
    """Probe the jail of the compiling worker; the result is the module."""
    return Report(0, None, 0), json.dumps(probe(compiling=True)).encode()


def run_module(compiled: bytes, run: Run) -> Report:
    """Do as planned."""
    plan = Path(PLAN).read_text().strip()
    match plan:
        case "probe":
            found = {"run": probe(compiling=False), "compile": json.loads(compiled)}
            Path(OUTPUT, "probe.json").write_text(json.dumps(found))
        case "x32":
            libc.syscall(ctypes.c_long(X32 | 39))
        case "ia32":
            run_code(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid); int 0x80; ret
        case "far-jump":  # to the 32-bit code segment, then a system call there
            page = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_32BIT, prot=7)
            page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xf4")  # ..., hlt
            address = ctypes.addressof(ctypes.c_char.from_buffer(page))
            run_code(b"\xff\x2d" + bytes(4) + address.to_bytes(4, "little") + USER32.to_bytes(2, "little"))
    Path(OUTPUT, "survived").write_text(plan)
    return Report(0, None, 0)


def run_code(code: bytes) -> None:
    """Run machine code."""
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()


def probe(*, compiling: bool) -> dict[str, Any]:
    """Return what every attempt came to: the name of an error, or `done`."""
    descriptors = list_descriptors()
    tried: dict[str, str] = {}
    for name in OUTSIDE:
        tried[f"openat {name}"] = outcome(257, AT_FDCWD, name.encode(), os.O_RDONLY, 0)
        how = (0).to_bytes(24, "little")
        tried[f"openat2 {name}"] = outcome(437, AT_FDCWD, name.encode(), how, 24)
    for name, number in FAMILIES.items():
        tried[f"socket {name}"] = outcome(41, number, 1, 0)
    for cid in (0, 1, 2, 3, 4, 0xFFFFFFFF):
        address = struct.pack("=HHIIi", 40, 0, 9002, cid, 0)  # struct sockaddr_vm
        for descriptor in range(8):
            tried[f"connect descriptor {descriptor} to CID {cid}"] = outcome(42, descriptor, address, 16)
    for name, flag in NAMESPACES.items():
        tried[f"clone {name} namespace"] = outcome(56, flag | SIGCHLD, 0, 0, 0, 0)
        tried[f"clone {name} namespace as a thread"] = outcome(56, flag | 0x10000, 0, 0, 0, 0)
        tried[f"unshare {name} namespace"] = outcome(272, flag)
    for name, call in CALLS.items():
        tried[name] = outcome(*call)
    if not compiling:
        tried |= try_files()
    found = {"tried": tried, "root": list_root(), "descriptors": descriptors, "threads": count_threads()}
    found |= search_memory()
    return found


def outcome(number: int, *arguments: int | bytes) -> str:
    """Make one system call; return its error's name, or `done`."""
    buffers = []
    words: list[ctypes.c_long | ctypes.c_void_p] = []
    for value in arguments:
        if isinstance(value, int):
            words.append(ctypes.c_long(value))
        else:
            buffers.append(ctypes.create_string_buffer(value, len(value) + 1))
            words.append(ctypes.c_void_p(ctypes.addressof(buffers[-1])))
    ctypes.set_errno(0)
    if libc.syscall(ctypes.c_long(number), *words) == -1:
        return errno.errorcode.get(ctypes.get_errno(), "unknown")
    return "done"


def attempt(action: Any, *arguments: Any, **more: Any) -> str:
    """Call; return the error's name, or `done`."""
    try:
        action(*arguments, **more)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "unknown")
    return "done"


def try_files() -> dict[str, str]:
    """Touch what belongs to others, inside the tree."""
    write = os.O_WRONLY
    tried = {
        "write an input": attempt(os.open, PLAN, write),
        "truncate an input": attempt(os.open, PLAN, write | os.O_TRUNC),
        "remove an input": attempt(os.unlink, PLAN, dir_fd=os.open(".", os.O_RDONLY)),
        "rename an input": attempt(os.rename, PLAN, f"{OUTPUT}/plan", src_dir_fd=os.open(".", os.O_RDONLY)),
        "touch an input": attempt(os.utime, PLAN),
        "make a file in the root": attempt(os.open, "new", write | os.O_CREAT, 0o600),
        "make a file beside the inputs": attempt(os.open, "tree/input/open/new", write | os.O_CREAT, 0o600),
        "make a directory in the tree": attempt(os.mkdir, "tree/new", dir_fd=os.open(".", os.O_RDONLY)),
    }
    # the module's memory file: sealed once it is compiled
    for descriptor in memory_files():
        tried |= {
            "write the module": attempt(os.pwrite, descriptor, b"x", 0),
            "truncate the module": attempt(os.ftruncate, descriptor, 0),
            "grow the module": attempt(os.ftruncate, descriptor, 1 << 20),
            "map the module for writing": attempt(mmap.mmap, descriptor, 16, mmap.MAP_SHARED, mmap.PROT_WRITE),
        }
    return tried


def memory_files() -> list[int]:
    """Return descriptors of memory files that were there at the start."""
    found = []
    for descriptor in range(3, 64):
        with contextlib.suppress(OSError):
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 0 and fcntl.fcntl(descriptor, 1034) >= 0:
                found.append(descriptor)
    return found[:2]


def list_root() -> dict[str, Any]:
    """Return all that can be seen from the root, and whether `..` leads out of it."""
    above, here = Path("/..").stat(), Path("/").stat()
    seen = {}
    for directory, names, files in os.walk("/"):
        for name in (*names, *files):
            status = os.lstat(os.path.join(directory, name))  # noqa: PTH118
            seen[os.path.join(directory, name)] = [stat.filemode(status.st_mode), status.st_uid]  # noqa: PTH118
    return {"closed": (above.st_dev, above.st_ino) == (here.st_dev, here.st_ino), "seen": seen}


def list_descriptors() -> dict[str, list[Any]]:
    """Return the open descriptors: kind, device or seals, access mode."""
    found = {}
    for descriptor in range(1024):
        try:
            fcntl.fcntl(descriptor, fcntl.F_GETFD)
        except OSError:
            continue
        status = os.fstat(descriptor)
        kind = stat.filemode(status.st_mode)[0]
        detail: Any = None
        if kind == "c":
            detail = [os.major(status.st_rdev), os.minor(status.st_rdev)]
        elif kind == "-" and status.st_nlink == 0:
            detail = f"memory file, seals {fcntl.fcntl(descriptor, 1034)}"  # F_GET_SEALS
        elif kind in "-d":
            detail = "in the tree"
        found[str(descriptor)] = [kind, detail, fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE]
    return found


def count_threads() -> int:
    """Return how many threads could be had."""
    end = threading.Event()
    threads = []
    for _ in range(100):
        thread = threading.Thread(target=end.wait)
        try:
            thread.start()
        except RuntimeError:
            break
        threads.append(thread)
    end.set()
    for thread in threads:
        thread.join()
    return len(threads)


def search_memory() -> dict[str, Any]:
    """Look for every canary in all that could be read when the jail closed, the heap as it is now."""
    hits: dict[str, int] = dict.fromkeys((*CANARIES, "control"), 0)
    wanted = {**CANARIES, "control": CONTROL}
    total, holes = 0, 0
    sieve = os.memfd_create("sieve")
    for start, end, what in mappings:
        if what.split()[-1] in ("[vvar]", "[vvar_vclock]") or "r" not in what[:1]:
            continue
        last = max(int(libc.sbrk(0) or 0), end) if what.endswith("[heap]") else end
        for data in read_span(sieve, start, last):
            if not data:
                holes += 1
                continue
            total += len(data)
            for name, (first, second) in wanted.items():
                at = data.find(first)
                while at >= 0:
                    hits[name] += data[at + len(first) : at + len(first) + len(second)] == second
                    at = data.find(first, at + 1)
    os.close(sieve)
    return {"hits": hits, "searched": total, "holes": holes, "mappings": len(mappings)}


def read_span(sieve: int, start: int, end: int) -> Iterator[bytes]:
    """Give memory piece by piece by way of the kernel, which answers EFAULT where a load would end the process."""
    for at in range(start, end, CHUNK):
        size = min(CHUNK + OVERLAP, end - at)
        count = libc.pwrite(ctypes.c_int(sieve), ctypes.c_void_p(at), ctypes.c_size_t(size), ctypes.c_long(0))
        yield os.pread(sieve, count, 0) if count > 0 else b""


__all__ = ["before_guard", "before_jail", "compile_module", "real_engine", "run_module", "settle"]
