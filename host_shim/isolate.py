# SPDX-License-Identifier: MIT
"""The interface of every isolate: start it on a prefix of sockets, read its console, stop it.

The supervisor answers what the isolate dials (parent_ports) and hands it the policy there; participants reach what it
serves at BASE_5000, through the relay.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from attestation.measurements import Measurements

from .children import Child
from .console_log import read_some
from .errors import IsolateDied

READY = b"ready\n"
READY_TIMEOUT = 20.0  # seconds for a helper process to say that it listens


@dataclass(frozen=True, slots=True)
class Running:
    """An isolate's processes."""

    guest: Child  # the isolate ends when it does
    helpers: tuple[Child, ...]  # and cannot go on without these
    console: int  # descriptor: what the isolate writes to its console
    complaints: int | None = None  # descriptor: what the program that runs it says on stderr

    @property
    def children(self) -> tuple[Child, ...]:
        """All of them, in the order in which they are stopped."""
        return (self.guest, *self.helpers)

    async def stop(self) -> None:
        """End all processes."""
        for child in self.children:
            await child.stop()

    def close(self) -> None:
        """Close the descriptors, once nobody reads them."""
        for descriptor in (self.console, self.complaints):
            if descriptor is not None:
                os.close(descriptor)


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
    def measurements(self) -> Measurements | None:
        """PCR0-2 of the image; None in debug mode."""

    @property
    def signer(self) -> bytes | None:
        """DER of the certificate that signed the image."""

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
