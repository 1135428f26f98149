# SPDX-License-Identifier: MIT
"""A container image becomes an enclave image that greets its parent, runs the command as its user, and is reached."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from enclave_image.eif import Eif, SectionType, load_eif, read_eif, write_eif
from enclave_image.program import build_guest_program
from host_shim.accel import Accel
from host_shim.isolate import Running
from host_shim.qemu import BootFiles, Machine, QemuIsolate, find_qemu

from ..enclave_image.container.layouts import Layout, folder, hard, make_tar, member
from ..waiting import eventually
from .machines import World

pytestmark = [pytest.mark.boot, pytest.mark.timeout(900)]

PATIENCE = 120.0  # seconds; a busy machine under TCG
SOURCE = Path(__file__).parent / "container_app.c"
GREETING = b"\xb7"
PASSWD = b"root:x:0:0::/root:/bin/sh\nann:x:1000:1001::/srv:/bin/sh\n"
GROUP = b"wheel:x:10:ann\n"
SAYS = """arg app
arg from entrypoint
arg from cmd
env PATH=/opt
env LINE=a b
env HOME=/srv
user 1000 1001 10
cwd /srv
data 100640 1000 1001 2
own 1
whiteout -1
child of 1: 1
loopback
init -1 cmd -1
serving"""


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    program = build_guest_program("container-app", SOURCE)
    layout = Layout()
    layout.add(
        [
            make_tar(
                folder("opt"), member("opt/app", program, mode=0o755), member("etc/passwd", PASSWD),
                member("etc/group", GROUP), folder("srv", uid=1000, gid=1001), member("srv/gone", b"x"),
            ),
            make_tar(
                member("srv/.wh.gone"), member("srv/data", b"data", mode=0o640, uid=1000, gid=1001),
                hard("srv/again", "srv/data"),
            ),
        ],
        {
            "Entrypoint": ["app", "from entrypoint"], "Cmd": ["from cmd"], "Env": ["PATH=/opt", "LINE=a b"],
            "User": "ann", "WorkingDir": "/srv",
        },
    )  # fmt: skip
    return layout


@pytest.fixture(scope="module")
def built(world: World, layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("container")
    out = directory / "container.eif"
    done = world.run("image", "build", "--from-oci", layout.write(directory / "layout"), "--out", out, timeout=2400)
    assert "runs a container, not our runtime" in done.err
    return out


def test_the_same_digest_and_lock_give_the_same_bytes(
    world: World, layout: Layout, built: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.eif"
    old = os.umask(0o077)
    try:
        done = world.run("image", "build", "--from-oci", layout.write_tar(tmp_path / "l.tar"), "--out", again, "--json")
    finally:
        os.umask(old)
    assert again.read_bytes() == built.read_bytes()
    assert done.json["container"] == layout.manifests[0]["digest"]
    assert (done.json["uid"], done.json["gid"], done.json["groups"]) == (1000, 1001, [10])
    before = again.stat()
    done = world.run("image", "build", "--from-oci", tmp_path / "l.tar", "--out", again, "--json")
    assert done.json["changed"] is False
    assert (again.stat().st_ino, again.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@dataclass(slots=True)
class Booted:
    """A machine that runs a container, and what its console said."""

    base: Path
    running: Running
    console: bytearray = field(default_factory=bytearray)

    async def read_console(self) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.run_in_executor(None, os.read, self.running.console, 4096):
            self.console += data

    async def wait_for(self, text: str) -> list[str]:
        """Return the console's lines once one of them is `text`."""
        async with asyncio.timeout(PATIENCE):
            while text not in (lines := self.console.decode("utf-8", "replace").splitlines()):
                await asyncio.sleep(0.02)
        return lines


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.readexactly(1))
    await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def boot(image: Eif, *, parent: bool = True) -> AsyncIterator[Booted]:
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="veracruz-container-")))
        files = stack.enter_context(BootFiles(image))
        if parent:
            server = await asyncio.start_unix_server(_answer, path=f"{directory}/v_9000")
            stack.callback(server.close)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, nowhere)
        running = await QemuIsolate(find_qemu(), files, Machine(), Accel.TCG).start(directory / "v", nowhere)
        stack.callback(running.close)
        machine = Booted(directory / "v", running)
        reading = asyncio.create_task(machine.read_console())
        stack.push_async_callback(asyncio.wait, [reading])
        stack.push_async_callback(running.stop)
        yield machine


def test_the_command_runs_as_its_user_in_its_directory_and_is_reached(built: Path) -> None:
    async def main() -> None:
        async with boot(load_eif(built)) as machine:
            lines = await machine.wait_for("serving")
            assert "\n".join(lines[lines.index("arg app") :]).startswith(SAYS)
            reader, writer = await asyncio.open_unix_connection(f"{machine.base}_5000")
            writer.write(b"x" * 100_000)
            assert await asyncio.wait_for(reader.readexactly(100_000), PATIENCE) == b"x" * 100_000
            writer.close()
            _, writer = await asyncio.open_unix_connection(f"{machine.base}_5000")
            writer.write(b"quit")
            await machine.wait_for("init: the command has ended with exit code 42")
            assert await asyncio.wait_for(machine.running.guest.wait(), PATIENCE) == 0
            writer.close()

    asyncio.run(main())


def test_enclave_run_relays_to_it(world: World, built: Path) -> None:
    done = world.run("enclave", "run", built, "--no-policy", "--port", "5000", "--detach", "--json")
    try:
        host, _, port = done.json["endpoint"].rpartition(":")
        assert eventually(lambda: echoes(host, int(port)), patience=PATIENCE)
        assert "user 1000 1001" in world.run("enclave", "console", done.json["name"]).out
    finally:
        world.run("enclave", "stop", done.json["name"])


def echoes(host: str, port: int) -> bool:
    with socket.create_connection((host, port), timeout=30) as client, contextlib.suppress(ConnectionError):
        client.sendall(b"hello")
        return client.recv(5, socket.MSG_WAITALL) == b"hello"
    return False


@pytest.mark.parametrize(
    ("change", "parent", "says"),
    [
        (lambda line: line, False, "init: halt: the parent does not answer the heartbeat"),
        (lambda line: line.replace(b" quiet", b""), True, "init: halt: the command line is not the one measured"),
    ],
    ids=["no parent", "another command line"],
)
def test_it_halts_before_the_command(built: Path, change: object, parent: bool, says: str) -> None:
    assert callable(change)
    own = load_eif(built)
    data = [(s.type, change(own.cmdline) if s.type is SectionType.CMDLINE else s.data) for s in own.sections]

    async def main() -> None:
        async with boot(read_eif(write_eif(data)), parent=parent) as machine:
            lines = await machine.wait_for(says)
            assert await asyncio.wait_for(machine.running.guest.wait(), PATIENCE) == 0
            assert not any(line.startswith("arg ") for line in lines)

    asyncio.run(main())
