# SPDX-License-Identifier: MIT
"""An enclave that nitro-cli keeps, watched through the process that holds it: it ends when the enclave does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess

from .children import GONE, GRACE, Child, ProcessId
from .console_log import read_some
from .errors import NitroCliFailed
from .nitro_cli import MAX_ANSWER, PATIENCE, Enclave, parse_started

START_GRACE = 30.0  # seconds that a start is given to finish when it is to be ended: only then can the enclave be


class NitroGuest:
    """One enclave, from the command that starts it, or taken over while it runs."""

    def __init__(
        self,
        tool: str,
        name: str,
        *,
        complaints: int,
        starter: Child | None = None,
        answer: int = -1,
        enclave: Enclave | None = None,
    ) -> None:
        self.name = "nitro-cli" if starter else "enclave"
        self._tool = tool
        self._enclave_name = name
        self._complaints = complaints
        self._starter = starter
        self._answer = answer
        self._process: ProcessId | None = ProcessId.of(enclave.pid) if enclave else None
        self._pid = enclave.pid if enclave else starter.pid if starter else 0
        self._watching: asyncio.Task[int] | None = None
        self._answered = asyncio.Event()  # the start is over, one way or the other
        self.lives_on = True  # until it is known to have ended, or never to have begun

    @property
    def pid(self) -> int:
        """The number of the process that stands for it now."""
        return self._pid

    @property
    def identity(self) -> ProcessId | None:
        """The starting process while it starts; what holds the enclave is not ours to kill."""
        return self._starter.identity if self._starter else None

    async def wait(self) -> int:
        """Return nitro-cli's exit code if it did not start the enclave; GONE once the enclave has ended."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        return await asyncio.shield(self._watching)

    async def started(self) -> bool:
        """Wait until nitro-cli has had the enclave's heartbeat; return whether it has."""
        await self._answered.wait()
        return self._process is not None

    async def _watch(self) -> int:
        try:
            if self._starter is not None:
                code = await self._take_answer(self._starter)
                self._answered.set()
                if code != 0:
                    self.lives_on = self.lives_on and code < 0  # a start that was killed may go on without it
                    return code
            await _ended(self._process)
            self.lives_on = False
            return GONE
        finally:
            os.close(self._complaints)
            self._complaints = -1

    async def _take_answer(self, starter: Child) -> int:
        """Read what run-enclave prints; return 0 once the enclave's process is known."""
        os.set_blocking(self._answer, False)
        said = b""
        try:
            while len(said) <= MAX_ANSWER and (data := await read_some(self._answer, 65536)):
                said += data
        finally:
            os.close(self._answer)
            self._answer = -1
        code = await starter.wait()
        if code != 0:
            return code
        try:
            enclave = parse_started(said, self._enclave_name)
        except NitroCliFailed as error:
            self._complain(str(error))
            await self._terminate()
            return 1
        self._process, self._pid, self.name = ProcessId.of(enclave.pid), enclave.pid, "enclave"
        return 0

    def _complain(self, line: str) -> None:
        if self._complaints >= 0:
            with contextlib.suppress(OSError):
                os.write(self._complaints, line.encode("ascii", "backslashreplace") + b"\n")

    async def stop(self) -> None:
        """End the enclave; a start is waited for first, since nitro-cli ends only what has started."""
        waiting = asyncio.ensure_future(self.wait())
        if self._starter is not None and not self._answered.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._answered.wait(), START_GRACE)
            await self._starter.stop()
            await self._answered.wait()
        if self.lives_on:
            await self._terminate()
            if self._process is not None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(_ended(self._process), GRACE)
                self._process.signal(signal.SIGKILL)  # the driver ends the enclave of a process that is gone
        await waiting

    async def _terminate(self) -> None:
        try:
            child = Child(
                [self._tool, "terminate-enclave", "--enclave-name", self._enclave_name],
                name="nitro-cli", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except OSError:
            return
        try:
            code = await asyncio.wait_for(child.wait(), PATIENCE)
        except TimeoutError:
            await child.stop()
            return
        self.lives_on = self.lives_on and code != 0

    def kill(self) -> None:
        """End it without asking nitro-cli."""
        if self._starter is not None and self._process is None:
            self._starter.kill()
        if self._process is not None:
            self._process.signal(signal.SIGKILL)


async def _ended(process: ProcessId | None) -> None:
    """Wait until a process that need not be our child has ended."""
    if process is None:
        return
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    loop.add_reader(descriptor, gone.set)
    try:
        if process.alive:
            await gone.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
