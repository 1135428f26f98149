# SPDX-License-Identifier: MIT
"""The worker's walls, from inside: native code in the very jail tries what a guest that broke its engine would try.

The jail is strict here but for control groups, which the machine that runs the tests may not give. The booted image's
probe runs the same attempts.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import platform
import re
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from enclave_image.runtime import jail, seccomp
from enclave_image.runtime.syscalls import libc
from enclave_image.runtime.task import Ending, Jail, Report, Task
from enclave_image.runtime.warden import guard

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and uids need root")
pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the system call list is for x86-64")

Attempt = Callable[[], object]


def call(number: int, *arguments: int) -> int:
    """Return 0 or the errno of a raw system call."""
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments))
    return ctypes.get_errno() if result == -1 else 0


def in_jail(walls: Jail, attempt: Attempt, *, wall_s: float = 10.0) -> tuple[Report, object]:
    """Run an attempt where the engine would run; return the report and what the attempt saw."""
    reading, writing = os.pipe()
    ours, theirs = socket.socketpair()
    warden = os.fork()
    if warden == 0:
        try:
            os.close(reading)
            ours.close()

            def body() -> Report:
                os.write(writing, json.dumps(attempt()).encode())
                return Report(0, None, 0)

            guard(Task(walls, wall_s, None), theirs, body, keep=(writing,))
        finally:
            os._exit(0)
    theirs.close()
    os.close(writing)
    os.waitpid(warden, 0)
    with ours:
        report = Report.decode(ours.recv(4096))
    with os.fdopen(reading, "rb") as stream:
        seen = stream.read()
    return report, json.loads(seen) if seen else None


@pytest.fixture
def walls(tmp_path: Path) -> Jail:
    tmp_path.chmod(0o755)
    (tmp_path / "mine").mkdir()
    if os.geteuid() == 0:
        os.chown(tmp_path / "mine", 23_456, 23_456)
    (tmp_path / "theirs").write_text("secret")
    (tmp_path / "theirs").chmod(0o600)
    return Jail(str(tmp_path), 23_456, True, None, 1 << 28, 1 << 20, 10)


HEADERS = {  # of Debian's linux-libc-dev, which the compiler here brings
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


@pytest.mark.parametrize("machine", HEADERS)
def test_the_numbers_are_those_of_the_kernels_headers(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip("no kernel headers here")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", HEADERS[machine].read_text())
    numbers = {name: int(number) for name, number in found}
    numbers.setdefault("newfstatat", numbers.get("fstatat", -1))
    abi = seccomp.ABIS[machine]
    closer = {"clone": abi.clone, "clone3": abi.clone3, "prlimit64": abi.prlimit64, "fcntl": abi.fcntl,
              "renameat2": abi.renameat2}  # fmt: skip
    named = {**abi.allowed, **closer}
    assert named == {name: numbers[name] for name in named}


# Numbers of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl).
FORBIDDEN = {
    "socket(AF_VSOCK)": (41, socket.AF_VSOCK, socket.SOCK_STREAM, 0),
    "socket(AF_INET)": (41, socket.AF_INET, socket.SOCK_STREAM, 0),
    "socket(AF_UNIX)": (41, socket.AF_UNIX, socket.SOCK_STREAM, 0),
    "socketpair": (53, 1, 1, 0, 0),
    "connect": (42, 0, 0, 0),
    "ptrace": (101, 0, 0, 0, 0),
    "process_vm_readv": (310, 1, 0, 0, 0, 0, 0),
    "pidfd_open": (434, 1, 0),
    "pidfd_getfd": (438, 0, 0, 0),
    "execve": (59, 0, 0, 0),
    "execveat": (322, 0, 0, 0, 0, 0),
    "fork": (57,),
    "vfork": (58,),
    "clone without CLONE_THREAD": (56, signal.SIGCHLD, 0, 0, 0, 0),
    "clone into a namespace": (56, 0x10000 | 0x10000000, 0, 0, 0, 0),
    "unshare": (272, 0x10000000),
    "setns": (308, 0, 0),
    "ioctl": (16, 0, 0, 0),
    "mount": (165, 0, 0, 0, 0, 0),
    "pivot_root": (155, 0, 0),
    "chroot": (161, 0),
    "mknodat": (259, 0, 0, 0, 0),
    "symlinkat": (266, 0, 0, 0),
    "linkat": (265, 0, 0, 0, 0, 0),
    "setuid": (105, 0),
    "bpf": (321, 0, 0, 0),
    "perf_event_open": (298, 0, 0, 0, 0, 0),
    "userfaultfd": (323, 0),
    "io_uring_setup": (425, 1, 0),
    "keyctl": (250, 0, 0, 0, 0, 0),
    "add_key": (248, 0, 0, 0, 0, 0),
    "kill": (62, 1, 0),
    "tgkill": (234, 1, 1, 0),
    "reboot": (169, 0, 0, 0),
    "settimeofday": (164, 0, 0),
    "clock_settime": (227, 0, 0),
    "prctl": (157, 4, 1, 0, 0, 0),
    "raise a limit": (302, 0, 7, 1, 0),
    "another's limits": (302, 1, 7, 0, 0),
    "sendmsg": (46, 0, 0, 0),
    "shmget": (29, 0, 4096, 0o600),
    "msgget": (68, 0, 0o600),
    "open_by_handle_at": (304, 0, 0, 0),
    "init_module": (175, 0, 0, 0),
    "kexec_load": (246, 0, 0, 0, 0),
    "fcntl(F_SETOWN)": (72, 0, 8, 1),
    "fcntl(F_SETOWN_EX)": (72, 0, 15, 0),
    "fcntl(F_SETSIG)": (72, 0, 10, 9),
    "fcntl(F_SETLEASE)": (72, 0, 1024, 0),
    "fcntl(F_NOTIFY)": (72, 0, 1026, 1),
    "renameat2(RENAME_WHITEOUT)": (316, -100, 0, -100, 0, 4),
}


@needs_root
def test_no_system_call_out_of_it_is_answered(walls: Jail) -> None:
    def attempt() -> dict[str, int]:
        return {name: call(*numbers) for name, numbers in FORBIDDEN.items()}

    _, seen = in_jail(walls, attempt)
    assert seen == dict.fromkeys(FORBIDDEN, errno.EPERM)


def test_what_an_engine_does_with_descriptors_is_answered(walls: Jail) -> None:
    def attempt() -> list[int]:
        seals = os.memfd_create("seals", os.MFD_ALLOW_SEALING)
        return [call(72, seals, command, 0) for command in (0, 1, 2, 3, 4, 1030, 1033, 1034)]

    _, seen = in_jail(soft(walls), attempt)
    assert isinstance(seen, list)
    assert errno.EPERM not in seen


@needs_root
def test_a_name_may_be_changed(walls: Jail) -> None:
    def attempt() -> object:
        os.mkdir("old", dir_fd=os.open("/mine", os.O_RDONLY))
        names = [ctypes.create_string_buffer(name) for name in (b"/mine/old", b"/mine/new")]
        code = call(316, -100, ctypes.addressof(names[0]), -100, ctypes.addressof(names[1]), 1)  # RENAME_NOREPLACE
        return [code, sorted(path.name for path in Path("/mine").iterdir())]

    assert in_jail(walls, attempt)[1] == [0, ["new"]]


@needs_root
def test_clone3_says_that_it_does_not_exist_so_that_threads_still_start(walls: Jail) -> None:
    def attempt() -> list[object]:
        ran: list[int] = []
        thread = threading.Thread(target=lambda: ran.append(1))
        thread.start()
        thread.join()
        return [call(435, 0, 0), ran]

    assert in_jail(walls, attempt)[1] == [errno.ENOSYS, [1]]


@needs_root
def test_the_i386_door_is_shut(walls: Jail) -> None:
    """int 0x80 reaches the 32-bit table, whose numbers mean other calls."""
    code = bytes.fromhex("b814000000cd80c3")  # mov eax, 20 (getpid); int 0x80; ret

    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)

    def attempt() -> None:
        ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()

    report, seen = in_jail(walls, attempt)
    assert (report.trap, seen) == (Ending.KILLED, None)


@needs_root
def test_sees_its_tree_alone_and_as_nobody_in_particular(walls: Jail) -> None:
    def attempt() -> dict[str, object]:
        found: dict[str, object] = {
            "root": sorted(path.name for path in Path("/").iterdir()),
            "beside": sorted(path.name for path in Path("/..").iterdir()),
            "owner": Path("/mine").stat().st_uid,
        }
        for path in ("/theirs", "/proc/self/mem", "/dev/nsm", "/dev/null", "/sys", "/etc/passwd", "/new"):
            try:
                os.close(os.open(path, os.O_RDWR | os.O_CREAT))
                found[path] = 0
            except OSError as error:
                found[path] = error.errno
        os.close(os.open("/mine/file", os.O_RDWR | os.O_CREAT))
        return found

    _, seen = in_jail(walls, attempt)
    assert seen == {
        "root": ["mine", "theirs"], "beside": ["mine", "theirs"], "owner": 23_456, "/theirs": errno.EACCES,
        "/proc/self/mem": errno.ENOENT, "/dev/nsm": errno.ENOENT, "/dev/null": errno.ENOENT, "/sys": errno.EACCES,
        "/etc/passwd": errno.ENOENT, "/new": errno.EACCES,
    }  # fmt: skip


@needs_root
def test_holds_no_descriptor_but_its_own(walls: Jail) -> None:
    secret = os.memfd_create("secret", 0)

    def attempt() -> list[int]:
        return [descriptor for descriptor in range(3, 200) if call(72, descriptor, 1, 0) == 0]  # fcntl(F_GETFD)

    try:
        _, seen = in_jail(walls, attempt)
    finally:
        os.close(secret)
    assert isinstance(seen, list)
    assert len(seen) == 2  # the report's pipe, this test's pipe
    assert secret not in seen


@needs_root
def test_files_have_their_size_limit(walls: Jail) -> None:
    def attempt() -> object:
        descriptor = os.open("/mine/large", os.O_RDWR | os.O_CREAT)
        total = 0
        try:
            while True:
                total += os.write(descriptor, bytes(1 << 16))
        except OSError as error:
            return [total, error.errno]

    assert in_jail(walls, attempt)[1] == [1 << 20, errno.EFBIG]


def test_ends_a_worker_whose_time_is_over(walls: Jail) -> None:
    report, _ = in_jail(soft(walls), lambda: threading.Event().wait(60), wall_s=0.2)
    assert report.trap == Ending.WALL


def test_ends_a_worker_that_has_used_up_its_processor_time(walls: Jail) -> None:
    def attempt() -> None:
        while True:
            pass

    report, _ = in_jail(replace(soft(walls), cpu_s=1), attempt)
    assert report.trap == Ending.WALL


def test_a_worker_that_dies_is_told_as_killed(walls: Jail) -> None:
    report, _ = in_jail(soft(walls), lambda: ctypes.string_at(8))
    assert report.trap == Ending.KILLED


def test_a_worker_that_raises_is_told_as_the_engines_fault(walls: Jail) -> None:
    def attempt() -> None:
        raise RuntimeError("told to nobody")

    assert in_jail(soft(walls), attempt)[0].trap == Ending.ENGINE


@needs_root
def test_a_wall_that_cannot_stand_stops_the_job_in_an_image(walls: Jail, tmp_path: Path) -> None:
    missing = Jail(walls.root, walls.uid, True, str(tmp_path / "no" / "group"), 1 << 28, 1 << 20, 10)
    report, seen = in_jail(missing, lambda: "ran")
    assert (report.trap, seen) == (Ending.ENGINE, None)


def test_a_strict_jail_without_a_uid_is_none(walls: Jail) -> None:
    report, seen = in_jail(Jail(walls.root, None, True, None, 1 << 28, 1 << 20, 10), lambda: "ran")
    assert (report.trap, seen) == (Ending.ENGINE, None)


def test_without_root_the_system_call_list_still_stands(walls: Jail) -> None:
    def attempt() -> list[int]:
        return [call(*FORBIDDEN[name]) for name in ("socket(AF_UNIX)", "execve", "ptrace")]

    assert in_jail(soft(walls), attempt)[1] == [errno.EPERM] * 3


def soft(walls: Jail) -> Jail:
    """The walls of a `process` isolate without root."""
    return Jail(walls.root, None, False, None, walls.memory_bytes, walls.file_bytes, walls.cpu_s)


def test_the_list_names_each_call_once_and_is_the_same_for_every_processor() -> None:
    for abi in seccomp.ABIS.values():
        closer = {abi.clone, abi.clone3, abi.prlimit64, abi.fcntl, abi.renameat2}
        assert len({*abi.allowed.values(), *closer}) == len(abi.allowed) + len(closer)
        assert not set(abi.allowed) & {"socket", "ptrace", "execve", "ioctl", "fork", "clone3", "mount", "kill"}
    assert seccomp.X86_64.allowed.keys() - seccomp.AARCH64.allowed.keys() == {"poll", "epoll_wait"}  # older twins
    assert seccomp.AARCH64.allowed.keys() - seccomp.X86_64.allowed.keys() == {"membarrier"}
    assert jail.MAX_THREADS < jail.MAX_DESCRIPTORS
