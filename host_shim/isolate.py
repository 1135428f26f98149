# SPDX-License-Identifier: MIT
"""The interface of every isolate: start it on a prefix of sockets, read its console, stop it.

The supervisor answers what the isolate dials (parent_ports) and hands it the policy there; participants reach what it
serves at BASE_5000, through the relay.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from attestation.measurements import Measurements

from .children import Child, Process
from .console_log import read_some
from .errors import IsolateDied
from .parent_seat import Seat, UnixSeat
from .record import Outside

READY = b"ready\n"
READY_TIMEOUT = 20.0  # seconds for a helper process to say that it listens


@dataclass(frozen=True, slots=True)
class Running:
    """An isolate's processes."""

    guest: Process  # the isolate ends when it does
    helpers: tuple[Process, ...]  # and cannot go on without these
    console: int  # descriptor: what the isolate writes to its console
    complaints: int | None = None  # descriptor: what the program that runs it says on stderr
    extras: tuple[Process, ...] = ()  # it can go on without these
    target: str | None = None  # where participants reach it; None is the Unix socket BASE_5000
    started: Callable[[], Awaitable[bool]] | None = None  # where others answer its heartbeat: waits until they have

    @property
    def children(self) -> tuple[Process, ...]:
        """All of them, in the order in which they are stopped."""
        return (self.guest, *self.helpers, *self.extras)

    async def stop(self) -> None:
        """End all processes."""
        for child in self.children:
            await child.stop()

    def close(self) -> None:
        """Close the descriptors, once nobody reads them."""
        for descriptor in (self.console, self.complaints):
            if descriptor is not None:
                os.close(descriptor)


class Evidence(StrEnum):
    """Who vouches for what the isolate's module says."""

    DEVELOPMENT = "development"  # our emulator, under this host's development root
    UNSIGNED = "unsigned"  # nobody
    NONE = "none"  # it has no module
    AWS = "aws"

    @property
    def emulated(self) -> bool:
        """Whether the isolate is to find our emulator at its parent's port."""
        return self is Evidence.DEVELOPMENT


class BesideUs:
    """An isolate that our own backend, or the file system, connects with us, and that dies with its supervisor."""

    __slots__ = ()
    adopted = False

    def seat(self, base: Path) -> Seat:
        """Return where it finds its parent."""
        return UnixSeat(base)

    def outside(self, base: Path) -> Outside | None:
        """Return None: nobody else keeps it."""
        return None


class Isolate(Protocol):
    """One way to run an isolate."""

    @property
    def kind(self) -> str:
        """The name that `--isolate` takes."""

    @property
    def accel(self) -> str | None:
        """What runs the guest's instructions; None where there is no guest."""

    @property
    def tentative(self) -> bool:
        """Whether it may turn out not to work on this machine, and another is tried then."""

    @property
    def caution(self) -> str:
        """What its user must know of its protection, said at each start."""

    @property
    def evidence(self) -> Evidence:
        """Who signs its documents."""

    @property
    def measurements(self) -> Measurements | None:
        """PCR0-2 of the image; None in debug mode."""

    @property
    def signer(self) -> bytes | None:
        """DER of the certificate that signed the image."""

    @property
    def adopted(self) -> bool:
        """Whether it serves already, and is only taken over."""

    def seat(self, base: Path) -> Seat:
        """Return where it finds its parent; one of each is made in a boot."""

    def outside(self, base: Path) -> Outside | None:
        """Return how to find it if this supervisor dies and it does not; known before it is started."""

    async def start(self, base: Path, log: int) -> Running:
        """Start it; its helpers write to the descriptor `log`. Raise VeracruzError with nothing left running."""


async def start_ready(command: Sequence[str], *, name: str, log: int, pass_fds: Sequence[int] = ()) -> Child:
    """Start a helper that prints `ready` once it listens; raise IsolateDied if it does not."""
    source, sink = os.pipe()
    os.set_blocking(source, False)
    try:
        try:
            child = Child(command, name=name, stdout=sink, stderr=log, pass_fds=pass_fds)
        finally:
            os.close(sink)
        said = b""
        try:
            async with asyncio.timeout(READY_TIMEOUT):
                while READY not in said and (data := await read_some(source, 256)):
                    said += data
        except BaseException as error:
            await child.stop()
            if isinstance(error, TimeoutError):
                raise IsolateDied(f"the {name} did not start within {READY_TIMEOUT:.0f} s") from error
            raise
        if READY not in said:
            code = await child.wait()
            raise IsolateDied(f"the {name} ended at its start", actual=f"exit code {code}", hint="see supervisor.log")
        return child
    finally:
        os.close(source)
