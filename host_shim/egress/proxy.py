# SPDX-License-Identifier: MIT
"""Carries connections from the parent's ports to the places that their rules name. Every decision is one line.

The bytes are TLS of the application's own; they are neither looked at nor logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass

from attestation.errors import escape

from ..parent_seat import serve_at
from .rules import Address, Rule

RESOLVE = 5.0  # seconds for a name
CONNECT = 10.0  # seconds for one address
IDLE = 300.0  # seconds without a byte in either direction
CONNECTIONS = 64  # at once through one rule
MOST_ADDRESSES = 8  # of a name's, in the resolver's order
PIECE = 64 * 1024  # bytes

Resolve = Callable[[Rule], Awaitable[list[Address]]]


@dataclass(slots=True)
class Traffic:
    """What one connection moved."""

    out: int = 0
    back: int = 0
    last: float = 0.0  # seconds, monotonic


async def resolve(rule: Rule) -> list[Address]:
    """Ask the machine's own resolver, afresh; raise OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(rule.host, rule.target, type=socket.SOCK_STREAM)
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    return list(dict.fromkeys(addresses))


class EgressProxy:
    """Serves listening sockets, each with its rule; on vsock for the CID `peer` alone.

    `tell` takes lines of printable ASCII.
    """

    def __init__(
        self, listeners: Mapping[Rule, socket.socket], tell: Callable[[str], None], *, peer: int | None = None,
        resolve: Resolve = resolve, idle: float = IDLE, connections: int = CONNECTIONS,
    ) -> None:  # fmt: skip
        self._listeners = listeners
        self._peer = peer
        self._tell = tell
        self._resolve = resolve
        self._idle = idle
        self._most = connections
        self._open = dict.fromkeys(listeners, 0)

    async def run(self) -> None:
        """Serve until cancelled."""
        async with contextlib.AsyncExitStack() as stack:
            for rule, listener in self._listeners.items():
                server = await serve_at(listener, self._peer, self._accept(rule))
                await stack.enter_async_context(server)
            await asyncio.Event().wait()

    def _accept(self, rule: Rule) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._open[rule] += 1
            try:
                if self._open[rule] > self._most:
                    self._say(rule, f"refused: {self._most} connections are open")
                else:
                    await self._carry(rule, reader, writer)
            except OSError as error:
                self._say(rule, f"broken: {error.strerror or type(error).__name__}")
            except asyncio.CancelledError:
                pass  # the end of the proxy; the streams' own callback would print it
            finally:
                self._open[rule] -= 1
                writer.transport.abort()  # after a regular end nothing is left to be sent

        return accept

    async def _carry(self, rule: Rule, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with self._reach(rule) as reached:
            if reached is None:
                return
            address, far_reader, far_writer = reached
            for stream in (writer, far_writer):
                stream.transport.set_write_buffer_limits(0)  # what is drained is with the kernel, and survives the end
            begin = time.monotonic()
            traffic = Traffic(last=begin)
            how = "closed"
            try:
                async with asyncio.TaskGroup() as group:
                    watch = group.create_task(self._watch(traffic))
                    out = group.create_task(_copy(reader, far_writer, traffic, outward=True))
                    back = group.create_task(_copy(far_reader, writer, traffic, outward=False))
                    await asyncio.gather(out, back)
                    watch.cancel()
            except ExceptionGroup as group_error:
                first = group_error.exceptions[0]
                how = "idle" if isinstance(first, TimeoutError) else f"broken ({type(first).__name__})"
            seconds = time.monotonic() - begin
            self._say(rule, f"{how}: {address}, {traffic.out} bytes out, {traffic.back} back, {seconds:.1f} s")

    async def _watch(self, traffic: Traffic) -> None:
        """Raise TimeoutError once nothing has moved for the time that is allowed."""
        while (left := traffic.last + self._idle - time.monotonic()) > 0:
            await asyncio.sleep(left)
        raise TimeoutError

    @contextlib.asynccontextmanager
    async def _reach(
        self, rule: Rule
    ) -> AsyncIterator[tuple[Address, asyncio.StreamReader, asyncio.StreamWriter] | None]:
        """Give a connection to the first of the rule's addresses that takes one; None, and told why, if none does."""
        literal = rule.literal
        try:
            async with asyncio.timeout(RESOLVE):
                addresses = [literal] if literal is not None else await self._resolve(rule)
        except (OSError, UnicodeError) as error:
            late = isinstance(error, TimeoutError)
            why = f"no answer in {RESOLVE:.0f} s" if late else getattr(error, "strerror", None) or "no such name"
            self._say(rule, f"refused: the name cannot be resolved: {why}")
            yield None
            return
        for address in addresses[:MOST_ADDRESSES]:
            if (wrong := rule.refuses(address)) is not None:
                self._say(rule, f"refused: {address}: {wrong}")
                continue
            try:
                async with asyncio.timeout(CONNECT):
                    reader, writer = await asyncio.open_connection(str(address), rule.target)
            except OSError as error:
                late = isinstance(error, TimeoutError)
                why = f"no answer in {CONNECT:.0f} s" if late else error.strerror or type(error).__name__
                self._say(rule, f"not reached: {address}: {why}")
                continue
            self._say(rule, f"allowed: {address}")
            try:
                yield address, reader, writer
            finally:
                writer.transport.abort()
            return
        yield None

    def _say(self, rule: Rule, text: str) -> None:
        self._tell(escape(f"{rule}: {text}"))


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter, traffic: Traffic, *, outward: bool) -> None:
    """Move bytes until their sender has ended, then end the other side's direction too."""
    while data := await source.read(PIECE):
        sink.write(data)
        await sink.drain()
        traffic.last = time.monotonic()
        if outward:
            traffic.out += len(data)
        else:
            traffic.back += len(data)
    if sink.can_write_eof():
        sink.write_eof()
        await sink.drain()
