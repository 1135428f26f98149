# SPDX-License-Identifier: MIT
"""A compilation's whole world: a user namespace, for root a chroot where those are forbidden, else a refusal."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from enclave_image.errors import BuildFailed, NoSandbox
from enclave_image.toolchain import sandboxed

# What stands for the interpreter: it forbids some system calls, as Docker's default seccomp profile does unshare(2),
# and then is the interpreter. The filter: load the number; if it is one of them, EPERM; else allow.
FORBIDDING = f"""#!{sys.executable}
import ctypes, os, struct, sys
FILTER = struct.pack("<HBBI", 0x20, 0, 0, 0)
for number in {{numbers}}:
    FILTER += struct.pack("<HBBI", 0x15, 0, 1, number) + struct.pack("<HBBI", 0x06, 0, 0, 0x00050001)
FILTER += struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)
buffer = ctypes.create_string_buffer(FILTER)
program = ctypes.create_string_buffer(struct.pack("<H6xQ", len(FILTER) // 8, ctypes.addressof(buffer)))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program, 0, 0):  # no new privileges; the filter
    sys.exit("no seccomp here")
os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
"""
NUMBERS = {  # of the system calls
    "x86_64": {"unshare": [272], "mknod": [133, 259]},
    "aarch64": {"unshare": [97], "mknod": [33]},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a static program that prints what it sees: its host's name, a file, /dev/null, its user."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no compiler here")
    top = tmp_path_factory.mktemp("sandbox")
    source = top / "probe.c"
    source.write_text(
        "#include <stdio.h>\n#include <unistd.h>\n"
        "int main(void) { char name[99] = {0}; gethostname(name, 98);\n"
        'printf("%s %d %d %d\\n", name, access("/etc/passwd", F_OK), access("/dev/null", W_OK), getuid()); }\n'
    )
    (top / "root/usr/bin").mkdir(parents=True)
    subprocess.run([compiler, "-static", "-o", top / "root/usr/bin/probe", source], check=True)
    return top / "root"


def forbid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let the sandbox run where these system calls are refused."""
    machine = os.uname().machine
    if machine not in NUMBERS:
        pytest.skip("numbers that this test does not know")
    script = tmp_path / "python"
    numbers = [number for name in names for number in NUMBERS[machine][name]]
    script.write_text(FORBIDDING.format(numbers=numbers))
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


def test_sandbox_sees_its_root_alone(root: Path, tmp_path: Path) -> None:
    sandboxed(root, ["probe"], what="probe", log=tmp_path / "log")
    host, passwd, null, uid = (tmp_path / "log").read_text().splitlines()[-1].split()
    assert host in ("build", os.uname().nodename)  # as root without namespaces the name stays
    assert (passwd, null, uid) == ("-1", "0", "0")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may chroot")
def test_root_gets_a_chroot_where_namespaces_are_forbidden(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(tmp_path, monkeypatch, "unshare")
    sandboxed(root, ["probe"], what="probe", log=tmp_path / "log")
    host, passwd, null, uid = (tmp_path / "log").read_text().splitlines()[-1].split()
    assert (host, passwd, null, uid) == (os.uname().nodename, "-1", "0", "0")
    assert stat.S_ISCHR((root / "dev/null").stat().st_mode), "made, not bound: nothing could be mounted"


def test_who_gets_neither_is_told_what_to_allow(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary user, or a container's root that may make no device."""
    forbid(tmp_path, monkeypatch, "unshare", "mknod")
    with pytest.raises(NoSandbox, match="no unprivileged user namespace") as refusal:
        sandboxed(root, ["probe"], what="probe", log=tmp_path / "log")
    assert "run as root, or allow user namespaces" in str(refusal.value.hint)
    assert "unshare: Operation not permitted" in (tmp_path / "log").read_text()


def test_a_command_that_fails_is_reported_with_its_last_lines(tmp_path: Path) -> None:
    (tmp_path / "root/usr/bin").mkdir(parents=True)
    with pytest.raises(BuildFailed, match="thing failed with exit code"):
        sandboxed(tmp_path / "root", ["absent"], what="thing", log=tmp_path / "log")
