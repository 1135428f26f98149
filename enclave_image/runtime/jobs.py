# SPDX-License-Identifier: MIT
"""Jobs: who may start one, on which contents, when it runs, and what its owner learns of it.

A job sees the store as it was when it was accepted. Its id is random and known to its owner alone. Who may not observe
the program learns that it ended, at a time rounded up to a power of two of seconds since the start, and no more: until
then it is `running`, waiting in the queue or over already, and counts as one that has not ended.
"""

from __future__ import annotations

import base64
import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any

from attestation.policy import Participant, Policy, Program, Right

from .blobs import Blob
from .errors import Busy, Expired, InputMismatch, NotAvailable
from .lifecycle import Lifecycle
from .runner import NoStaging, Outcome, Runner
from .staging import find_inputs
from .store import Snapshot, Store
from .task import Ending, Report
from .wire import Event
from .zygote import ZygoteGone

MAX_WAITING = 8  # jobs of one participant that have not ended
MAX_REMEMBERED = 64  # jobs of one participant, the oldest ended ones are forgotten
ID_SIZE = 16  # bytes
ROUNDING = 1.0  # seconds; the first of the powers of two


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class Job:
    """One job; changed under the lock of `Jobs`."""

    id: str
    owner: str
    program: Program
    snapshot: Snapshot = field(repr=False)
    accepted: float
    state: State = State.QUEUED
    cancelled: bool = False
    worker: socket.socket | None = None
    outcome: Outcome | None = None
    told_from: float = 0.0  # when those who may not observe learn that it ended


class Jobs:
    """The queue, by turns between owners, and a thread for each job that the policy lets run at once."""

    def __init__(self, policy: Policy, store: Store, lifecycle: Lifecycle, runner: Runner) -> None:
        self._policy = policy
        self._store = store
        self._lifecycle = lifecycle
        self._runner = runner
        self._changed = threading.Condition()
        self._queue: list[Job] = []
        self._turns: dict[str, int] = {}  # owner -> number of the turn in which a job of theirs was last begun
        self._jobs: dict[str, Job] = {}
        self._prepared: set[str] = set()

    def start(self) -> None:
        """Start the threads."""
        for _ in range(self._policy.limits.jobs):
            threading.Thread(target=self._serve, daemon=True).start()

    def prepare(self, path: str) -> None:
        """Begin to compile what was just stored, if it is a program of the policy's: it sees no data, so it may.

        Once for each: who sends a program again and again gets no thread for each time.
        """
        program = self._policy.program(path)
        if program is None:
            return
        with self._changed:
            if path in self._prepared:
                return
            self._prepared.add(path)
        source = self._store.snapshot().get(path)
        if source is not None and source.sha256 == program.sha256:
            threading.Thread(target=self._prepare, args=(source,), daemon=True).start()

    def _prepare(self, source: Blob) -> None:
        try:
            self._runner.prepare(source)
        except BaseException:  # as in _serve: without its zygote an isolate is of no use
            self._lifecycle.stop(Event.HALT_INTERNAL)
            raise

    def submit(self, party: Participant, path: str, expected: Mapping[str, bytes]) -> Job:
        """Accept a job; raise what the API answers where it cannot be."""
        program = self._policy.program(path)
        if program is None or not party.rights.allow(path, Right.EXECUTE):
            raise NotAvailable
        self._lifecycle.check_joined()
        snapshot = self._store.snapshot()
        source = snapshot.get(path)
        if source is None or source.sha256 != program.sha256:
            raise NotAvailable
        check_inputs(party, snapshot, expected)
        # what it does not need it does not hold: contents that are waited for count in their owner's share
        needed = find_inputs(program, snapshot) | {path: source}
        with self._changed:
            own = [job for job in self._jobs.values() if job.owner == party.name]
            ended = [job for job in own if _is_told(job, party)]
            if len(own) - len(ended) >= MAX_WAITING:
                raise Busy
            self._lifecycle.spend_run(path)
            for old in ended[: max(len(own) + 1 - MAX_REMEMBERED, 0)]:
                del self._jobs[old.id]
            job = Job(secrets.token_hex(ID_SIZE), party.name, program, needed, time.monotonic())
            self._jobs[job.id] = job
            self._queue.append(job)
            self._changed.notify_all()
        return job

    def describe(self, party: Participant, job_id: str, *, wait: float) -> dict[str, Any]:
        """Return what a job's owner may know, waiting up to `wait` seconds for its end."""
        job = self._find(party, job_id)
        observes = _observes(party, job)
        deadline = time.monotonic() + wait
        with self._changed:
            while not _is_told(job, party) and (left := deadline - time.monotonic()) > 0:
                told_from = job.told_from - time.monotonic() if job.state is State.ENDED else left
                self._changed.wait(min(left, max(told_from, 0.001)))
            state = job.state
            if not observes:  # when it leaves the queue tells when another job ended
                state = State.ENDED if _is_told(job, party) else State.RUNNING
            answer: dict[str, Any] = {"id": job.id, "state": state}
            if state is State.ENDED and observes and job.outcome is not None:
                answer |= _tell(job.outcome)
        return answer

    def cancel(self, party: Participant, job_id: str) -> None:
        """End a job early; one that has ended stays as it is."""
        job = self._find(party, job_id)
        with self._changed:
            job.cancelled = True
            if job.state is State.QUEUED:
                self._queue.remove(job)
                self._lifecycle.refund_run(job.program.path)
                self._end(job, Outcome(Report(None, Ending.CANCELLED, 0)))
            elif job.worker is not None:
                with contextlib.suppress(OSError):
                    job.worker.shutdown(socket.SHUT_WR)

    def _find(self, party: Participant, job_id: str) -> Job:
        with self._changed:
            job = self._jobs.get(job_id)
        if job is None or job.owner != party.name:
            raise NotAvailable
        return job

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    self._changed.wait()
                job = self._next()
                job.state = State.RUNNING
            try:
                outcome = self._runner.run(job.program, job.snapshot, hold=partial(self._hold, job))
            except (Expired, NoStaging):
                outcome = Outcome(Report(None, Ending.ENGINE, 0))
            except ZygoteGone:
                self._lifecycle.stop(Event.HALT_INTERNAL)
                return
            except BaseException:
                self._lifecycle.stop(Event.HALT_INTERNAL)
                raise
            with self._changed:
                self._end(job, outcome)

    def _next(self) -> Job:
        """Take the oldest job of whoever has waited longest for a turn: nobody's queue holds up another's."""
        job = min(self._queue, key=lambda waiting: self._turns.get(waiting.owner, 0))
        self._queue.remove(job)
        self._turns[job.owner] = max(self._turns.values(), default=0) + 1
        return job

    def _hold(self, job: Job, worker: socket.socket | None) -> None:
        with self._changed:
            job.worker = worker
            if worker is not None and job.cancelled:
                with contextlib.suppress(OSError):
                    worker.shutdown(socket.SHUT_WR)

    def _end(self, job: Job, outcome: Outcome) -> None:
        job.state = State.ENDED
        job.outcome = outcome
        job.snapshot = {}
        job.told_from = job.accepted + round_up(time.monotonic() - job.accepted)
        self._changed.notify_all()


def check_inputs(party: Participant, snapshot: Snapshot, expected: Mapping[str, bytes]) -> None:
    """Raise InputMismatch unless every input is the one that is expected.

    Only its readers, and who sent it, may ask about a content: to anybody else this would confirm a guess, to one who
    may write over it too.
    """
    for path, sha256 in expected.items():
        blob = snapshot.get(path)
        if blob is None or not (party.rights.allow(path, Right.READ) or blob.sender == party.name):
            raise InputMismatch
        if blob.sha256 != sha256:
            raise InputMismatch


def _observes(party: Participant, job: Job) -> bool:
    return party.rights.allow(job.program.path, Right.OBSERVE)


def _is_told(job: Job, owner: Participant) -> bool:
    """Return whether a job has ended as far as its owner may know."""
    return job.state is State.ENDED and (_observes(owner, job) or time.monotonic() >= job.told_from)


def round_up(seconds: float) -> float:
    """Return the next power of two of seconds, at least ROUNDING."""
    bound = ROUNDING
    while bound < seconds:
        bound *= 2
    return bound


def _tell(outcome: Outcome) -> dict[str, Any]:
    report = outcome.report
    return {
        "exit_code": report.exit_code,
        "trap": report.trap,
        "usage": {"fuel": report.fuel, "wall_ms": report.wall_ms, "memory_bytes": report.memory_bytes},
        "stdout": base64.b64encode(outcome.stdout).decode("ascii"),
        "stderr": base64.b64encode(outcome.stderr).decode("ascii"),
    }
