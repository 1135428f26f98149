# SPDX-License-Identifier: MIT
"""What a booted machine's user meets when it goes wrong: an error with its cause, an exit code, and nothing left."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from enclave_image.eif import Eif, SectionType, load_eif, write_eif
from enclave_image.initramfs import File, write_cpio

from .machines import World

pytestmark = pytest.mark.boot


@dataclass(frozen=True, slots=True)
class Host:
    """A user of this machine, with an image and a policy that accepts it."""

    world: World
    image: Path
    policy: Path
    sockets: Path

    @contextlib.contextmanager
    def start(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """Run `enclave run` under TCG: with KVM that fails, the time of each step would be another."""
        command = [sys.executable, "-m", "host_shim.cli", "enclave", "run", str(self.image), *words]
        with subprocess.Popen(
            [*command, "--policy", str(self.policy), "--accel", "tcg"],
            cwd=self.world.directory, env=self.world.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()

    def find(self, words: str) -> int:
        """Return the process of this world whose command line holds `words`, once it is there."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for entry in Path("/proc").iterdir():
                with contextlib.suppress(OSError):
                    mine = entry.name.isdigit() and str(self.world.directory) in (entry / "environ").read_text()
                    if mine and words in (entry / "cmdline").read_text():
                        return int(entry.name)
            time.sleep(0.02)
        pytest.fail(f"no process {words}")

    def demand_nothing_left(self) -> None:
        """Fail if a process or a socket is there still."""
        deadline = time.monotonic() + 5  # children of a killed parent take a moment
        while (left := self.world.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left == []
        assert list(self.sockets.iterdir()) == []


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, image: Path) -> Iterator[Host]:
    world = World(tmp_path_factory.mktemp("faults"))
    sockets = Path(f"/tmp/vf-{os.getpid()}")
    sockets.mkdir(mode=0o700)
    world.environment["TMPDIR"] = str(sockets)
    try:
        yield Host(world, image, world.policy("faults", image.with_suffix(".json")), sockets)
    finally:
        shutil.rmtree(sockets)


def init_of(program: bytes) -> bytes:
    """Return a ramdisk whose /init is this."""
    return write_cpio({"init": File(program, executable=True)})


def change_image(image: Eif, target: Path, *, kernel: bytes | None = None, ramdisk: bytes | None = None) -> None:
    """Write an image of another kernel or first ramdisk, well formed as a file."""
    ramdisks = [bytes(part) for part in image.ramdisks]
    if ramdisk is not None:
        ramdisks[0] = ramdisk
    target.write_bytes(
        write_eif(
            [
                (SectionType.KERNEL, kernel or bytes(image.kernel)),
                (SectionType.CMDLINE, image.cmdline),
                (SectionType.METADATA, image.metadata or b"{}"),
                *((SectionType.RAMDISK, part) for part in ramdisks),
            ]
        )
    )


@pytest.mark.parametrize(
    ("kernel", "ramdisk", "says", "cause"),
    [
        (None, b"garbage" * 1000, "Initramfs unpacking failed", "a ramdisk of the image did not unpack"),
        (bytes(100_000), None, "linux kernel too old", "the image's kernel is no Linux kernel for x86-64"),
        (None, write_cpio({"nothing": None}), "panic", "the image has no /init that its kernel could start"),
        (None, init_of(b"\x7fELF junk"), "error -8", "the image's /init is no program for this machine"),
        (None, init_of(b"#!/none\n"), "panic", "the image has no /init that its kernel could start"),
    ],
    ids=["a corrupt ramdisk", "no kernel", "no init", "an init that is no program", "an init without its interpreter"],
)
def test_a_guest_that_dies_during_boot_is_told_with_its_console(
    host: Host, tmp_path: Path, kernel: bytes | None, ramdisk: bytes | None, says: str, cause: str
) -> None:
    bad = tmp_path / "bad.eif"
    change_image(load_eif(host.image), bad, kernel=kernel, ramdisk=ramdisk)
    start = time.monotonic()
    done = host.world.run("enclave", "run", bad, "--policy", host.policy, "--accel", "tcg", "--detach", expect=5)
    assert time.monotonic() - start < 25  # it does not wait out the image's own `panic=30`
    assert f"error: the isolate died before its first sign of life: {cause}" in done.err
    assert "; QEMU ended " in done.err
    assert says in done.err
    assert "hint: veracruz image describe" in done.err
    assert "explain image-does-not-boot" in done.err
    host.demand_nothing_left()


def test_a_port_in_use_is_told_before_anything_boots(host: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"127.0.0.1:{taken.getsockname()[1]}"
        done = host.world.run("enclave", "run", host.image, "--policy", host.policy, "--listen", endpoint, expect=3)
    assert f"error: cannot listen on {endpoint}: Address already in use" in done.err
    assert "started QEMU" not in done.err
    host.demand_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_at_any_moment_of_the_start_leaves_nothing(host: Host, number: signal.Signals) -> None:
    for pause in (0.0, 0.1, 0.3, 1.0, 3.0):
        with host.start() as process:
            _wait_for_line(process, "note:")
            time.sleep(pause)
            process.send_signal(number)
            _, err = process.communicate(timeout=30)
        assert process.returncode == 130, err
        assert "Traceback" not in err
        host.demand_nothing_left()


@pytest.mark.parametrize(
    ("victim", "says"),
    [
        ("qemu-system-x86_64", "QEMU ended by SIGKILL"),
        ("host_shim.vhost_user", "the isolate"),  # QEMU may be the first to notice
        ("host_shim.relay", "the relay ended by SIGKILL"),
    ],
)
def test_a_process_killed_during_boot_ends_the_rest(host: Host, victim: str, says: str) -> None:
    with host.start() as process:
        _wait_for_line(process, "started QEMU")
        os.kill(host.find(victim), signal.SIGKILL)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 5, err
    assert says in err.partition("error: ")[2]
    assert "Traceback" not in err
    host.demand_nothing_left()


def test_a_killed_supervisor_takes_its_machine_along(host: Host) -> None:
    with host.start("--name", "killed") as process:
        _wait_for_line(process, "started QEMU")
        process.kill()
        process.wait(10)
    listed = host.world.run("enclave", "list", "--all").out
    assert [line.split()[1] for line in listed.splitlines() if line.startswith("killed ")] == ["lost"]
    host.demand_nothing_left()


def _wait_for_line(process: subprocess.Popen[str], words: str) -> None:
    assert process.stderr is not None
    readline: Callable[[], str] = process.stderr.readline
    for line in iter(readline, ""):
        if words in line:
            return
    pytest.fail(f"the command ended before {words!r}")
