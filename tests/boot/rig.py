# SPDX-License-Identifier: MIT
"""A host that need not be honest: boots an image's parts under QEMU, answers its ports as a test wants, and watches.

The guest, QEMU, the vsock backend and the emulated module are the real ones; what a supervisor would do is the test's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from attestation.channel import Evidence, fetch_evidence
from attestation.endpoint import Endpoint
from attestation.measurements import Measurements
from enclave_image.eif import Eif
from enclave_image.runtime.wire import (
    HEARTBEAT,
    PORT_API,
    PORT_EVENTS,
    PORT_HEARTBEAT,
    PORT_NSM,
    PORT_POLICY,
    Event,
)
from host_shim.accel import Accel
from host_shim.console_log import read_some
from host_shim.dev_pki import Chain, DevelopmentRoot, open_root
from host_shim.isolate import Running
from host_shim.nsm_emulator import BootState, Identity, NsmEmulator
from host_shim.qemu import BootFiles, Machine, QemuIsolate, find_qemu

PATIENCE = 120.0  # seconds for anything; a busy machine under TCG

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
Serve = Callable[["Host", Reader, Writer], Awaitable[None]]


def frame(data: bytes) -> bytes:
    """Return the wire form of a policy or an NSM message."""
    return len(data).to_bytes(4, "big") + data


@dataclass(slots=True)
class Host:
    """What the guest finds when it dials, and what it was heard to say."""

    policy: bytes
    module: NsmEmulator
    give_policy: Serve
    dialled: list[int] = field(default_factory=list)  # ports, in the order of the connections
    events: list[Event] = field(default_factory=list)
    policy_answers: bytearray = field(default_factory=bytearray)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self) -> None:
        """Wake who waits for something."""
        self.changed.set()

    async def serve(self, port: int, reader: Reader, writer: Writer) -> None:
        """Answer one connection of the guest's."""
        self.dialled.append(port)
        self.note()
        with contextlib.suppress(OSError, EOFError):
            match port:
                case 9000:
                    assert await reader.readexactly(1) == HEARTBEAT
                    writer.write(HEARTBEAT)
                    await writer.drain()
                case 9001:
                    await self.give_policy(self, reader, writer)
                case 9002 if self.dialled.count(PORT_NSM) == 1:  # one connection in a boot
                    while True:
                        length = int.from_bytes(await reader.readexactly(4), "big")
                        writer.write(frame(self.module.answer(await reader.readexactly(length))))
                        await writer.drain()
                case 9003:
                    while code := await reader.read(1):
                        self.events.append(Event(code[0]))
                        self.note()
        writer.close()


async def give_policy(host: Host, reader: Reader, writer: Writer) -> None:
    """Do as an honest host does: the policy once, then take the answer."""
    writer.write(frame(host.policy))
    await writer.drain()
    host.policy_answers += await reader.read()
    host.note()


@dataclass(slots=True)
class Guest:
    """A machine that runs, or has run."""

    host: Host
    running: Running
    base: str
    root: DevelopmentRoot
    measurements: Measurements
    monitor: Path
    printed: bytearray = field(default_factory=bytearray)
    code: int | None = None  # QEMU's, once it has ended

    @property
    def console(self) -> str:
        return self.printed.decode("ascii", "backslashreplace")

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(f"{self.base}_{PORT_API}", None)

    async def wait_for(self, happened: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Wait until something has happened; fail with what was seen if it does not."""
        try:
            async with asyncio.timeout(seconds):
                while not happened():
                    self.host.changed.clear()
                    await self.host.changed.wait()
        except TimeoutError:
            raise AssertionError(f"nothing more than {self.host.events} {self.host.dialled}\n{self.console}") from None

    async def wait_for_event(self, event: Event) -> None:
        await self.wait_for(lambda: event in self.host.events or self.code is not None)
        assert event in self.host.events, (self.host.events, self.console)

    async def wait_for_console(self, *texts: str) -> None:
        """Wait until one of these stands on the console."""
        await self.wait_for(lambda: any(text in self.console for text in texts))

    async def wait_for_end(self, seconds: float = PATIENCE) -> None:
        """Wait until the machine is off."""
        await self.wait_for(lambda: self.code is not None, seconds)

    async def fetch(self, nonce: bytes = bytes(32)) -> Evidence:
        """Fetch evidence as a stranger; raise what the client raises."""
        return await asyncio.to_thread(fetch_evidence, self.endpoint, nonce, timeout=20.0)

    async def reset(self) -> None:
        """Press the machine's reset button."""
        reader, writer = await asyncio.open_unix_connection(str(self.monitor))
        await reader.readuntil(b"(qemu)")
        writer.write(b"system_reset\n")
        await writer.drain()
        await reader.readuntil(b"(qemu)")
        writer.close()


@contextlib.asynccontextmanager
async def boot(
    image: Eif,
    *,
    policy: bytes,
    state: Path,
    words: bytes = b"",
    give: Serve = give_policy,
    prepare: Callable[[NsmEmulator], object] = lambda module: None,
    command: Callable[[list[str]], list[str]] = lambda command: command,
) -> AsyncIterator[Guest]:
    """Boot an image's parts with `words` appended to the command line; everything has ended after the body.

    `state` is the host's state home. `prepare` may touch the module before the guest does, `command` change QEMU's.
    """
    root = open_root(lambda: datetime.now(UTC), state)
    identity = Identity.random()
    chain = Chain(root.authority, module_id=identity.module_id)
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="veracruz-rig-")))
        base, monitor = f"{directory}/v", directory / "monitor"
        files = stack.enter_context(BootFiles(image))
        files.command_line += words
        module = NsmEmulator(BootState(files.measurements, identity), chain, clock=lambda: datetime.now(UTC))
        prepare(module)
        host = Host(policy, module, give)
        for port in (PORT_HEARTBEAT, PORT_POLICY, PORT_NSM, PORT_EVENTS):
            server = await _listen(host, port, base)
            stack.callback(server.close)
        isolate = _Rigged(find_qemu(), files, Machine(), Accel.TCG, change=command, monitor=monitor)
        running = await isolate.start(Path(base), os.open(os.devnull, os.O_WRONLY))
        guest = Guest(host, running, base, root, files.measurements, monitor)
        stack.callback(running.close)
        stack.push_async_callback(running.stop)
        tasks = [asyncio.create_task(_watch(guest)), asyncio.create_task(_read_console(guest))]
        stack.push_async_callback(_finish, tasks)
        yield guest


@dataclass(frozen=True, slots=True)
class _Rigged(QemuIsolate):
    """The `qemu` isolate with its command changed."""

    change: Callable[[list[str]], list[str]] = lambda command: command
    monitor: Path = Path()

    def command(self, vsock: int) -> list[str]:
        command = QemuIsolate.command(self, vsock)
        command[command.index("-monitor") + 1] = f"unix:{self.monitor},server=on,wait=off"
        return self.change(command)


async def _listen(host: Host, port: int, base: str) -> asyncio.Server:
    async def serve(reader: Reader, writer: Writer) -> None:
        await host.serve(port, reader, writer)

    return await asyncio.start_unix_server(serve, path=f"{base}_{port}")


async def _watch(guest: Guest) -> None:
    guest.code = await guest.running.guest.wait()
    await asyncio.sleep(0.3)  # for the last event
    guest.host.note()


async def _read_console(guest: Guest) -> None:
    os.set_blocking(guest.running.console, False)
    while data := await read_some(guest.running.console, 4096):
        guest.printed += data
        guest.host.note()


async def _finish(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
