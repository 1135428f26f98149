# SPDX-License-Identifier: MIT
"""What the isolate finds when it dials its parent: heartbeat, policy, NSM and events, as Unix sockets BASE_PORT.

Bytes from the isolate are a stranger's: each message has a limit and a deadline, each port a number of connections.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from attestation.limits import NSM_REQUEST_MAX
from enclave_image.runtime.wire import (
    HEARTBEAT,
    PORT_EVENTS,
    PORT_HEARTBEAT,
    PORT_NSM,
    PORT_POLICY,
    Event,
)

from .news import EventCode, FromGuest, Heartbeat
from .nsm_emulator import NsmEmulator

DEADLINE = 20.0  # seconds for one exchange on the heartbeat and policy ports
CONNECTIONS = 8  # at once on one port
BACKLOG = 16

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class ParentPorts:
    """The ports of one boot. News are told once each: a guest that repeats itself costs nothing.

    Without a policy only the heartbeat is answered: an image that was made by other tools wants no more of its parent.
    """

    def __init__(
        self, base: str, *, policy: bytes | None, module: NsmEmulator, tell: Callable[[FromGuest], None]
    ) -> None:
        self._base = base
        self._policy = policy
        self._module = module
        self._tell = tell
        self._told: set[FromGuest] = set()
        self._given: set[int] = set()  # ports that serve one connection in a boot, and have
        self._servers: list[asyncio.Server] = []
        self._open: dict[int, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen on all that this boot needs."""
        ports: list[tuple[int, Serve, bool]] = [(PORT_HEARTBEAT, self._heartbeat, False)]
        if self._policy is not None:
            ports += [
                (PORT_POLICY, self._give_policy(self._policy), True),
                (PORT_NSM, self._answer_nsm, True),
                (PORT_EVENTS, self._hear_events, False),
            ]
        for port, serve, once in ports:
            server = await asyncio.start_unix_server(
                self._guard(port, serve, once=once), path=f"{self._base}_{port}", backlog=BACKLOG
            )
            self._servers.append(server)

    async def close(self) -> None:
        """Stop listening, drop every connection, remove the sockets."""
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for port in (PORT_HEARTBEAT, PORT_POLICY, PORT_NSM, PORT_EVENTS):
            Path(f"{self._base}_{port}").unlink(missing_ok=True)

    def _guard(self, port: int, serve: Serve, *, once: bool) -> Serve:
        async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            self._open[port] = self._open.get(port, 0) + 1
            try:
                if self._open[port] <= CONNECTIONS and not (once and port in self._given):
                    self._given.add(port)
                    await serve(reader, writer)
            except (OSError, EOFError, TimeoutError, asyncio.CancelledError):
                pass  # the guest's own affair, or the end
            finally:
                self._open[port] -= 1
                self._tasks.discard(task)
                writer.close()

        return guarded

    def _tell_once(self, news: FromGuest) -> None:
        if news not in self._told:
            self._told.add(news)
            self._tell(news)

    async def _heartbeat(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(DEADLINE):
            if await reader.readexactly(1) == HEARTBEAT:
                writer.write(HEARTBEAT)
                await writer.drain()
                self._tell_once(Heartbeat())

    def _give_policy(self, policy: bytes) -> Serve:
        async def give(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            async with asyncio.timeout(DEADLINE):
                writer.write(len(policy).to_bytes(4, "big") + policy)
                await writer.drain()
                self._hear((await reader.readexactly(1))[0])

        return give

    async def _answer_nsm(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            length = int.from_bytes(await reader.readexactly(4), "big")
            if length > NSM_REQUEST_MAX + 1:  # one more is answered InputTooLarge; beyond that, nobody means it
                return
            answer = self._module.answer(await reader.readexactly(length))
            writer.write(len(answer).to_bytes(4, "big") + answer)
            await writer.drain()

    async def _hear_events(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(64):
            for code in data:
                self._hear(code)

    def _hear(self, code: int) -> None:
        event = None
        with contextlib.suppress(ValueError):
            event = Event(code)
        self._tell_once(EventCode(event))
