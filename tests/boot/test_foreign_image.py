# SPDX-License-Identifier: MIT
"""An EIF laid out as AWS's tools make them, with an /init of our own that was written from theirs' description.

ramdisk 0: /dev, /init; ramdisk 1: /rootfs/**, /cmd, /env. Its /init wants the parent's answer at CID 3, port 9000.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from attestation.measurements import ZERO_PCR, Measurements
from enclave_image.eif import Eif, SectionType, read_eif, write_eif
from enclave_image.initramfs import File, Node, write_cpio
from enclave_image.program import build_guest_program
from host_shim.accel import Accel
from host_shim.children import Child, python_command
from host_shim.dev_pki import Chain, open_root
from host_shim.isolate import Running, start_ready
from host_shim.news import FromGuest, Heartbeat
from host_shim.nsm_emulator import BootState, Identity, NsmEmulator
from host_shim.parent_ports import ParentPorts
from host_shim.qemu import GUEST_CID, BootFiles, Machine, QemuIsolate, find_qemu

from ..waiting import eventually
from .machines import World
from .nitro_machine import find_nitro_qemu

pytestmark = [pytest.mark.boot, pytest.mark.timeout(900)]

PATIENCE = 120.0  # seconds; a busy machine under TCG
# What AWS's builder writes for x86-64 (facts of its public sources).
CMDLINE = (
    b"reboot=k panic=30 pci=off nomodules console=ttyS0 i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd "
    b"random.trust_cpu=on"
)
GREETING = b"/bin/app from-cmd GREETING=from-env\n"
SOURCE = Path(__file__).parent / "foreign_init.c"


@pytest.fixture(scope="module")
def foreign(image: Path) -> Eif:
    program = build_guest_program("foreign-init", SOURCE)
    own = read_eif(image.read_bytes())
    first = write_cpio({"dev/console": Node(5, 1, 0o600), "init": File(program, executable=True)})
    root = dict.fromkeys((f"rootfs/{name}" for name in ("dev", "run", "sys", "var", "proc", "tmp")), None)
    second = write_cpio(
        {
            **root,
            "rootfs/bin/app": File(program, executable=True),
            "cmd": File(b"/bin/app\nfrom-cmd\n"),
            "env": File(b"PATH=/bin\nGREETING=from-env\n"),
        }
    )
    return read_eif(
        write_eif(
            [
                (SectionType.KERNEL, bytes(own.kernel)), (SectionType.CMDLINE, CMDLINE),
                (SectionType.METADATA, b"{}"), (SectionType.RAMDISK, first), (SectionType.RAMDISK, second),
            ]
        )
    )  # fmt: skip


@dataclass(slots=True)
class Booted:
    """A machine that boots the foreign image, and what it was heard to say."""

    base: Path
    running: Running
    heard: list[FromGuest]
    console: bytearray = field(default_factory=bytearray)

    async def read_console(self) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.run_in_executor(None, os.read, self.running.console, 4096):
            self.console += data

    async def wait_for(self, text: bytes) -> None:
        async with asyncio.timeout(PATIENCE):
            while text not in self.console:
                await asyncio.sleep(0.02)


def make_module(state: Path) -> NsmEmulator:
    root = open_root(lambda: datetime.now(UTC), state)
    identity = Identity.random()
    measured = Measurements(ZERO_PCR, ZERO_PCR, ZERO_PCR)
    chain = Chain(root.authority, module_id=identity.module_id)
    return NsmEmulator(BootState(measured, identity), chain, clock=lambda: datetime.now(UTC))


@contextlib.asynccontextmanager
async def boot(foreign: Eif, state: Path, *, parent: bool = True) -> AsyncIterator[Booted]:
    heard: list[FromGuest] = []
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="veracruz-foreign-")))
        files = stack.enter_context(BootFiles(foreign))
        if parent:
            ports = ParentPorts(str(directory / "v"), policy=None, module=make_module(state), tell=heard.append)
            stack.push_async_callback(ports.close)
            await ports.open()
            assert sorted(path.name for path in directory.iterdir()) == ["v_9000"]
        isolate = QemuIsolate(find_qemu(), files, Machine(), Accel.TCG)
        running = await isolate.start(directory / "v", os.open(os.devnull, os.O_WRONLY))
        stack.callback(running.close)
        machine = Booted(directory / "v", running, heard)
        reading = asyncio.create_task(machine.read_console())
        stack.push_async_callback(asyncio.wait, [reading])
        stack.push_async_callback(running.stop)
        yield machine


async def talk(base: Path, stack: contextlib.AsyncExitStack) -> asyncio.StreamReader:
    """Return a connection on which the command has said its line; the guest may still be booting."""
    async with asyncio.timeout(PATIENCE):
        while True:
            reader, writer = await asyncio.open_unix_connection(f"{base}_5000")
            with contextlib.suppress(OSError):
                if await reader.readline() == GREETING:
                    stack.callback(writer.close)
                    return reader
            writer.close()
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("isolate", ["qemu", "qemu-nitro"])
def test_enclave_run_starts_it_and_relays_to_its_port(foreign: Eif, world: World, isolate: str, tmp_path: Path) -> None:
    if isolate == "qemu-nitro":
        find_nitro_qemu()
    file = tmp_path / "foreign.eif"
    file.write_bytes(write_eif([(section.type, bytes(section.data)) for section in foreign.sections]))
    words = ("--no-policy", "--port", "5000", "--isolate", isolate, "--accel", "tcg", "--boot-limit", str(PATIENCE))
    told = world.run("enclave", "run", file, *words, "--detach", "--json").json
    try:
        assert (told["policy"], told["evidence"]) == (None, "none" if isolate == "qemu" else "unsigned")
        host, _, port = told["endpoint"].rpartition(":")
        assert eventually(lambda: greets(host, int(port)), patience=PATIENCE)
        known = world.run("enclave", "describe", told["name"], "--json").json
        assert (known["stage"], known["port"]) == ("serving", 5000)
        assert set(known["traffic"]) == {"open", "accepted", "refused", "bytes_in", "bytes_out"}
        assert eventually(lambda: has_counted(world, told["name"]), patience=PATIENCE)
        with socket.create_connection((host, int(port)), timeout=30) as client:
            client.sendall(b"quit")  # it ends, and says so nowhere but on its console
        assert eventually(lambda: not lives(world, told["name"]), patience=PATIENCE)
        known = world.run("enclave", "describe", told["name"], "--json").json
        assert known["stage"] == "failed"
        assert "foreign command: serving" in world.run("enclave", "console", told["name"]).out
    finally:
        world.run("enclave", "stop", told["name"], expect=None)


def greets(host: str, port: int) -> bool:
    with socket.create_connection((host, port), timeout=30) as client, contextlib.suppress(ConnectionError):
        return client.makefile("rb").readline() == GREETING
    return False


def lives(world: World, name: str) -> bool:
    """Whether `enclave list` shows it among those that live; other tests' isolates may be there too."""
    return name in {isolate["name"] for isolate in world.run("enclave", "list", "--json").json["isolates"]}


def has_counted(world: World, name: str) -> bool:
    """Whether the relay has told of the connection that was greeted, as it does every second."""
    traffic = world.run("enclave", "describe", name, "--json").json["traffic"]
    return bool(traffic["accepted"] and traffic["bytes_out"] >= len(GREETING))


async def press_reset(monitor: Path) -> None:
    """Press the machine's reset button."""
    reader, writer = await asyncio.open_unix_connection(str(monitor))
    await reader.readuntil(b"(qemu)")
    writer.write(b"system_reset\n")
    await writer.drain()
    await reader.readuntil(b"(qemu)")
    writer.close()


async def converse(machine: Booted) -> None:
    await machine.wait_for(b"foreign command: serving")
    for text in (b"hello", b"x" * 100_000):
        reader, writer = await asyncio.open_unix_connection(f"{machine.base}_5000")
        assert await reader.readline() == GREETING
        writer.write(text)
        assert await reader.readexactly(len(text)) == text
        writer.close()
    reader, writer = await asyncio.open_unix_connection(f"{machine.base}_5000")
    writer.write(b"quit")
    assert await asyncio.wait_for(machine.running.guest.wait(), PATIENCE) == 0
    writer.close()


def test_an_image_of_that_layout_boots_greets_runs_its_command_and_is_reached(foreign: Eif, tmp_path: Path) -> None:
    async def main() -> None:
        async with boot(foreign, tmp_path) as machine:
            await converse(machine)
            assert machine.heard == [Heartbeat()]

    asyncio.run(main())


def test_its_init_dies_at_once_where_no_parent_answers(foreign: Eif, tmp_path: Path) -> None:
    async def main() -> None:
        async with boot(foreign, tmp_path, parent=False) as machine:
            await asyncio.wait_for(machine.running.guest.wait(), PATIENCE)
            assert b"foreign init: no parent" in machine.console
            assert b"Kernel panic" in machine.console

    asyncio.run(main())


def test_one_backend_serves_a_guest_that_is_reset_and_one_after_a_killed_qemu(foreign: Eif, tmp_path: Path) -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="veracruz-foreign-"))) / "v"
            ports = ParentPorts(str(base), policy=None, module=make_module(tmp_path), tell=lambda news: None)
            stack.push_async_callback(ports.close)
            await ports.open()
            vhost, monitor = base.with_name("vhost"), base.with_name("monitor")
            where = ("--socket", str(vhost), "--base", str(base), "--listen", "5000", "--guest-cid", str(GUEST_CID))
            backend = await start_ready(python_command("host_shim.vhost_user", *where), name="backend", log=2)
            stack.push_async_callback(backend.stop)
            files = stack.enter_context(BootFiles(foreign))
            command = QemuIsolate(find_qemu(), files, Machine(), Accel.TCG).command(0)
            command.remove("-no-reboot")
            command[command.index("-chardev") + 1] = f"socket,id=vsock,path={vhost}"
            command[command.index("-monitor") + 1] = f"unix:{monitor},server=on,wait=off"
            fds = [files.kernel.descriptor, files.ramdisks.descriptor]

            guest = Child(command, name="QEMU", stdout=subprocess.DEVNULL, pass_fds=fds)
            stack.push_async_callback(guest.stop)
            reader = await talk(base, stack)
            await press_reset(monitor)
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""  # told at once that its guest is gone
            reader = await talk(base, stack)  # the same QEMU, the same backend
            os.kill(guest.pid, signal.SIGKILL)
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
            await guest.wait()

            second = Child(command, name="QEMU", stdout=subprocess.DEVNULL, pass_fds=fds)
            stack.push_async_callback(second.stop)
            await talk(base, stack)

    asyncio.run(main())
