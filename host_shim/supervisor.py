# SPDX-License-Identifier: MIT
"""Brings one isolate up, keeps it until it ends or is asked to, and leaves nothing behind.

One thread, one queue of news: what the guest tells, which process ended, what the user asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace

from attestation.binding import policy_hash
from attestation.console import as_told
from attestation.errors import VeracruzError, escape
from attestation.measurements import ZERO_PCR, Measurements, dump_measurements
from enclave_image.runtime.wire import PORT_API

from .boot import Boot, Interrupted, Setting, show_measurements, start_boot
from .children import ProcessId
from .console_log import ConsoleLog
from .dev_pki import DevelopmentRoot
from .egress.rules import Rule
from .errors import IsolateDied, IsolateHalted
from .isolate import Isolate
from .listen import Endpoint, Listener
from .news import FAREWELLS, Asked, Ended, EventCode, News, tell_event
from .post_mortem import tell_code
from .record import Record, Stage
from .relay.limits import Limits
from .report import Report
from .restart import RestartPolicy, Restarts
from .state import Claim, Isolates, now

BOOT_LIMIT = 120.0  # seconds from the start of the machine until it serves
LOG_PAUSE = 10.0  # seconds between looks at the length of supervisor.log
RELAY_SETTLED = 10.0  # seconds; a relay that ends sooner would end again


@dataclass(frozen=True, slots=True)
class Order:
    """What is to run: the isolates are tried in this order, the next one if a tentative one does not come up."""

    isolates: Sequence[Isolate]
    policy: bytes | None
    image: str | None
    listen: Endpoint
    name: str | None = None
    role: str | None = None
    instance_id: str | None = None
    boot_limit: float = BOOT_LIMIT
    egress: tuple[Rule, ...] = ()
    limits: Limits = Limits(drain=0)  # noqa: RUF009 -- frozen
    memory_mib: int | None = None
    cpus: int | None = None
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    port: int = PORT_API  # of the isolate's, that the relay leads to
    old_documents: bool = False  # our emulator's: as AWS wrote them until April 2025
    adopted: Record | None = None  # of an isolate that goes on: it is taken over, and nothing is started
    works: Callable[[Isolate], None] = lambda isolate: None  # told which one came up

    @property
    def policy_hash(self) -> bytes | None:
        """SHA-256 of the policy."""
        if self.adopted is not None:
            return bytes.fromhex(self.adopted.policy) if self.adopted.policy else None
        return None if self.policy is None else policy_hash(self.policy)


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
        self._record: Record
        self._served: float | None = None  # since when; time.monotonic
        self._told = False  # that it serves, the first time

    def run(self, isolates: Isolates) -> signal.Signals | None:
        """Run to the end; return the signal that asked for it, None if the isolate ended as it should by itself."""
        with (
            isolates.claim(self._order.name, adopt=self._order.adopted is not None) as claim,
            Listener(self._order.listen) as listener,
        ):
            log = self._report.log_to(claim.log, keep=self._order.adopted is not None)
            try:
                return asyncio.run(self._supervise(claim, listener, log))
            finally:
                self._report.close()

    async def _supervise(self, claim: Claim, listener: Listener, log: int) -> signal.Signals | None:
        self._watch_signals()
        self._record = self._first_record(claim, listener)
        claim.write(self._record)
        console = ConsoleLog(claim.console, keep=self._order.adopted is not None)
        setting = Setting(
            claim, listener, console, self._report, self._root, log, self._order.policy, self._order.policy_hash,
            self._order.role, self._order.limits, self._order.instance_id, self._order.egress,
            self._order.old_documents,
        )  # fmt: skip
        restarts = Restarts(self._order.restart)
        trimming = asyncio.create_task(self._trim_log())
        try:
            while True:
                try:
                    reason = await self._live(setting)
                    break
                except IsolateDied as error:
                    await self._pause(claim, restarts, error)
        except Interrupted as asked:
            started = " while it started" if self._served is None else ""  # else its processes were told before us
            self._report.step(f"{asked.signal.name}: stopped{started}")
            self._write_end(claim, Stage.ENDED, f"stopped by {asked.signal.name}{started}")
            return asked.signal
        except BaseException as error:
            told = str(as_told(error)) if isinstance(error, (VeracruzError, OSError, MemoryError)) else str(error)
            self._write_end(claim, Stage.FAILED, told or type(error).__name__)
            raise
        finally:
            trimming.cancel()
            console.close()
        self._write_end(claim, Stage.ENDED, reason)
        return self._asked

    async def _trim_log(self) -> None:
        while True:
            await asyncio.sleep(LOG_PAUSE)
            self._report.trim()

    async def _live(self, setting: Setting) -> str:
        """Start one isolate and keep it to its end; return why it ended as it should, else raise IsolateDied."""
        self._served = None
        async with self._come_up(setting, self._record) as boot:
            self._served = time.monotonic()
            self._record = replace(boot.record, stage=Stage.SERVING, served=now())
            setting.claim.write(self._record)
            boot.open_gate()
            self._report.step(f"listening on {setting.listener.endpoint}")
            if not self._told:
                self._told = True
                self._serving(self._record)
            return await self._keep(setting.claim, boot)

    async def _pause(self, claim: Claim, restarts: Restarts, error: IsolateDied) -> None:
        """Wait until the next start; raise the error if there is none, Interrupted if it is not wanted."""
        served = time.monotonic() - self._served if self._served is not None else 0.0
        pause = restarts.next_pause(error, served=served)
        if self._asked is not None:
            raise Interrupted(self._asked) from error
        left = self._boot is not None and self._boot.running.guest.lives_on  # it would be forgotten over the next
        if pause is None or left:
            raise error
        self._boot = None
        self._report.note(str(error).partition("\n")[0])
        self._report.note(
            f"a new isolate starts in {pause:.0f} s (the {_ordinal(restarts.total)} after a death): it has a new key,"
            " and nothing of what was in the one before; participants go on with --new-isolate"
        )
        self._record = replace(
            self._record, stage=Stage.RESTARTING, children=(), roles=(), sockets=None, outside=None, served=None,
            reason=str(error), died=str(error).partition("\n")[0], restarts=restarts.total,
        )  # fmt: skip
        claim.write(self._record)
        self._news = asyncio.Queue()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                if isinstance(asked := await self._news.get(), Asked):
                    raise Interrupted(asked.signal)
        self._record = replace(self._record, stage=Stage.BOOTING, reason=None, started=now())

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
                except IsolateDied as error:
                    if not isolate.tentative or isinstance(error, IsolateHalted) or error.repeats:
                        raise  # the guest ran well enough to say so
                    headline = str(error).partition("\n")[0]
                    self._report.note(f"{(isolate.accel or isolate.kind).upper()} does not work here: {headline}")
                    continue
                self._order.works(isolate)
                yield boot
                return
        raise IsolateDied("no way to run the isolate is left")

    async def _keep(self, claim: Claim, boot: Boot) -> str:
        """Wait until the isolate has ended as it should, or is asked to end; return why."""
        while True:
            match news := await self._news.get():
                case Asked(number):
                    self._report.step(f"{number.name}: stopping")
                    return f"stopped by {number.name}"
                case EventCode(event) if event in FAREWELLS:
                    boot.farewell = event
                    self._report.step(tell_event(event))
                case Ended(child, code) if child is boot.relay and self._may_replace_relay(boot):
                    self._replace_relay(claim, boot, code)
                case Ended():
                    return FAREWELLS[await boot.explain_end(news)]
                case _:
                    await boot.look(news)

    def _may_replace_relay(self, boot: Boot) -> bool:
        return self._asked is None and boot.relay_age >= RELAY_SETTLED  # asked: all of us may have been, at once

    def _replace_relay(self, claim: Claim, boot: Boot, code: int) -> None:
        self._report.note(
            f"the relay ended {tell_code(code)}: another takes its place; its connections broke, the isolate goes on"
        )
        try:
            boot.renew_relay()
        except OSError as error:
            raise IsolateDied(
                f"the relay ended {tell_code(code)}, and no other can be started", actual=error
            ) from error
        self._record = replace(self._record, children=boot.record.children, roles=boot.record.roles)
        with contextlib.suppress(VeracruzError):  # a full disk: the isolate matters more
            claim.write(self._record)

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
        if (adopted := self._order.adopted) is not None:
            return replace(
                adopted, stage=Stage.BOOTING, endpoint=str(listener.endpoint), reason=None, ended=None,
                supervisor=ProcessId.of(os.getpid()),
            )  # fmt: skip
        return Record(
            name=claim.name,
            stage=Stage.BOOTING,
            isolate=first.kind,
            endpoint=str(listener.endpoint),
            image=self._order.image,
            policy=self._order.policy_hash.hex() if self._order.policy_hash else None,
            measurements=told_measurements(first.measurements),
            root=str(self._root.path) if first.evidence.emulated else None,
            started=now(),
            supervisor=ProcessId.of(os.getpid()),
            evidence=first.evidence.value,
            debug=first.measurements is None,
            memory_mib=self._order.memory_mib,
            cpus=self._order.cpus,
            restart=str(self._order.restart),
            port=self._order.port,
        )

    def _write_end(self, claim: Claim, stage: Stage, reason: str) -> None:
        self._report.log(f"{stage}: {escape(reason)}")
        outside = None
        if self._boot is not None and self._boot.running.guest.lives_on:
            outside, stage = self._boot.record.outside, Stage.LOST
            reason += "; its enclave did not end, and may run on"
        ended = replace(
            self._record, stage=stage, reason=reason, supervisor=None, children=(), roles=(), sockets=None,
            outside=outside, ended=now(), accel=self._boot.isolate.accel if self._boot else self._record.accel,
        )  # fmt: skip
        with contextlib.suppress(OSError, VeracruzError):  # what went wrong is told in any case
            claim.write(ended)


def _ordinal(number: int) -> str:
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def told_measurements(measurements: Measurements | None) -> dict[str, str]:
    """Return the registers as they are told, under nitro-cli's names; zeros in debug mode."""
    told = measurements or Measurements(ZERO_PCR, ZERO_PCR, ZERO_PCR)
    return dump_measurements(told)["Measurements"]
