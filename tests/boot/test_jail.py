# SPDX-License-Identifier: MIT
"""A worker's jail, tried from inside by native code that stands in the engine's place. Nothing may succeed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .machines import World
from .probed import CANARIES, Probed, boot_probe

pytestmark = [pytest.mark.boot, pytest.mark.timeout(900)]

NULL = ["c", [1, 3], 2]  # /dev/null, for reading and writing
ALL_SEALS = 0xF  # F_SEAL_SEAL, SHRINK, GROW, WRITE
# Attempts that something else than the system call list stops: there is no such thing, or it belongs to root.
ABSENT, NOT_ITS_OWN = {"ENOENT"}, {"EACCES", "EPERM"}


@pytest.fixture(scope="module")
def probed(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probed]:
    with boot_probe(world, tmp_path_factory.mktemp("jail")) as booted:
        yield booted


@pytest.fixture(scope="module")
def found(probed: Probed) -> dict[str, Any]:
    done = probed.run("probe")
    assert done.code == 0, done
    out = probed.world.directory / "probe.json"
    probed.party("bob", "get", "/output/probe.json", "--out", out)
    value: dict[str, Any] = json.loads(out.read_bytes())
    return value


def allowed_errors(name: str) -> set[str]:
    """Return the errors that an attempt may end in."""
    if name.startswith(("openat ", "openat2 ")):
        return ABSENT
    if "input" in name or name.startswith("make a"):
        return NOT_ITS_OWN
    return {
        "clone3": {"ENOSYS"},  # glibc falls back to clone, whose flags a filter can read
        "clone time namespace as a thread": {"EINVAL"},  # that flag is a signal number to clone; unshare knows it
    }.get(name, {"EPERM"})


@pytest.mark.parametrize("worker", ["run", "compile"])
def test_every_attempt_fails(found: dict[str, Any], worker: str) -> None:
    tried = found[worker]["tried"]
    assert len(tried) > 270
    unexpected = {name: outcome for name, outcome in tried.items() if outcome not in allowed_errors(name)}
    assert unexpected == {}


@pytest.mark.parametrize(
    "name",
    [
        "openat /dev/nsm", "openat2 /dev/nsm", "openat /dev/vsock", "openat /proc/1/mem",
        "openat /run/veracruz/store/1",
        "openat ../../../../../../proc/self/maps", "openat tree/input/alice/secret", "open", "socket AF_VSOCK",
        "socket AF_UNIX", "socket AF_INET", "socket AF_NETLINK", "socket AF_ALG", "socketpair",
        "connect descriptor 0 to CID 1", "connect descriptor 5 to CID 2", "connect descriptor 7 to CID 3",
        "ptrace-attach-1", "ptrace-traceme", "process_vm_readv", "process_vm_writev", "kill-1", "kill-all", "tgkill",
        "pidfd_open", "pidfd_getfd", "execve", "execveat", "fork", "vfork", "clone-fork", "clone user namespace",
        "clone mount namespace as a thread", "unshare user namespace", "setns", "mount", "umount2", "move_mount",
        "open_tree", "chroot", "pivot_root", "fchdir", "chdir", "mknod", "mknodat", "symlink", "symlinkat", "link",
        "linkat", "setuid", "setresuid", "setgroups", "capset", "io_uring_setup", "bpf", "keyctl", "add_key",
        "perf_event_open", "userfaultfd", "ioctl-nsm", "ioctl-tiocsti", "personality", "modify_ldt", "seccomp",
        "open_by_handle_at", "prlimit64-set", "clock_settime", "reboot", "write the module", "truncate the module",
        "map the module for writing", "write an input", "remove an input", "make a file in the root",
    ],
)  # fmt: skip
def test_refuses(found: dict[str, Any], name: str) -> None:
    """By name, so that none of them is lost from the probe."""
    assert found["run"]["tried"][name] in allowed_errors(name)


def test_sees_its_own_tree_and_no_way_out_of_it(found: dict[str, Any]) -> None:
    root = found["run"]["root"]
    assert root["closed"]
    uid = root["seen"]["/tree/output"][1]
    assert uid >= 20_000
    assert root["seen"] == {
        "/streams": ["drwxr-xr-x", 0],
        "/streams/stdout": ["-rw-------", uid],
        "/streams/stderr": ["-rw-------", uid],
        "/tree": ["drwxr-xr-x", 0],
        "/tree/input": ["drwxr-xr-x", 0],
        "/tree/input/open": ["drwxr-xr-x", 0],
        "/tree/input/open/plan": ["-r--r--r--", 0],
        "/tree/output": ["drwxr-xr-x", uid],
    }
    assert found["compile"]["root"] == {"closed": True, "seen": {}}


def test_holds_no_descriptor_but_its_module_and_its_report(found: dict[str, Any]) -> None:
    """Standard streams on /dev/null, the sealed module (twice: it is its own artifact), the pipe to its warden."""
    held = found["run"]["descriptors"]
    assert [held.pop(number) for number in "012"] == [NULL] * 3
    assert sorted(held.values()) == [["-", f"memory file, seals {ALL_SEALS}", 2]] * 2 + [["p", None, 1]]


def test_compiles_with_no_descriptor_but_source_artifact_and_report(found: dict[str, Any]) -> None:
    held = found["compile"]["descriptors"]
    assert [held.pop(number) for number in "012"] == [NULL] * 3
    assert [kind for kind, _, _ in held.values()] == ["-", "-", "p"]


@pytest.mark.parametrize("worker", ["run", "compile"])
def test_its_memory_holds_nothing_of_the_runtimes(found: dict[str, Any], worker: str) -> None:
    """The TLS key in three forms, what lies beside it, the policy's name, files that its program may not read."""
    assert found[worker]["hits"].pop("control") >= 1  # the search does find what is there
    assert found[worker]["hits"] == dict.fromkeys(CANARIES, 0)
    assert found[worker]["searched"] > 30 * 2**20
    assert found[worker]["holes"] == 0


def test_gets_a_bounded_number_of_threads(found: dict[str, Any]) -> None:
    assert 1 <= found["run"]["threads"] < 32


@pytest.mark.parametrize("plan", ["x32", "ia32", "far-jump"])
def test_dies_of_another_abi(probed: Probed, plan: str) -> None:
    """System calls by x32's numbers, by int 0x80, and from a 32-bit code segment."""
    done = probed.run(plan)
    assert done.code == 6
    assert (done.json["exit_code"], done.json["trap"]) == (None, "killed")


@pytest.mark.parametrize("plan", ["symlink", "symlink-inside", "directory-link", "fifo", "device"])
def test_nothing_is_taken_back_but_regular_files(probed: Probed, plan: str, tmp_path: Path) -> None:
    """Planted by root before the jail: a worker cannot even make them."""
    done = probed.run(plan)
    assert done.code == 6
    assert (done.json["exit_code"], done.json["trap"]) == (None, "outputs-refused")
    entries = probed.party("bob", "ls", "/output/").json["entries"]
    assert "planted" not in [entry["name"] for entry in entries]


def test_the_isolate_is_none_the_worse(probed: Probed) -> None:
    """The console stays as it was, and another job runs."""
    assert probed.run("nothing").code == 0
    lines = probed.world.run("enclave", "console", probed.enclave.name).out.splitlines()
    assert lines[-1] == "init: ready"
