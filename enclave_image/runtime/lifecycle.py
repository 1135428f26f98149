# SPDX-License-Identifier: MIT
"""The isolate's life under its policy: who has joined, how often what ran, until when, who agreed to its end."""

from __future__ import annotations

import threading
from collections import Counter

from attestation.policy import Participant, Policy

from .clock import Clock, ClockFailed
from .errors import Expired, JoinIncomplete, NotAvailable, RunsSpent
from .events import Events
from .wire import Event


class Lifecycle:
    """What changes only one way: joined, spent, agreed, stopped."""

    def __init__(self, policy: Policy, clock: Clock, events: Events) -> None:
        self._policy = policy
        self._clock = clock
        self._events = events
        self._lock = threading.Lock()
        self._joined: set[str] = set()
        self._agreed: set[str] = set()
        self._runs: Counter[str] = Counter()
        self._stopped = threading.Event()
        self._reason = Event.HALT_INTERNAL

    def check_time(self) -> None:
        """Raise Expired, and stop, when the policy's time is over or there is no trusted time."""
        try:
            over = self._clock.passed(self._policy.lifecycle.not_after)
        except ClockFailed:
            over = True
        if over:
            self.stop(Event.EXPIRED)
            raise Expired

    def join(self, party: Participant) -> None:
        """Note that a participant has connected to this isolate."""
        with self._lock:
            self._joined.add(party.name)

    def check_joined(self) -> None:
        """Raise JoinIncomplete until everybody on the join list has connected."""
        with self._lock:
            if not self._joined.issuperset(self._policy.join):
                raise JoinIncomplete

    def spend_run(self, program: str) -> None:
        """Count a run; raise RunsSpent beyond the policy's number."""
        most = self._policy.lifecycle.runs.get(program)
        with self._lock:
            if most is not None and self._runs[program] >= most:
                raise RunsSpent
            self._runs[program] += 1

    def refund_run(self, program: str) -> None:
        """Take back the count of a job that never started."""
        with self._lock:
            self._runs[program] -= 1

    def agree_to_shutdown(self, party: Participant) -> bool:
        """Note one consent; return whether it was the last one needed, and then stop."""
        needed = self._policy.lifecycle.shutdown
        if party.name not in needed:
            raise NotAvailable
        with self._lock:
            self._agreed.add(party.name)
            complete = self._agreed.issuperset(needed)
        if complete:
            self.stop(Event.SHUTDOWN_AGREED)
        return complete

    def stop(self, reason: Event) -> None:
        """End the isolate, with the first reason that is given."""
        with self._lock:
            if self._stopped.is_set():
                return
            self._reason = reason
            self._stopped.set()

    def wait_for_end(self) -> Event:
        """Block until the isolate must end; return the event to tell."""
        self._stopped.wait()
        return self._reason
