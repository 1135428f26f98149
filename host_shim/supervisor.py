# SPDX-License-Identifier: MIT
"""Brings one isolate up, keeps it until it ends or is asked to, and leaves nothing behind.

One thread, one queue of news: what the guest tells, which process ended, what the user asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from attestation.binding import policy_hash
from attestation.errors import VeracruzError, escape
from attestation.measurements import ZERO_PCR, Measurements, dump_measurements

from .boot import Boot, Interrupted, Setting, show_measurements, start_boot
from .children import ProcessId
from .console_log import ConsoleLog
from .dev_pki import DevelopmentRoot
from .egress.rules import Rule
from .errors import IsolateDied, IsolateHalted
from .isolate import Isolate
from .listen import Endpoint, Listener
from .news import FAREWELLS, Asked, Ended, EventCode, News, tell_event
from .relay.limits import Limits
from .report import Report
from .state import Claim, Isolates, Record, Stage

BOOT_LIMIT = 120.0  # seconds from the start of the machine until it serves


@dataclass(frozen=True, slots=True)
class Order:
    """What is to run: the isolates are tried in this order, the next one if a tentative one does not come up."""

    isolates: Sequence[Isolate]
    policy: bytes
    image: str | None
    listen: Endpoint
    name: str | None = None
    role: str | None = None
    boot_limit: float = BOOT_LIMIT
    egress: tuple[Rule, ...] = ()
    limits: Limits = Limits(drain=0)  # noqa: RUF009 -- frozen
    works: Callable[[Isolate], None] = lambda isolate: None  # told which one came up


class Supervisor:
    """One run of `enclave run`; `serving` is told the record once participants can connect."""

    def __init__(self, order: Order, root: DevelopmentRoot, report: Report, serving: Callable[[Record], None]) -> None:
        self._order = order
        self._root = root
        self._report = report
        self._serving = serving
        self._news: asyncio.Queue[News] = asyncio.Queue()
        self._boot: Boot | None = None
        self._asked: signal.Signals | None = None

    def run(self, isolates: Isolates) -> signal.Signals | None:
        """Run to the end; return the signal that asked for it, None if the isolate ended as it should by itself."""
        with isolates.claim(self._order.name) as claim, Listener(self._order.listen) as listener:
            log = self._report.log_to(claim.log)
            try:
                return asyncio.run(self._supervise(claim, listener, log))
            finally:
                self._report.close()

    async def _supervise(self, claim: Claim, listener: Listener, log: int) -> signal.Signals | None:
        self._watch_signals()
        record = self._first_record(claim, listener)
        claim.write(record)
        console = ConsoleLog(claim.console)
        setting = Setting(
            claim, listener, console, self._report, self._root, log,
            self._order.policy, policy_hash(self._order.policy), self._order.role, self._order.limits,
            self._order.egress,
        )  # fmt: skip
        try:
            async with self._come_up(setting, record) as boot:
                record = replace(boot.record, stage=Stage.SERVING)
                claim.write(record)
                boot.open_gate()
                self._report.step(f"listening on {listener.endpoint}")
                self._serving(record)
                reason = await self._keep(boot)
        except Interrupted as asked:
            self._report.step(f"{asked.signal.name}: stopped while it started")
            self._write_end(claim, record, Stage.ENDED, f"stopped by {asked.signal.name} while it started")
            return asked.signal
        except BaseException as error:
            self._write_end(claim, record, Stage.FAILED, str(error) or type(error).__name__)
            raise
        finally:
            console.close()
        self._write_end(claim, record, Stage.ENDED, reason)
        return self._asked

    @contextlib.asynccontextmanager
    async def _come_up(self, setting: Setting, record: Record) -> AsyncIterator[Boot]:
        """Give the first isolate that serves; it is stopped when the body ends."""
        shown = False
        for isolate in self._order.isolates:
            if not shown:
                self._report.note(isolate.caution)
                show_measurements(self._report, isolate.measurements)
                shown = True
            self._news = asyncio.Queue()
            if self._asked is not None:
                raise Interrupted(self._asked)
            async with contextlib.AsyncExitStack() as stack:
                try:
                    boot = await stack.enter_async_context(start_boot(isolate, setting, record, self._news))
                    self._boot = boot
                    await boot.wait_until_serving(self._order.boot_limit)
                except IsolateHalted:  # the guest ran well enough to say so
                    raise
                except IsolateDied as error:
                    if not isolate.tentative:
                        raise
                    headline = str(error).partition("\n")[0]
                    self._report.note(f"{(isolate.accel or isolate.kind).upper()} does not work here: {headline}")
                    continue
                self._order.works(isolate)
                yield boot
                return
        raise IsolateDied("no way to run the isolate is left")

    async def _keep(self, boot: Boot) -> str:
        """Wait until the isolate has ended as it should, or is asked to end; return why."""
        while True:
            match news := await self._news.get():
                case Asked(number):
                    self._report.step(f"{number.name}: stopping")
                    return f"stopped by {number.name}"
                case EventCode(event) if event in FAREWELLS:
                    boot.farewell = event
                    self._report.step(tell_event(event))
                case Ended():
                    return FAREWELLS[await boot.explain_end(news)]
                case _:
                    await boot.look(news)

    # Signals

    def _watch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # under nohup
                loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._asked is None:
            self._asked = number
            self._news.put_nowait(Asked(number))
        elif self._boot is not None:  # asked twice: no more patience
            for child in self._boot.children:
                child.kill()

    # Records

    def _first_record(self, claim: Claim, listener: Listener) -> Record:
        first = self._order.isolates[0]
        return Record(
            name=claim.name,
            stage=Stage.BOOTING,
            isolate=first.kind,
            endpoint=str(listener.endpoint),
            image=self._order.image,
            policy=policy_hash(self._order.policy).hex(),
            measurements=told_measurements(first.measurements),
            root=str(self._root.path),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            supervisor=ProcessId.of(os.getpid()),
        )

    def _write_end(self, claim: Claim, record: Record, stage: Stage, reason: str) -> None:
        self._report.log(f"{stage}: {escape(reason)}")
        ended = replace(record, stage=stage, reason=reason, supervisor=None, children=(), sockets=None)
        with contextlib.suppress(OSError, VeracruzError):  # what went wrong is told in any case
            claim.write(ended)


def told_measurements(measurements: Measurements | None) -> dict[str, str]:
    """Return the registers as they are told, under nitro-cli's names; zeros in debug mode."""
    told = measurements or Measurements(ZERO_PCR, ZERO_PCR, ZERO_PCR)
    return dump_measurements(told)["Measurements"]
