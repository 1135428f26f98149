# SPDX-License-Identifier: MIT
"""One run of one program, from its snapshot of the store to its results."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from attestation.policy import Policy, Program

from . import cgroup
from .blobs import Blob
from .errors import ApiError, Expired
from .lifecycle import Lifecycle
from .modules import CompileFailed, Modules
from .results import ResultsRefused, collect, read_stream
from .staging import STDERR, STDOUT, NoStaging, Staging, find_inputs, find_preopens, make_passable, make_staging
from .store import MIB, Snapshot, Store
from .task import MAX_REPORT, Ending, Jail, Report, Run, Task
from .zygote import Zygote, ZygoteGone

ENGINE_MEMORY = 96 * MIB  # bytes beyond guest and results: the worker's Python, the engine, compiled code
COMPILE_MEMORY = 384 * MIB  # bytes
COMPILE_WALL = 300.0  # seconds; Cranelift under TCG is some 20 times slower
MAX_COMPILED = 128 * MIB  # bytes
LAST_WORD = 30.0  # seconds beyond a worker's time in which its warden must have answered
FIRST_UID, UIDS = 20_000, 40_000  # one for each worker, in turn

Hold = Callable[[socket.socket | None], None]  # takes the job socket while a worker runs: its end of stream cancels


@dataclass(frozen=True, slots=True)
class Place:
    """Where workers run, and how much of the jail must stand."""

    directory: Path
    is_root: bool
    strict: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, and the start of its streams."""

    report: Report
    stdout: bytes = b""
    stderr: bytes = b""


class Runner:
    """Runs programs, several at a time if the policy allows it."""

    def __init__(self, policy: Policy, store: Store, zygote: Zygote, lifecycle: Lifecycle, place: Place) -> None:
        self._policy = policy
        self._store = store
        self._zygote = zygote
        self._lifecycle = lifecycle
        self._place = place
        self._modules = Modules()
        self._numbers = itertools.count()
        place.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.directory.chmod(0o700)

    def prepare(self, source: Blob) -> None:
        """Compile a program that has come, so that its first run need not wait; what fails is told by that run."""
        with contextlib.suppress(CompileFailed):
            self._modules.find(source, lambda module, artifact: self._compile(module, artifact, lambda _: None))

    def run(self, program: Program, snapshot: Snapshot, *, hold: Hold) -> Outcome:
        """Run a program on a snapshot; commit its results if it exits with 0.

        Raises Expired where the policy's time is over, ZygoteGone and NoStaging where no job can run any more.
        """
        self._lifecycle.check_time()
        try:
            module = self._modules.find(
                snapshot[program.path],
                lambda source, artifact: self._compile(source, artifact, hold),
            )
        except CompileFailed as failed:
            return Outcome(failed.report)
        number, uid = self._next()
        staging = make_staging(
            self._place.directory / f"run-{number}",
            program=program,
            inputs=find_inputs(program, snapshot),
            uid=uid,
            room=self._store.share,
            strict=self._place.strict,
        )
        try:
            report = self._work(self._plan(program, staging, number, uid), module, module, hold)
            streams = read_stream(staging, STDOUT), read_stream(staging, STDERR)
            if report.exit_code == 0:
                report = self._take(program, staging, report)
            return Outcome(report, *streams)
        finally:
            staging.remove()

    def _take(self, program: Program, staging: Staging, report: Report) -> Report:
        owner = program.path  # not who ran it: what is left of a share would tell how much was written
        try:
            results = collect(staging, program=program, store=self._store, owner=owner)
            self._lifecycle.check_time()
            self._store.take_results(
                owner=owner, changed=results.changed, appended=results.appended, deleted=results.deleted
            )
        except Expired:
            raise
        except (ResultsRefused, ApiError):
            return replace(report, exit_code=None, trap=Ending.OUTPUTS)
        return report

    def _plan(self, program: Program, staging: Staging, number: int, uid: int | None) -> Task:
        limits = program.limits
        memory = limits.memory_mib * MIB
        run = Run(
            args=(program.path, *program.args),
            env=program.env,
            preopens=find_preopens(program.rights),
            stdout=STDOUT,
            stderr=STDERR,
            memory_bytes=memory,
            fuel=limits.fuel,
            clock=self._policy.clock,
        )
        total = memory + ENGINE_MEMORY + self._store.share
        jail = self._jail(staging.root, number, uid, memory=total, file=self._store.file_limit, wall=limits.wall_s)
        return Task(jail, limits.wall_s, run)

    def _compile(self, source: int, artifact: int, hold: Hold) -> Report:
        number, uid = self._next()
        root = self._place.directory / f"compile-{number}"
        make_passable(root)
        try:
            jail = self._jail(root, number, uid, memory=COMPILE_MEMORY, file=MAX_COMPILED, wall=COMPILE_WALL)
            return self._work(Task(jail, COMPILE_WALL, None), source, artifact, hold)
        finally:
            root.rmdir()

    def _jail(self, root: Path, number: int, uid: int | None, *, memory: int, file: int, wall: float) -> Jail:
        return Jail(
            root=str(root),
            uid=uid,
            strict=self._place.strict,
            cgroup=str(cgroup.JOBS / str(number)) if self._place.strict else None,
            memory_bytes=memory,
            file_bytes=file,
            cpu_s=int(wall) + 5,
        )

    def _next(self) -> tuple[int, int | None]:
        number = next(self._numbers)
        return number, FIRST_UID + number % UIDS if self._place.is_root else None

    def _work(self, task: Task, module: int, artifact: int, hold: Hold) -> Report:
        """Run one worker to its end; raise ZygoteGone where nobody tells how it ended."""
        job = self._zygote.start(task, module=module, artifact=artifact)
        try:
            hold(job)
            job.settimeout(task.wall_s + LAST_WORD)
            raw = bytearray()
            while len(raw) <= MAX_REPORT and (part := job.recv(MAX_REPORT)):
                raw += part
            return Report.decode(bytes(raw))
        except (OSError, ValueError) as error:
            raise ZygoteGone from error
        finally:
            hold(None)
            job.close()


__all__ = ["NoStaging", "Outcome", "Place", "Runner", "ZygoteGone"]
