# SPDX-License-Identifier: MIT
"""What the isolate finds when it dials its parent: heartbeat, policy, NSM and events, as Unix sockets BASE_PORT.

Bytes from the isolate are a stranger's: each message has a limit and a deadline, each port a number of connections.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

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
from .parent_seat import Seat, Serve, UnixSeat, serve_at

DEADLINE = 20.0  # seconds for one exchange on the heartbeat and policy ports
CONNECTIONS = 8  # at once on one port


class ParentPorts:
    """The ports of one boot. News are told once each: a guest that repeats itself costs nothing.

    Without a policy only the heartbeat is answered: an image that was made by other tools wants no more of its parent.
    Without a module nobody listens at its port, and without `heartbeat` not at that one: its launcher answers there.
    """

    def __init__(
        self,
        seat: str | Seat,
        *,
        policy: bytes | None,
        module: NsmEmulator | None,
        tell: Callable[[FromGuest], None],
        heartbeat: bool = True,
    ) -> None:
        self._seat = UnixSeat(seat) if isinstance(seat, str) else seat
        self._heartbeat_here = heartbeat
        self._policy = policy
        self._module = module
        self._tell = tell
        self._told: set[FromGuest] = set()
        self._given: set[int] = set()  # ports that serve one connection in a boot, and have
        self._servers: list[asyncio.Server] = []
        self._ports: list[int] = []
        self._open: dict[int, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen on all that this boot needs."""
        for port, serve, once in self._wanted():
            listener = self._seat.open(port)
            self._ports.append(port)
            try:
                server = await serve_at(listener, self._seat.peer, self._guard(port, serve, once=once))
            except BaseException:  # cancelled, say: nobody would close it
                listener.close()
                raise
            self._servers.append(server)

    def _wanted(self) -> list[tuple[int, Serve, bool]]:
        """Return each port that is served, with how, and whether once in a boot."""
        ports: list[tuple[int, Serve, bool]] = []
        if self._heartbeat_here:
            ports.append((PORT_HEARTBEAT, self._heartbeat, False))
        if self._policy is not None:
            ports += [(PORT_POLICY, self._give_policy(self._policy), True), (PORT_EVENTS, self._hear_events, False)]
        if self._module is not None and self._policy is not None:
            ports.append((PORT_NSM, self._answer_nsm(self._module), True))
        return ports

    def rest(self) -> None:
        """Where other isolates may want the same ports, take no more connections; those that are open go on."""
        for server in self._servers if self._seat.shared else ():
            server.close()

    async def close(self) -> None:
        """Stop listening, drop every connection, remove the sockets."""
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for port in self._ports:
            self._seat.clear(port)

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

    def _answer_nsm(self, module: NsmEmulator) -> Serve:
        async def answer_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                length = int.from_bytes(await reader.readexactly(4), "big")
                if length > NSM_REQUEST_MAX + 1:  # one more is answered InputTooLarge; beyond that, nobody means it
                    return
                answer = module.answer(await reader.readexactly(length))
                writer.write(len(answer).to_bytes(4, "big") + answer)
                await writer.drain()

        return answer_all

    async def _hear_events(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(64):
            for code in data:
                self._hear(code)

    def _hear(self, code: int) -> None:
        event = None
        with contextlib.suppress(ValueError):
            event = Event(code)
        self._tell_once(EventCode(event))
