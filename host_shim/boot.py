# SPDX-License-Identifier: MIT
"""One start of one isolate: fresh ports, fresh registers, fresh sockets; then its news until it serves, or fails.

sockets -> parent's ports -> isolate -> relay (its gate closed) -> heartbeat -> policy taken -> serving -> gate open
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from attestation.errors import escape
from attestation.measurements import Measurements
from enclave_image.runtime.wire import PORT_API, Event

from .board import Board, open_board
from .children import GRACE, Child, Process, python_command
from .console_log import ConsoleLog, read_some
from .dev_pki import Chain, DevelopmentRoot
from .diagnosis import count_oom_kills, find_killer
from .egress.rules import Rule
from .errors import IsolateDied, IsolateHalted, IsolateRefused
from .isolate import Evidence, Isolate, Running, start_ready
from .listen import Listener
from .news import FAREWELLS, Asked, Complaint, Ended, EventCode, Heartbeat, News, tell_event
from .nsm_emulator import BootState, Identity, ModuleCounters, NsmEmulator
from .parent_ports import ParentPorts
from .parent_seat import Seat
from .post_mortem import tell_code, tell_death, tell_halt, tell_silence
from .record import Record
from .relay.counters import Counters
from .relay.limits import Limits
from .report import Report
from .state import Claim, make_sockets, remove_sockets

TENTATIVE_HEARTBEAT = 6.0  # seconds; with a KVM that works the heartbeat comes in one
TENTATIVE_LIMIT = 30.0  # seconds
LAST_WORDS = 0.3  # seconds in which news may still arrive that were sent before a process ended
KEPT_COMPLAINTS = 60  # lines: the first half, where causes are, and the last
KVM_BROKEN = ("KVM internal error", "kvm run failed", "failed to set MSR")  # QEMU prints it and hangs or aborts


class Interrupted(Exception):
    """The user asked for the end before the isolate served."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.signal = number


@dataclass(frozen=True, slots=True)
class Setting:
    """What every start of one run shares."""

    claim: Claim
    listener: Listener
    console: ConsoleLog
    report: Report
    root: DevelopmentRoot
    log: int  # descriptor of supervisor.log
    policy: bytes | None
    policy_hash: bytes | None
    role: str | None
    limits: Limits
    instance_id: str | None = None
    egress: tuple[Rule, ...] = ()
    old_documents: bool = False


@dataclass(slots=True)
class Boot:
    """A started isolate and what is known of it."""

    isolate: Isolate
    running: Running
    relay: Child
    record: Record
    setting: Setting
    news: asyncio.Queue[News]
    gate: int  # descriptor; the relay accepts once it is closed
    ports: ParentPorts
    target: str  # where the relay leads to
    egress: Child | None = None
    awaited: str = "first sign of life"  # what it is waited for
    complaints: list[str] = field(default_factory=list)
    farewell: Event | None = None  # the event after which its end is no accident
    kills_before: int | None = field(default_factory=count_oom_kills)
    relay_since: float = field(default_factory=time.monotonic)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)  # that end with it

    @property
    def children(self) -> tuple[Process, ...]:
        """Every process, in the order in which they are stopped."""
        way_out = () if self.egress is None else (self.egress,)
        return (self.relay, *self.running.children, *way_out)

    @property
    def relay_age(self) -> float:
        """For how many seconds its relay has run."""
        return time.monotonic() - self.relay_since

    async def stop_relay(self) -> None:
        """End the relay, after what its connections are given to end."""
        await self.relay.stop(GRACE + self.setting.limits.drain)

    def renew_relay(self) -> None:
        """Put another relay in the place of one that ended: the isolate's key and data outlive its connections."""
        self.relay, self.gate = _start_relay(self.setting, self.target)
        self.relay_since = time.monotonic()
        self.open_gate()
        self.watch(self.relay)
        self.note_processes()

    def watch(self, child: Process) -> None:
        """Let the end of a process be news."""
        self.tasks.append(asyncio.create_task(_tell_end(child, self.news)))

    def note_processes(self) -> None:
        """Put the processes that there are into the record."""
        found = [(child.name, identity) for child in self.children if (identity := child.identity)]
        self.record = replace(
            self.record,
            children=tuple(identity for _, identity in found),
            roles=tuple(name for name, _ in found),
        )

    def open_gate(self) -> None:
        """Let the relay accept; who connected before has waited in the backlog."""
        if self.gate >= 0:
            os.close(self.gate)
            self.gate = -1

    async def wait_until_serving(self, limit: float) -> None:
        """Take news until the isolate serves; raise IsolateDied (or a kind of it) or Interrupted.

        `limit` is in seconds. Where the isolate is tentative, limits are short: another way waits to be tried.
        """
        if self.isolate.adopted:
            self.awaited = ""
            return
        first = limit
        if self.isolate.tentative:
            first, limit = min(limit, TENTATIVE_HEARTBEAT), min(limit, TENTATIVE_LIMIT)
        report = self.setting.report
        try:
            async with asyncio.timeout(limit), asyncio.timeout(first) as heartbeat:
                while True:
                    match news := await self.news.get():
                        case Heartbeat():
                            heartbeat.reschedule(None)
                            report.step("heartbeat answered")
                            if self.setting.policy is None:  # all that others' images say of themselves
                                self.awaited = ""
                                self.ports.rest()
                                return
                            self.awaited = "attestor"
                        case EventCode(Event.ATTESTOR_READY):
                            self.awaited = "taking of the policy"
                            report.step(tell_event(Event.ATTESTOR_READY))
                        case EventCode(Event.POLICY_TAKEN):
                            self.awaited = "service"
                            report.step(f"policy {(self.setting.policy_hash or b'').hex()} taken")
                        case EventCode(Event.SERVING):
                            self.awaited = ""
                            self.ports.rest()
                            report.step(tell_event(Event.SERVING))
                            return
                        case Asked(number):
                            raise Interrupted(number)
                        case _:
                            await self.look(news)
        except TimeoutError as error:
            seconds = limit if heartbeat.when() is None else first
            claim = self.setting.claim
            raise tell_silence(
                claim.name, awaited=self.awaited, seconds=seconds, console=claim.console, complaints=self.complaints
            ) from error

    async def look(self, news: News) -> None:
        """Take news that may come at any time; raise IsolateDied or IsolateHalted if they are bad."""
        match news:
            case EventCode(event):
                if event is not None and event.halts:
                    raise self._halted(event)
                self.setting.report.step(tell_event(event))
            case Complaint(line):
                self.setting.report.log(f"{self.running.guest.name}: {line}")
                if self.isolate.accel == "kvm" and any(sign in line for sign in KVM_BROKEN):
                    raise IsolateDied("QEMU says so", actual=line, hint="--accel tcg")
            case Ended():
                farewell = await self.explain_end(news)
                raise IsolateRefused(f"the isolate ended before it served: {FAREWELLS[farewell]}")

    async def explain_end(self, news: Ended) -> Event:
        """Return the event that announced a regular end; raise IsolateDied or IsolateHalted for any other.

        One process's end brings others': the guest's own explains most.
        """
        ended = news
        guest = self.running.guest
        if news.child is not guest:
            with contextlib.suppress(TimeoutError):
                ended = Ended(guest, await asyncio.wait_for(guest.wait(), LAST_WORDS))
        for word in await self._last_words():
            if isinstance(word, EventCode) and word.event is not None:
                if word.event.halts:
                    raise self._halted(word.event)
                if word.event in FAREWELLS:
                    self.farewell = word.event
        if self.farewell is None:
            raise self._died(ended.child, ended.code)
        return self.farewell

    async def _last_words(self) -> list[News]:
        await asyncio.sleep(LAST_WORDS)
        words = []
        while not self.news.empty():
            words.append(self.news.get_nowait())
        return words

    def _halted(self, event: Event) -> IsolateHalted:
        return tell_halt(event, self.setting.claim.console)

    def _died(self, child: Process, code: int) -> IsolateDied:
        claim = self.setting.claim
        if child is not self.running.guest:
            killer = find_killer(code, self.kills_before)
            why = f": {killer.cause}" if killer else ""
            return IsolateDied(
                f"the {child.name} ended {tell_code(code)}, and the isolate with it{why}",
                hint=(killer and killer.hint) or f"see {claim.log}",
            )
        return tell_death(
            claim.name, code, process=child.name, awaited=self.awaited, console=claim.console,
            complaints=self.complaints, kills_before=self.kills_before,
        )  # fmt: skip


@contextlib.asynccontextmanager
async def start_boot(
    isolate: Isolate, setting: Setting, record: Record, news: asyncio.Queue[News]
) -> AsyncIterator[Boot]:
    """Start an isolate and all that it needs; everything is stopped and removed when the body ends."""
    claim, report = setting.claim, setting.report
    async with contextlib.AsyncExitStack() as stack:
        sockets = make_sockets()
        stack.callback(remove_sockets, sockets)
        base = sockets / "v"
        outside = isolate.outside(base)
        record = replace(record, sockets=str(sockets), isolate=isolate.kind, accel=isolate.accel, outside=outside)
        claim.write(record)
        module = _module(isolate, setting, stack) if isolate.evidence.emulated else None
        ports = ParentPorts(
            isolate.seat(base),
            policy=setting.policy,
            module=module,
            tell=news.put_nowait,
            heartbeat=isolate.evidence is not Evidence.AWS,  # nitro-cli and QEMU's accelerator answer it themselves
        )
        stack.push_async_callback(ports.close)
        if not isolate.adopted:
            await ports.open()
        egress = await _start_egress(setting, isolate.seat(base))
        if egress is not None:
            stack.push_async_callback(egress.stop)
        running = await isolate.start(base, setting.log)
        stack.callback(running.close)
        stack.push_async_callback(running.stop)
        accel = f" with {isolate.accel.upper()}" if isolate.accel else ""
        report.step(f"started {running.guest.name}{accel} (pid {running.guest.pid})")
        target = running.target or f"{base}_{PORT_API}"
        relay, gate = _start_relay(setting, target)
        boot = Boot(isolate, running, relay, record, setting, news, gate, ports, target, egress)
        stack.callback(boot.open_gate)
        stack.push_async_callback(boot.stop_relay)  # before the gate: nobody is let in at the end
        boot.note_processes()
        claim.write(boot.record)
        pump = asyncio.create_task(setting.console.pump(running.console))
        for child in boot.children:
            if child not in running.extras:
                boot.watch(child)
        tasks = boot.tasks
        if setting.policy is None and isolate.evidence is Evidence.AWS and not isolate.adopted:
            tasks.append(asyncio.create_task(_tell_started(running, news)))
        tasks.append(asyncio.create_task(_tell_complaints(running.complaints, boot.complaints, news)))
        stack.push_async_callback(_finish, tasks, pump)
        if module is not None:
            module.warm_up()  # the guest's kernel is busy with itself meanwhile
        yield boot


def _module(isolate: Isolate, setting: Setting, stack: contextlib.AsyncExitStack) -> NsmEmulator:
    """Return this boot's module: fresh registers, a chain of its own, what it is asked published for the metrics."""
    board = None
    with contextlib.suppress(OSError):  # a full disk: the isolate matters more than its numbers
        descriptor = open_board(setting.claim.module, ModuleCounters)
        try:
            board = Board(descriptor, ModuleCounters)
        finally:
            os.close(descriptor)
        stack.callback(board.close)
    identity = Identity.random(setting.role, setting.instance_id)
    state = BootState(isolate.measurements, identity, isolate.signer)
    chain = Chain(setting.root.authority, module_id=identity.module_id)
    return NsmEmulator(state, chain, clock=lambda: datetime.now(UTC), indefinite=not setting.old_documents, board=board)


def _start_relay(setting: Setting, target: str) -> tuple[Child, int]:
    counters = []
    with contextlib.suppress(OSError):  # as for the module's
        counters = [open_board(setting.claim.counters, Counters)]
    gate, opener = os.pipe()
    listener = setting.listener.fileno()
    try:
        relay = Child(
            python_command(
                "host_shim.relay", "--listen-fd", str(listener), "--gate-fd", str(gate), "--target", target,
                *(f"--counters-fd={descriptor}" for descriptor in counters), *setting.limits.words(),
            ),
            name="relay", stderr=setting.log, pass_fds=[listener, gate, *counters],
        )  # fmt: skip
    except BaseException:
        os.close(opener)
        raise
    finally:
        for descriptor in (gate, *counters):
            os.close(descriptor)
    return relay, opener


async def _start_egress(setting: Setting, seat: Seat) -> Child | None:
    """Start the proxy for what the isolate may reach; its decisions go to the supervisor's log."""
    if not setting.egress:
        return None
    for rule in setting.egress:
        setting.report.note(f"the isolate may reach {rule.host}:{rule.target}, by its parent's port {rule.port}")
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(seat.open(rule.port)).fileno() for rule in setting.egress]
        words = [f"--listen-fd={descriptor}" for descriptor in sockets]
        if seat.peer is not None:
            words.append(f"--peer={seat.peer}")
        command = python_command("host_shim.egress", *words, *map(str, setting.egress))
        return await start_ready(command, name="egress proxy", log=setting.log, pass_fds=sockets)


async def _tell_end(child: Process, news: asyncio.Queue[News]) -> None:
    news.put_nowait(Ended(child, await child.wait()))


async def _tell_started(running: Running, news: asyncio.Queue[News]) -> None:
    """Tell of the heartbeat that the launcher answered, as far as it says so."""
    if running.started is None or await running.started():
        news.put_nowait(Heartbeat())


async def _tell_complaints(source: int | None, kept: list[str], news: asyncio.Queue[News]) -> None:
    if source is None:
        return
    os.set_blocking(source, False)
    while data := await read_some(source, 4096):
        for line in data.decode("utf-8", "replace").splitlines():
            if len(kept) >= KEPT_COMPLAINTS:
                del kept[KEPT_COMPLAINTS // 2]
            kept.append(escape(line))
            news.put_nowait(Complaint(escape(line)))


async def _finish(tasks: Sequence[asyncio.Task[None]], pump: asyncio.Task[None]) -> None:
    for task in (*tasks, pump):
        task.cancel()
    await asyncio.gather(*tasks, pump, return_exceptions=True)


def show_measurements(report: Report, measurements: Measurements | None) -> None:
    """Tell what the module reports as PCR0, PCR1 and PCR2."""
    if measurements is None:
        report.note("debug mode: PCR0, PCR1 and PCR2 are zero")
        return
    for index, value in enumerate(measurements.registers):
        report.step(f"PCR{index} {value.hex()}")
